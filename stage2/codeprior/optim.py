"""The optimizer, its parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from codeprior.config import TrainConfig
from codeprior.model import Prior
from runkit.devices import Autocast
from runkit.muon import Muon


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Return the learning rate of update `step`, counted from 0: a linear warmup, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def make_optimizer(prior: Prior, config: TrainConfig, precision: Autocast = "float32") -> torch.optim.AdamW:
    """Return the optimizer; it decays the weight matrices of linear layers only.

    Muon has the matrices of the blocks, with products in `precision`; the head is AdamW's, as the embeddings are.
    """
    beta1, beta2 = map(float, config.betas)  # torch refuses integers, which TOML may hold
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (beta1, beta2)}
    decayed = _linear_weights(prior)
    decayed_ids = {id(weight) for weight in decayed}
    others = {"params": [p for p in prior.parameters() if id(p) not in decayed_ids], "weight_decay": 0.0}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, others], **options, fused=True
        )
    matrices = _linear_weights(prior.blocks)
    block_ids = {id(weight) for weight in matrices}
    head = [weight for weight in decayed if id(weight) not in block_ids]
    groups = [
        {"params": head, "weight_decay": config.weight_decay},
        others,
        {"params": matrices, "weight_decay": config.weight_decay, "orthogonal": True},
    ]
    return Muon(groups, precision=precision, **options)


def _linear_weights(module: nn.Module) -> list[Tensor]:
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
