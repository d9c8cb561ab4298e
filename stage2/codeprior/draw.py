"""Drawing of codes from logits, with random numbers that are functions of (seed, sample, code).

Axes: B samples drawn together, V image codebook, K codes kept by top-k.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from codeprior.guidance import Progress, temperature_at
from codeprior.sample_config import SampleConfig


def draw(logits_BV: Tensor, config: SampleConfig, keys_B: Tensor, t_1: Tensor, progress: Progress) -> Tensor:
    """Return code t for each row of logits, [B], by an exponential race: argmax p / Exp(1) is distributed as p.

    The race requires one random number per remaining code and no other rows, so a sample does not depend on its batch.
    """
    V = logits_BV.shape[1]
    kept_BK, codes_BK = logits_BV.topk(min(config.top_k or V, V))
    kept_BK = kept_BK / temperature_at(config, progress)
    if config.top_p < 1 or config.min_p > 0:
        p_BK = kept_BK.softmax(dim=1)  # descending
        # A code is kept if those before it sum to less than top_p; the first one always is.
        out_BK = p_BK.cumsum(dim=1) - p_BK >= config.top_p
        p_BK = p_BK.masked_fill(out_BK, 0.0)
        out_BK = out_BK | (p_BK < config.min_p * p_BK[:, :1])
        kept_BK = kept_BK.masked_fill(out_BK, -torch.inf)
    race_BK = kept_BK - race_noise(keys_B, t_1, codes_BK).log()
    return codes_BK.gather(1, race_BK.argmax(dim=1, keepdim=True))[:, 0]


def sample_keys(seed: int, first: int, count: int) -> Tensor:
    """Return int64 [count], the keys of the random numbers of samples first … first + count - 1."""
    words = [np.random.SeedSequence((seed, first + i)).generate_state(1, np.uint64)[0] for i in range(count)]
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))


def race_noise(keys_B: Tensor, t_1: Tensor, codes_BK: Tensor) -> Tensor:
    """Return exponentially distributed numbers [B, K], each a function of (key, t, code), the same on every device.

    SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators") has no state to keep and computes no
    numbers for codes that top-k has dropped. Its start is itself such a number.
    """
    start_B1 = _mix(keys_B + t_1 * _GOLDEN)[:, None]
    bits_BK = _mix(start_B1 + codes_BK * _GOLDEN)
    # 53 bits at the middle of their interval are never 0. Rounding gives 1 once in 2**53 numbers; that code then wins.
    uniform_BK = (_shift(bits_BK, 11).double() + 0.5) * 2.0**-53
    return -uniform_BK.log().float()


_GOLDEN, _FACTOR_1, _FACTOR_2 = (
    value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # as signed integers, because torch does not multiply unsigned ones on every device


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FACTOR_1
    x = (x ^ _shift(x, 27)) * _FACTOR_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift
