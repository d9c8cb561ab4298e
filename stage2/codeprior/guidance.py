"""Schedules of classifier-free guidance and of the temperature over the codes.

Every schedule is a function of progress: the fraction of the codes of a sequence that are known when a code is drawn.
It is a number, or a tensor in compiled code, which would treat a number as a constant.

Axes: B samples drawn together, R rows that enter the model (B, or 2 · B under guidance), C condition tokens, V image
codebook.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codeprior.sample_config import SampleConfig

Progress = float | Tensor
"""Fraction of the codes that are known, from 0 to below 1."""


def guidance_at(config: SampleConfig, progress: Progress) -> Progress:
    """Return the factor of the difference that the condition makes to the logits.

    With w from 0 to 1 it is 1 + (guidance - 1) · w. Here w = 1 is constant guidance; w = progress is the linear
    schedule of Muse (Chang et al., arXiv 2301.00704), as RandAR and LPD use it; and w = (1 - cos(π · progress^power)) /
    2 is that of MDT (Gao et al., arXiv 2303.14389), as RAR uses it. Outside the interval (Kynkäänniemi et al., arXiv
    2404.07724) w = 0, which leaves the logits of the condition.
    """
    start, end = config.guidance_interval
    weight: Progress = 1.0
    if config.guidance_schedule == "linear":
        weight = progress
    elif config.guidance_schedule == "power_cosine":
        angle = math.pi * progress**config.guidance_power
        weight = (1 - (torch.cos(angle) if isinstance(angle, Tensor) else math.cos(angle))) / 2
    if (start, end) != (0, 1):
        weight = weight * ((progress >= start) & (progress < end))
    return 1 + (config.guidance - 1) * weight


def temperature_at(config: SampleConfig, progress: Progress) -> Progress:
    """Return the temperature, which may change linearly, as in MaskGIT of TiTok (Yu et al., arXiv 2406.07550)."""
    if config.temperature_end is None:
        return config.temperature
    return config.temperature + (config.temperature_end - config.temperature) * progress


def with_null(condition_BC: Tensor, config: SampleConfig) -> Tensor:
    """Return condition tokens [R, C]; under guidance, the samples are repeated with the null condition."""
    if config.guidance == 1:
        return condition_BC
    return torch.cat((condition_BC, torch.full_like(condition_BC, -1)))


def guide(logits_RV: Tensor, config: SampleConfig, progress: Progress) -> Tensor:
    """Return logits [B, V] after classifier-free guidance (Ho and Salimans, arXiv 2207.12598).

    Guidance 1 returns those with the condition exactly, and 0 those without it.
    """
    if config.guidance == 1:
        return logits_RV.float()
    with_BV, without_BV = logits_RV.float().chunk(2)
    return torch.lerp(without_BV, with_BV, guidance_at(config, progress))
