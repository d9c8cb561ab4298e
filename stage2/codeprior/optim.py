"""What turns gradients into updates: AdamW's groups, the learning rate's schedule, precision, device."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from codeprior.config import PriorError, TrainConfig
from codeprior.model import Prior
from codeprior.speed import measured_flops

Precision = Literal["float32", "bfloat16"]
"""Of the matrix products of a forward pass."""


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of update `step`, counted from 0: linear warmup, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def make_optimizer(prior: Prior, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays the matrices of linear layers only."""
    decayed = [module.weight for module in prior.modules() if isinstance(module, nn.Linear)]
    ids = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in prior.parameters() if id(parameter) not in ids]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    beta1, beta2 = map(float, config.betas)  # torch refuses whole numbers, which TOML may give
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True)


def make_autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context that gives the forward pass its precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def resolve_precision(config: TrainConfig, device: torch.device) -> Precision:
    """The precision that a config's `precision` means on this device."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # No flag of the CPU tells: with AVX512-BF16 alone some are twice as fast in bfloat16 and some half.
    return "bfloat16" if measured_flops("cpu", "bfloat16") > 1.2 * measured_flops("cpu", "float32") else "float32"


def resolve_device(name: str) -> torch.device:
    """The device that a config's `device` means on this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PriorError("device = 'cuda': torch sees no GPU here; use 'auto' or 'cpu'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
