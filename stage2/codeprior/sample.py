"""Sampling of codes from a prior.

Axes: N samples, B samples drawn together, R rows that enter the model (B, or 2 · B under guidance), C condition
tokens, T image codes, P given image codes, V image codebook, K codes kept by top-k, H × W the code grid.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from codeprior.attention import KVCache
from codeprior.config import PriorError, SequenceSpec
from codeprior.guidance import Progress, guide, temperature_at, with_null
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig
from codeshards.format import defined_orders, order
from runkit.compiling import check_compiler
from runkit.progress import tqdm

Condition = Tensor | Mapping[str, Tensor]
"""Tokens [N], [N, C] or [N, h, w] of a single condition, or a mapping from name to such tokens."""
Watch = Callable[[int, int, Tensor], None]
"""Called after every code with the index of the batch's first sample, t, and the codes so far [B, t + 1]."""


def sample_codes(
    prior: Prior,
    n: int,
    *,
    condition: Condition | None = None,
    config: SampleConfig | None = None,
    prefix_NP: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draw n grids of image codes; arguments and errors as :func:`sample_sequences`.

    Returns:
        int64 [n, H, W] codes on the CPU, in raster order for any order of the prior.
    """
    codes_NT = sample_sequences(prior, n, condition=condition, config=config, prefix_NP=prefix_NP, watch=watch)
    return to_grids(prior.sequence, codes_NT)[-1]


def sample_sequences(
    prior: Prior,
    n: int,
    *,
    condition: Condition | None = None,
    config: SampleConfig | None = None,
    prefix_NP: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Draw n sequences of image codes.

    Sample i depends on (seed, i), its condition and its prefix only. Another batch size or more samples give the same
    codes, up to the rounding of matrix products of another shape.

    Args:
        prior: The model, on the device to use; it is set to eval mode.
        n: Number of samples.
        condition: Class ids [n], condition codes [n, C] or [n, h, w] in raster order, or a mapping from name to such
            tokens if there are several conditions; None for an unconditional prior.
        config: Temperature, top-k, guidance, seed, batch size …; by default those of the paper.
        prefix_NP: The first P codes of every sequence, to be completed; see :func:`prefix_of_region` and
            :func:`prefix_of_scales`.
        watch: Called after every code.

    Returns:
        int64 [n, T] codes on the CPU, in sequence order.

    Raises:
        PriorError: The condition, the prefix or the guidance does not fit the prior.
    """
    config = config or SampleConfig()
    condition_NC = condition_tokens(prior.sequence, n, condition)
    prefix_NP = _checked_prefix(prior.sequence, n, prefix_NP)
    prior = prepare(prior, config)
    sampled, T = [], prior.sequence.length
    batches = -(-n // config.batch_size)
    with tqdm(total=batches * (T - prefix_NP.shape[1]), desc="sample", unit="code", disable=None) as bar:
        for start in range(0, n, config.batch_size):
            rows = slice(start, start + config.batch_size)
            sampled.append(_sample_batch(prior, condition_NC[rows], prefix_NP[rows], start, config, bar, watch))
    return torch.cat(sampled) if sampled else torch.empty((0, T), dtype=torch.int64)


def to_grids(sequence: SequenceSpec, codes_NT: Tensor) -> list[Tensor]:
    """Return sequences as grids [N, h, w] in raster order, from the coarsest scale to the full grid."""
    grids, sizes = [], [height * width for height, width in sequence.grids]
    for (height, width), part_NT in zip(sequence.grids, torch.split(codes_NT, sizes, dim=1), strict=True):
        raster_NT = torch.empty_like(part_NT)
        raster_NT[:, torch.from_numpy(sequence.permutation(height, width).copy())] = part_NT
        grids.append(raster_NT.view(-1, height, width))
    return grids


def prefix_of_scales(sequence: SequenceSpec, grids: Sequence[Tensor]) -> Tensor:
    """Return given scales [N, s, s] of a multiscale prior, coarsest first, as a prefix [N, P] to be completed.

    Raises:
        PriorError: The prior has no such scales.
    """
    wanted = sequence.grids[: len(grids)]
    found = tuple(tuple(grid.shape[1:]) for grid in grids)
    if not grids or found != wanted or len(grids) > len(sequence.scales):
        raise PriorError(
            f"scales of {found} are given; this prior's are {sequence.grids[:-1] or 'none'}, coarsest first"
        )
    parts = [
        grid.flatten(1)[:, torch.from_numpy(sequence.permutation(*size).copy())]
        for grid, size in zip(grids, wanted, strict=True)
    ]
    return torch.cat(parts, dim=1)


def prefix_of_region(sequence: SequenceSpec, codes_NHW: Tensor, region_HW: Tensor) -> Tensor:
    """Return the codes in a region as a prefix [N, P] of the prior's order, to be completed to whole images.

    Args:
        sequence: That of the prior.
        codes_NHW: Grids of codes; codes outside the region are ignored.
        region_HW: Bool, the given cells.

    Raises:
        PriorError: The prior's order does not begin with the region; the message names the orders that do.
    """
    height, width = sequence.height, sequence.width
    if sequence.scales:
        raise PriorError("a multiscale prior draws the coarse scales first: give it scales, not a region")
    if region_HW.shape != (height, width) or codes_NHW.shape[1:] != (height, width):
        raise PriorError(
            f"region {list(region_HW.shape)} of codes {list(codes_NHW.shape)}: this prior's grid is {height}×{width}"
        )
    inside, count = region_HW.flatten().bool().numpy(), int(region_HW.sum())
    if not inside[sequence.permutation(height, width)[:count]].all():
        names = [name for name in defined_orders(height, width) if inside[order(name, height, width)[:count]].all()]
        raise PriorError(
            f"this region of {count} cells is not what order {sequence.order!r} begins with, so the prior cannot take "
            f"it as given; orders that begin with it: {', '.join(names) or 'none'}"
        )
    permutation = torch.from_numpy(sequence.permutation(height, width).copy())
    return codes_NHW.flatten(1)[:, permutation[:count]]


def conditions_by_name(sequence: SequenceSpec, condition: Condition | None) -> Mapping[str, Tensor]:
    """Return the tokens of each condition by name.

    Raises:
        PriorError: They are not the conditions that the prior was trained on.
    """
    if not sequence.conditions and condition is not None:
        raise PriorError("this prior was trained without a condition; pass condition=None")
    if condition is None and sequence.conditions:
        raise PriorError(f"this prior is conditioned on {sequence.condition!r}: pass condition")
    if isinstance(condition, Tensor):
        if len(sequence.conditions) > 1:
            raise PriorError(f"this prior is conditioned on {sequence.condition!r}: pass a mapping with each of them")
        condition = {sequence.conditions[0].name: condition}
    condition = condition or {}
    if set(condition) != {part.name for part in sequence.conditions}:
        raise PriorError(f"conditions {', '.join(condition)} are given; this prior requires {sequence.condition!r}")
    return condition


def condition_tokens(sequence: SequenceSpec, n: int, condition: Condition | None) -> Tensor:
    """Return the condition as int64 tokens [n, C] after checking that it is that of the prior."""
    if n < 0:
        raise PriorError(f"n = {n}: use 0 or more samples")
    by_name = conditions_by_name(sequence, condition)
    if not by_name:
        return torch.zeros((n, 1), dtype=torch.int64)
    tokens = []
    for part in sequence.conditions:
        given = by_name[part.name]
        if given.shape[:1] != (n,) or given.numel() != n * part.length or given.is_floating_point():
            raise PriorError(
                f"condition {part.name!r} is {given.dtype} {list(given.shape)}: expected integers [{n}, {part.length}]"
            )
        tokens.append(given.to("cpu", torch.int64).reshape(n, part.length))
        low, high = (int(tokens[-1].min()), int(tokens[-1].max())) if n else (0, 0)
        if not 0 <= low <= high < part.vocabulary:
            raise PriorError(
                f"condition holds values {low} … {high}: this prior's {part.name!r} knows 0 … {part.vocabulary - 1}"
            )
    return torch.cat(tokens, dim=1)


def prepare(prior: Prior, config: SampleConfig) -> Prior:
    """Return the prior in eval mode with weights of the config's precision; a copy only if the precision differs.

    Raises:
        PriorError: Guidance is requested for a prior without a condition.
    """
    if config.guidance != 1 and not prior.sequence.conditions:
        raise PriorError(f"guidance = {config.guidance}: this prior has no condition to guide by; use 1")
    if config.compile:
        check_compiler(prior.device.type, PriorError)
    dtype = getattr(torch, config.precision)
    prior.eval()
    return prior if prior.code_embedding.weight.dtype == dtype else copy.deepcopy(prior).to(dtype)


def _checked_prefix(sequence: SequenceSpec, n: int, prefix_NP: Tensor | None) -> Tensor:
    if prefix_NP is None:
        return torch.empty((n, 0), dtype=torch.int64)
    if prefix_NP.ndim != 2 or len(prefix_NP) != n or prefix_NP.shape[1] >= sequence.length:
        raise PriorError(f"prefix is {list(prefix_NP.shape)}: expected [{n}, fewer than {sequence.length}] codes")
    prefix_NP = prefix_NP.to("cpu", torch.int64)
    if prefix_NP.numel() and not 0 <= int(prefix_NP.min()) <= int(prefix_NP.max()) < sequence.codebook_size:
        raise PriorError(
            f"prefix holds codes {int(prefix_NP.min())} … {int(prefix_NP.max())}: "
            f"the codebook has 0 … {sequence.codebook_size - 1}"
        )
    return prefix_NP


@torch.inference_mode()
def _sample_batch(
    prior: Prior,
    condition_BC: Tensor,
    prefix_BP: Tensor,
    first: int,
    config: SampleConfig,
    bar: tqdm,
    watch: Watch | None,
) -> Tensor:
    """Return the codes [B, T] of samples first … first + B - 1, on the CPU, in sequence order."""
    (B, P), T = prefix_BP.shape, prior.sequence.length
    keys_B = sample_keys(config.seed, first, B).to(prior.device)
    codes_BT = torch.empty((B, T), dtype=torch.int64, device=prior.device)
    codes_BT[:, :P] = prefix_BP
    condition_RC = with_null(condition_BC, config).to(prior.device)
    cache = KVCache(prior, len(condition_RC), static=config.compile)
    prefix_RP = codes_BT[:, :P].repeat(len(condition_RC) // B, 1)
    logits_RV = prior.prefill(condition_RC, cache, prefix_RP)
    t_1 = torch.full((1,), P, device=prior.device)
    codes_BT[:, P] = draw(guide(logits_RV, config, t_1 / T), config, keys_B, t_1, t_1 / T)
    bar.update()
    for t in range(P, T):
        if t > P:
            codes_BT[:, t] = next_codes(prior, cache, codes_BT[:, t - 1], config, keys_B, t_1.fill_(t), t_1 / T)
            bar.update()
        if watch is not None:
            watch(first, t, codes_BT[:, : t + 1])
    return codes_BT.cpu()


def next_codes(
    prior: Prior, cache: KVCache, codes_B: Tensor, config: SampleConfig, keys_B: Tensor, t_1: Tensor, progress: Tensor
) -> Tensor:
    """Read codes t - 1 and return codes t, [B]."""
    if not cache.static:
        codes_R = codes_B.repeat(cache.batch // len(codes_B))
        return draw(guide(prior.decode(codes_R, cache), config, progress), config, keys_B, t_1, progress)
    cache.place_1.fill_(cache.length)
    cache.length += 1
    return _compiled(prior.device.type)(prior, cache, codes_B.clone(), config, keys_B, t_1, progress)


def _static_step(
    prior: Prior, cache: KVCache, codes_B: Tensor, config: SampleConfig, keys_B: Tensor, t_1: Tensor, progress: Tensor
) -> Tensor:
    codes_R = codes_B.repeat(cache.batch // len(codes_B))
    return draw(guide(prior.decode_static(codes_R, cache), config, progress), config, keys_B, t_1, progress)


@functools.cache
def _compiled(device: str) -> Callable[..., Tensor]:
    # CUDA graphs launch the hundreds of small kernels of a step at once.
    return torch.compile(_static_step, dynamic=False, mode="reduce-overhead" if device == "cuda" else "default")


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
