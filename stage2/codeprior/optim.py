"""The optimizer, its parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

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
    in_blocks = [module.weight for module in prior.blocks.modules() if isinstance(module, nn.Linear)]
    decayed = [module.weight for module in prior.modules() if isinstance(module, nn.Linear)]
    muon = config.optimizer == "muon"
    ids = {id(parameter) for parameter in decayed}
    blocks = {id(parameter) for parameter in in_blocks} if muon else set()
    groups = [
        {"params": [p for p in decayed if id(p) not in blocks], "weight_decay": config.weight_decay},
        {"params": [p for p in prior.parameters() if id(p) not in ids], "weight_decay": 0.0},
    ]
    beta1, beta2 = map(float, config.betas)  # torch refuses integers, which TOML may hold
    if not muon:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True)
    matrices = {"params": in_blocks, "weight_decay": config.weight_decay, "orthogonal": True}
    return Muon([*groups, matrices], precision=precision, lr=config.learning_rate, betas=(beta1, beta2))
