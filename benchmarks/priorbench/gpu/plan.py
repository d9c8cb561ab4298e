"""The checks in the order in which they run: what is right first, then what is fast, what compiles last.

It imports no torch.
"""

from __future__ import annotations

from functools import partial

from priorbench.gpu.check import Check

_prior = partial(Check, module=".correct_prior", kind="correct")
_sample = partial(Check, module=".correct_sample", kind="correct")
_training = partial(Check, module=".correct_training", kind="correct")
_vqgan = partial(Check, module=".correct_vqgan", kind="correct")
_CORRECT = (
    _prior("attention", seconds=5, what="sdpa gives the outputs and gradients of plain products"),
    _prior("attention_xformers", seconds=6, what="xformers gives them, too", needs=("xformers",), gpu=True),
    _prior("prior_losses", seconds=8, what="losses, gradients and updates of the prior, as on the CPU"),
    _sample("prior_samples", seconds=6, what="codes drawn in float32, as on the CPU"),
    _sample("prior_samples_compiled", seconds=25, what="compiled steps (CUDA graphs) draw the same codes"),
    _training("prior_parallel", seconds=8, what="DDP and FSDP2 on one device train as one process does"),
    _training("prior_resume", seconds=8, what="a prior's run that is resumed equals one that is not"),
    _training("memory_message", seconds=5, what="too large a batch ends with one message"),
    _vqgan("tokenizer_codes", seconds=10, what="codes and pictures of the tokenizer, as on the CPU"),
    _vqgan("vqgan_losses", seconds=14, what="losses and gradients of the VQGAN, as on the CPU", needs=("lpips",)),
    _vqgan("vqgan_resume", seconds=12, what="a tokenizer's run that is resumed continues with its losses"),
    _vqgan("shards_again", seconds=10, what="a shard that is encoded again has the same bytes"),
)
_limits = partial(Check, module=".speed_limits", kind="speed")
_encode = partial(Check, module=".speed_vqgan", kind="speed")
_tokenize = partial(Check, module=".speed_tokenize", kind="speed")
_train = partial(Check, module=".speed_prior", kind="speed")
_draw = partial(Check, module=".speed_sample", kind="speed")
_SPEED = (
    _limits("peaks", seconds=8, what="limits of the card: matrix products, memory, copies"),
    _encode("encode", seconds=22, what="encoding from memory, and other ways to compute it"),
    _tokenize("tokenize", seconds=28, what="JPEG files to shards by the job's worker, without Ray", photos=True),
    _train("train_prior", seconds=15, what="training steps of GPT-2 medium"),
    _draw("sample", seconds=30, what="drawing pictures with GPT-2 medium, also with plain CUDA graphs"),
    _tokenize("load", seconds=6, what="reading shuffled codes to the device"),
    _encode("train_vqgan", seconds=18, what="training steps of the VQGAN", needs=("lpips",)),
    _train("train_transformers", seconds=15, what="the rival transformers, training", needs=("transformers",)),
    _draw("sample_transformers", seconds=20, what="the rival transformers, drawing", needs=("transformers",)),
    _train("train_prior_xformers", seconds=10, what="those of the prior by xformers", needs=("xformers",), gpu=True),
    _encode("encode_diffusers", seconds=15, what="the rival diffusers, encoding", needs=("diffusers",)),
    _train("train_prior_compiled", seconds=90, what="the same training steps, compiled"),
    _draw("sample_compiled", seconds=70, what="the same drawing, compiled (CUDA graphs)"),
    _encode("encode_compiled", seconds=50, what="encoding from memory, compiled"),
    _tokenize("tokenize_compiled", seconds=40, what="the same by the job's worker, compiled", photos=True),
    _tokenize("tokenize_two", seconds=20, what="the same by two processes that share the GPU", photos=True),
    _tokenize("tokenize_ray", seconds=40, what="the tokenize job on a local Ray", needs=("ray",), photos=True),
    _train("train_nanogpt", seconds=60, what="the rival nanoGPT, compiled, training"),
    _encode("train_vqgan_compiled", seconds=90, what="training steps of the VQGAN, compiled", needs=("lpips",)),
)
CHECKS = (*_CORRECT, *_SPEED)
