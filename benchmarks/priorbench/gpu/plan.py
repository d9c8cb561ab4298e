"""The checks in the order in which they run: what is right first, then what is fast. Imports no torch."""

from __future__ import annotations

from priorbench.gpu.check import Check

_CORRECT = (
    Check("attention", "correct_prior", "correct", 5, "sdpa and math give the same outputs and gradients"),
    Check("attention_xformers", "correct_prior", "correct", 5, "xformers gives those of math", ("xformers",), gpu=True),
    Check("prior_losses", "correct_prior", "correct", 8, "losses, gradients and an update of the prior, as on the CPU"),
    Check("prior_samples", "correct_sample", "correct", 8, "codes drawn in float32, as on the CPU"),
    Check(
        "prior_samples_compiled", "correct_sample", "correct", 40, "compiled steps (CUDA graphs) draw the same codes"
    ),
    Check("prior_parallel", "correct_training", "correct", 12, "DDP and FSDP2 on one device train as one process does"),
    Check("prior_resume", "correct_training", "correct", 12, "a prior's run that is resumed equals one that is not"),
    Check("memory_message", "correct_training", "correct", 5, "too large a batch ends with one message"),
    Check("tokenizer_codes", "correct_vqgan", "correct", 12, "codes and pictures of the tokenizer, as on the CPU"),
    Check(
        "vqgan_losses", "correct_vqgan", "correct", 8, "losses and gradients of the VQGAN, as on the CPU", ("lpips",)
    ),
    Check(
        "vqgan_resume", "correct_vqgan", "correct", 12, "a tokenizer's run that is resumed continues with its losses"
    ),
    Check("shards_again", "correct_vqgan", "correct", 10, "a shard that is encoded again has the same bytes"),
)
_SPEED = (
    Check("peaks", "speed_limits", "speed", 8, "limits of the card: matrix products, memory, copies"),
    Check("encode", "speed_vqgan", "speed", 15, "encoding from memory"),
    Check("tokenize", "speed_tokenize", "speed", 28, "JPEG files to shards by the job's worker, without Ray"),
    Check("tokenize_two", "speed_tokenize", "speed", 20, "the same by two processes that share the GPU"),
    Check("train_prior", "speed_prior", "speed", 20, "training steps of GPT-2 medium"),
    Check("sample", "speed_sample", "speed", 30, "drawing pictures with GPT-2 medium"),
    Check("train_prior_compiled", "speed_prior", "speed", 70, "the same training steps, compiled"),
    Check("sample_compiled", "speed_sample", "speed", 60, "the same drawing, compiled (CUDA graphs)"),
    Check("encode_compiled", "speed_vqgan", "speed", 45, "encoding from memory, compiled"),
    Check("tokenize_ray", "speed_tokenize", "speed", 40, "the tokenize job on a local Ray", ("ray",)),
    Check("load", "speed_tokenize", "speed", 6, "reading shuffled codes to the device"),
    Check("train_vqgan", "speed_vqgan", "speed", 15, "training steps of the VQGAN", ("lpips",)),
    Check(
        "train_prior_xformers", "speed_prior", "speed", 10, "the training steps with xformers", ("xformers",), gpu=True
    ),
    Check("train_transformers", "speed_prior", "speed", 15, "the rival transformers, training", ("transformers",)),
    Check("sample_transformers", "speed_sample", "speed", 20, "the rival transformers, drawing", ("transformers",)),
    Check("encode_diffusers", "speed_vqgan", "speed", 15, "the rival diffusers, encoding", ("diffusers",)),
    Check("train_nanogpt", "speed_prior", "speed", 60, "the rival nanoGPT, compiled, training"),
    Check("train_vqgan_compiled", "speed_vqgan", "speed", 90, "training steps of the VQGAN, compiled", ("lpips",)),
)
CHECKS = (*_CORRECT, *_SPEED)
