"""The optimizer: AdamW's parameter groups and the schedule of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from codeprior.config import TrainConfig
from codeprior.model import Prior


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Return the learning rate of update `step`, counted from 0: a linear warmup, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def make_optimizer(prior: Prior, config: TrainConfig) -> torch.optim.AdamW:
    """Return an AdamW that decays the weight matrices of linear layers only."""
    decayed = [module.weight for module in prior.modules() if isinstance(module, nn.Linear)]
    ids = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in prior.parameters() if id(parameter) not in ids]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    beta1, beta2 = map(float, config.betas)  # torch refuses integers, which TOML may hold
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True)
