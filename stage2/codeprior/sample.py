"""Drawing codes from a prior.

Axes: N samples, B samples drawn together, C condition tokens, T image codes, V image codebook,
K codes kept by top-k, H × W the code grid.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from codeprior.config import PriorError, SampleConfig
from codeprior.model import KVCache, Prior
from codeshards.format import inverse


def sample_codes(
    prior: Prior, n: int, *, condition: Tensor | None = None, config: SampleConfig | None = None
) -> Tensor:
    """Draw n grids of image codes.

    Sample i depends on (seed, i) and its own condition: drawing it in another batch, or among more
    samples, gives the same codes, up to the rounding of matrix products of another shape.

    Args:
        prior: the model, on the device that shall do the work; left in eval mode.
        n: how many samples.
        condition: class ids [n] for a class prior, condition codes [n, C] or [n, h, w] in raster order
            for a picture prior, None for an unconditional one.
        config: temperature, top-k, seed and batch size; the paper's by default.

    Returns:
        int64 [n, H, W] codes on the CPU, in raster order whatever the prior's own order.

    Raises:
        PriorError: the condition does not fit the prior.
    """
    config = config or SampleConfig()
    condition_NC = condition_tokens(prior, n, condition)
    sequence = prior.sequence
    prior.eval()
    sampled = []
    batches = -(-n // config.batch_size)
    with tqdm(total=batches * sequence.length, desc="sample", unit="code", disable=None) as bar:
        for start in range(0, n, config.batch_size):
            condition_BC = condition_NC[start : start + config.batch_size].to(prior.device)
            sampled.append(_sample_batch(prior, condition_BC, start, config, bar))
    codes_NT = torch.cat(sampled) if sampled else torch.empty((0, sequence.length), dtype=torch.int64)
    raster = torch.from_numpy(inverse(sequence.order, sequence.height, sequence.width).copy())
    return codes_NT[:, raster].view(n, sequence.height, sequence.width)


def condition_tokens(prior: Prior, n: int, condition: Tensor | None) -> Tensor:
    """The condition as int64 tokens [n, C], checked against what the prior was trained on."""
    sequence = prior.sequence
    if n < 0:
        raise PriorError(f"n = {n}: use 0 or more samples")
    if sequence.condition == "none":
        if condition is not None:
            raise PriorError("this prior was trained without a condition; pass condition=None")
        return torch.zeros((n, 1), dtype=torch.int64)
    if condition is None:
        raise PriorError(f"this prior is conditioned on {sequence.condition!r}: pass condition")
    tokens, expected = condition.numel(), n * sequence.condition_length
    if condition.shape[:1] != (n,) or tokens != expected or condition.is_floating_point():
        raise PriorError(
            f"condition is {condition.dtype} {list(condition.shape)}: "
            f"expected integers [{n}, {sequence.condition_length}]"
        )
    condition_NC = condition.to("cpu", torch.int64).reshape(n, sequence.condition_length)
    if n and not 0 <= int(condition_NC.min()) <= int(condition_NC.max()) < sequence.condition_vocabulary:
        raise PriorError(
            f"condition holds values {int(condition_NC.min())} … {int(condition_NC.max())}: "
            f"this prior's {sequence.condition!r} knows 0 … {sequence.condition_vocabulary - 1}"
        )
    return condition_NC


@torch.inference_mode()
def _sample_batch(prior: Prior, condition_BC: Tensor, first: int, config: SampleConfig, bar: tqdm[NoReturn]) -> Tensor:
    """Codes [B, T] on the CPU, in sequence order, of samples first … first + B - 1."""
    B, T = len(condition_BC), prior.sequence.length
    generators = [sample_generator(config.seed, first + i) for i in range(B)]
    codes_BT = torch.empty((B, T), dtype=torch.int64, device=prior.device)
    cache = KVCache(prior, B)
    logits_BV = prior.prefill(condition_BC, cache)
    for t in range(T):
        if t > 0:
            logits_BV = prior.decode(codes_BT[:, t - 1], cache)
        codes_BT[:, t] = draw(logits_BV, config, generators)
        bar.update()
    return codes_BT.cpu()


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of one sample: always the CPU's, so that every device draws alike."""
    words = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def draw(logits_BV: Tensor, config: SampleConfig, generators: list[torch.Generator]) -> Tensor:
    """One code [B] for each row of logits, by an exponential race: argmax p / Exp(1) is a draw from p.

    The race needs one number per code from the row's own generator and nothing from the other rows,
    which is what frees a sample from its batch.
    """
    V = logits_BV.shape[1]
    noise_BV = torch.stack([torch.empty(V).exponential_(generator=generator) for generator in generators])
    kept_BK, codes_BK = logits_BV.float().topk(min(config.top_k or V, V))
    race_BK = kept_BK / config.temperature - noise_BV.to(logits_BV.device).gather(1, codes_BK).log()
    return codes_BK.gather(1, race_BK.argmax(dim=1, keepdim=True))[:, 0]
