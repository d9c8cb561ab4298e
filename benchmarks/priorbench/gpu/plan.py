"""The checks in the order in which they run: what is right first, then what is fast, what compiles last.

It imports no torch.
"""

from __future__ import annotations

from typing import Any

from priorbench.gpu.check import Check


def _correct(area: str, name: str, seconds: float, what: str, **options: Any) -> Check:
    return Check(name, f".correct_{area}", "correct", seconds, what, **options)


def _speed(area: str, name: str, seconds: float, what: str, **options: Any) -> Check:
    return Check(name, f".speed_{area}", "speed", seconds, what, **options)


CHECKS = (
    _correct("prior", "attention", 5, "sdpa gives the outputs and gradients of plain products"),
    _correct("prior", "attention_xformers", 6, "xformers gives them, too", needs=("xformers",), gpu=True),
    _correct("prior", "prior_losses", 8, "losses, gradients and updates of the prior, as on the CPU"),
    _correct("sample", "prior_samples", 6, "codes drawn in float32, as on the CPU"),
    _correct("sample", "prior_samples_compiled", 25, "compiled steps (CUDA graphs) draw the same codes"),
    _correct("training", "prior_parallel", 8, "DDP and FSDP2 on one device train as one process does"),
    _correct("training", "prior_resume", 8, "a prior's run that is resumed equals one that is not"),
    _correct("training", "memory_message", 5, "too large a batch ends with one message"),
    _correct("vqgan", "tokenizer_codes", 10, "codes and pictures of the tokenizer, as on the CPU"),
    _correct("vqgan", "vqgan_losses", 14, "losses and gradients of the VQGAN, as on the CPU", needs=("lpips",)),
    _correct("vqgan", "vqgan_resume", 12, "a tokenizer's run that is resumed continues with its losses"),
    _correct("vqgan", "shards_again", 10, "a shard that is encoded again has the same bytes"),
    _speed("limits", "peaks", 8, "limits of the card: matrix products, memory, copies"),
    _speed("vqgan", "encode", 22, "encoding from memory, and other ways to compute it"),
    _speed("tokenize", "tokenize", 28, "JPEG files to shards by the job's worker, without Ray", photos=True),
    _speed("prior", "train_prior", 15, "training steps of GPT-2 medium"),
    _speed("sample", "sample", 34, "drawing pictures with GPT-2 medium, also with plain CUDA graphs"),
    _speed("tokenize", "load", 6, "reading shuffled codes to the device"),
    _speed("vqgan", "train_vqgan", 18, "training steps of the VQGAN", needs=("lpips",)),
    _speed("vqgan", "encode_compiled", 50, "encoding from memory, compiled"),
    _speed("prior", "train_prior_compiled", 90, "training steps of GPT-2 medium, compiled"),
    _speed("sample", "sample_compiled", 80, "drawing pictures with GPT-2 medium, compiled (CUDA graphs)"),
    _speed("prior", "train_transformers", 15, "the rival transformers, training", needs=("transformers",)),
    _speed("sample", "sample_transformers", 20, "the rival transformers, drawing", needs=("transformers",)),
    _speed(
        "prior", "train_prior_xformers", 10, "training steps of GPT-2 medium, by xformers",
        needs=("xformers",), gpu=True,
    ),
    _speed("vqgan", "encode_diffusers", 15, "the rival diffusers, encoding", needs=("diffusers",)),
    _speed("tokenize", "tokenize_compiled", 40, "JPEG files to shards, compiled", photos=True),
    _speed("tokenize", "tokenize_two", 20, "JPEG files to shards by two processes that share the GPU", photos=True),
    _speed("tokenize", "tokenize_ray", 40, "JPEG files to shards by the job on local Ray", needs=("ray",), photos=True),
    _speed("prior", "train_nanogpt", 60, "the rival nanoGPT, compiled, training"),
    _speed("vqgan", "train_vqgan_compiled", 90, "training steps of the VQGAN, compiled", needs=("lpips",)),
)  # fmt: skip
