"""Classifier-free guidance.

Axes: B samples drawn together, R rows that enter the model (B, or 2 · B under guidance), C condition tokens, V image
codebook.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeprior.sample_config import SampleConfig


def with_null(condition_BC: Tensor, config: SampleConfig) -> Tensor:
    """Return condition tokens [R, C]; under guidance, the samples are repeated with the null condition."""
    if config.guidance == 1:
        return condition_BC
    return torch.cat((condition_BC, torch.full_like(condition_BC, -1)))


def guide(logits_RV: Tensor, config: SampleConfig, progress: float | Tensor = 0.0) -> Tensor:
    """Return logits [B, …, V] after classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""
    if config.guidance == 1:
        return logits_RV.float()
    with_BV, without_BV = logits_RV.float().chunk(2)
    return without_BV + config.guidance * (with_BV - without_BV)
