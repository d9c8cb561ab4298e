"""Sampling of codes from a prior.

Axes: N samples, B samples drawn together, R rows that enter the model (B, or 2 · B under guidance), C condition
tokens, T image codes, P given image codes, V image codebook, K codes kept by top-k, H × W the code grid.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from codeprior.any_order import Report, draw_in_any_order, drawn_in_own_order
from codeprior.attention import KVCache, check_attention
from codeprior.config import PriorError, SequenceSpec
from codeprior.cpu_kernels import with_packed_weights
from codeprior.drafts import drafted_codes, drafts_per_check, with_eight_bits
from codeprior.draw import draw, sample_keys
from codeprior.given import UNKNOWN, checked_given
from codeprior.guidance import guide, with_null
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig
from runkit.compiling import allow_cuda_graphs, allow_programs, check_compiler
from runkit.progress import tqdm

_PROGRAMS = 64
"""Compiled programs of the step of one code: one for each setting, number of rows and network that a process uses."""
Condition = Tensor | Mapping[str, Tensor]
"""Tokens [N], [N, C] or [N, h, w] of a single condition, or a mapping from name to such tokens."""
Watch = Callable[[int, Tensor], None]
"""Called after every step with the index of the batch's first sample and the codes [B, T], -1 where none is known."""


def sample_codes(
    prior: Prior,
    n: int,
    *,
    condition: Condition | None = None,
    config: SampleConfig | None = None,
    given_NT: Tensor | None = None,
    first: int = 0,
    watch: Watch | None = None,
) -> Tensor:
    """Draw n grids of image codes; arguments and errors as :func:`sample_sequences`.

    Returns:
        int64 [n, H, W] codes on the CPU, in raster order for any order of the prior.
    """
    codes_NT = sample_sequences(
        prior, n, condition=condition, config=config, given_NT=given_NT, first=first, watch=watch
    )
    return to_grids(prior.sequence, codes_NT)[-1]


def sample_sequences(
    prior: Prior,
    n: int,
    *,
    condition: Condition | None = None,
    config: SampleConfig | None = None,
    given_NT: Tensor | None = None,
    first: int = 0,
    watch: Watch | None = None,
) -> Tensor:
    """Draw n sequences of image codes.

    Sample i depends on (seed, i), its condition and its known codes only. Another batch size or more samples give the
    same codes, up to the rounding of matrix products of another shape.

    Args:
        prior: The model, on the device to use; it is set to eval mode.
        n: Number of samples.
        condition: Class ids [n], condition codes [n, C] or [n, h, w] in raster order, or a mapping from name to such
            tokens if there are several conditions; None for an unconditional prior.
        config: Temperature, top-k, guidance, seed, batch size …; by default those of the paper.
        given_NT: Known codes, which are kept, and -1 for those to draw; see :mod:`codeprior.given`. A prior of one
            order completes a beginning of the sequence, a prior of any order every set of codes.
        first: Index i of the first sample, so that parts of a large set of samples can be drawn separately.
        watch: Called after every step.

    Returns:
        int64 [n, T] codes on the CPU, in sequence order.

    Raises:
        PriorError: The condition, the known codes, the order or the guidance does not fit the prior.
    """
    config = config or SampleConfig()
    sequence = prior.sequence
    condition_NC = condition_tokens(sequence, n, condition)
    given_NT = checked_given(sequence, n, given_NT)
    in_own_order = drawn_in_own_order(sequence, config, given_NT)
    prior = prepare(prior, config)
    drafter = functools.cache(lambda: with_eight_bits(prior))
    caches = _Caches(prior, config)
    own = functools.partial(_draw_in_own_order, drafter=drafter, cache_of=caches)
    draw_batch = own if in_own_order else draw_in_any_order
    sampled, batches = [], range(0, n, config.batch_size)
    left = int((given_NT[:1] == UNKNOWN).sum())
    with tqdm(total=len(batches) * left, desc="sample", unit="code", disable=None) as bar:
        for start in batches:
            count = min(config.batch_size, n - start)

            def report(codes_BT: Tensor, drawn: int, start: int = start, count: int = count) -> None:
                bar.update(drawn)
                if watch is not None:
                    watch(start, codes_BT[:count])

            rows = torch.arange(start, start + count)
            if caches.is_compiled_for(config.batch_size):
                # Steps are compiled for one size, which takes longer than to draw the last sample several times.
                rows = torch.arange(start, start + config.batch_size).clamp(max=n - 1)
            codes_BT = draw_batch(prior, condition_NC[rows], given_NT[rows], config, first + start, report)
            sampled.append(codes_BT[:count].cpu())
    caches.keep()
    return torch.cat(sampled) if sampled else torch.empty((0, sequence.length), dtype=torch.int64)


def to_grids(sequence: SequenceSpec, codes_NT: Tensor) -> list[Tensor]:
    """Return sequences as grids [N, h, w] in raster order, from the coarsest scale to the full grid."""
    grids, sizes = [], [height * width for height, width in sequence.grids]
    for (height, width), part_NT in zip(sequence.grids, torch.split(codes_NT, sizes, dim=1), strict=True):
        raster_NT = torch.empty_like(part_NT)
        raster_NT[:, torch.from_numpy(sequence.permutation(height, width).copy())] = part_NT
        grids.append(raster_NT.view(-1, height, width))
    return grids


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
    """Return the prior in eval mode with weights of the config's precision, in the layout that the CPU multiplies by.

    Call it in the thread that draws. It is a copy where weights are converted; on a CPU it is for sampling only.

    Raises:
        PriorError: Guidance is requested for a prior without a condition, or this machine lacks what the prior or the
            config requires.
    """
    if config.guidance != 1 and not prior.sequence.conditions:
        raise PriorError(f"guidance = {config.guidance}: this prior has no condition to guide by; use 1")
    if config.compile:
        check_compiler(prior.device.type, PriorError)
        allow_programs(_PROGRAMS)
    if _has_static_cache(prior, config):
        allow_cuda_graphs()
    check_attention(prior.config, prior.device, config.precision)
    dtype = getattr(torch, config.precision)
    prior.eval()
    if prior.code_embedding.weight.dtype != dtype:
        prior = copy.deepcopy(prior).to(dtype)
    return prior if config.compile else with_packed_weights(prior)


@torch.inference_mode()
def _draw_in_own_order(
    prior: Prior,
    condition_BC: Tensor,
    given_BT: Tensor,
    config: SampleConfig,
    first: int,
    report: Report,
    *,
    drafter: Callable[[], Prior],
    cache_of: Callable[[int], KVCache],
) -> Tensor:
    """Return the codes [B, T] of samples first … first + B - 1, drawn one after the other in the prior's order."""
    B, T = given_BT.shape
    known = int((given_BT[0] != UNKNOWN).sum())
    keys_B = sample_keys(config.seed, first, B).to(prior.device)
    codes_BT = given_BT.to(prior.device, copy=True)
    condition_RC = with_null(condition_BC, config).to(prior.device)
    cache, drafts = cache_of(len(condition_RC)), drafts_per_check(prior, len(condition_RC), config)

    def draw_one(logits_RV: Tensor, t: int) -> Tensor:
        t_1 = torch.full((1,), t, device=prior.device)
        return draw(guide(logits_RV, config, t_1 / T), config, keys_B, t_1, t_1 / T)

    logits_RV = prior.prefill(condition_RC, cache, codes_BT[:, :known].repeat(len(condition_RC) // B, 1))
    codes_BK, t = draw_one(logits_RV, known)[:, None], known
    while True:
        K = codes_BK.shape[1]
        codes_BT[:, t : t + K] = codes_BK
        report(codes_BT, K)
        t += K
        count = min(drafts, T - 1 - t)
        if t == T:
            return codes_BT
        if count > 0:
            codes_BK = drafted_codes(prior, drafter(), cache, codes_BT, t, count, draw_one)
        else:
            t_1 = torch.full((1,), t, device=prior.device)
            codes_BK = next_codes(prior, cache, codes_BT[:, t - 1], config, keys_B, t_1, t_1 / T)[:, None]


def new_cache(prior: Prior, rows: int, config: SampleConfig) -> KVCache:
    """Return an empty cache, static for CUDA graphs; a static one is read to its end for each code."""
    return KVCache(prior, rows, static=_has_static_cache(prior, config))


def _has_static_cache(prior: Prior, config: SampleConfig) -> bool:
    return config.compile and prior.device.type == "cuda"


class _Caches:
    """The cache of the last batch, for the next one of as many rows: CUDA graphs are recorded for its addresses."""

    def __init__(self, prior: Prior, config: SampleConfig) -> None:
        self._prior, self._config = prior, config
        # It is removed, because another thread may draw from this prior meanwhile.
        self._last = _kept.pop(prior, None) if _has_static_cache(prior, config) else None
        weight = prior.code_embedding.weight
        if self._last and (self._last.place_1.device, self._last.keys[0].dtype) != (weight.device, weight.dtype):
            self._last = None  # the prior was moved

    def __call__(self, rows: int) -> KVCache:
        """Return an empty cache."""
        if self._last is None or self._last.batch != rows:
            self._last = None  # its memory is free before the next one is made
            self._last = new_cache(self._prior, rows, self._config)
        self._last.length = 0
        return self._last

    def is_compiled_for(self, batch: int) -> bool:
        """Return whether the last cache is static and has the rows of so many samples."""
        rows = batch if self._config.guidance == 1 else 2 * batch
        return self._last is not None and self._last.static and self._last.batch == rows

    def keep(self) -> None:
        """Keep a static cache for the next call with this prior."""
        if self._last is not None and self._last.static:
            _kept[self._prior] = self._last


_kept: WeakKeyDictionary[Prior, KVCache] = WeakKeyDictionary()


def next_codes(
    prior: Prior, cache: KVCache, codes_B: Tensor, config: SampleConfig, keys_B: Tensor, t_1: Tensor, progress: Tensor
) -> Tensor:
    """Read codes t - 1 and return codes t, [B]."""
    if cache.static:
        cache.place_1.fill_(cache.length)
        cache.length += 1
    # A length of one would be a constant of compiled code.
    step = _compiled(prior.device.type) if config.compile and cache.length > 1 else _step
    return step(prior, cache, codes_B.clone(), config, keys_B, t_1, progress)


def _step(
    prior: Prior, cache: KVCache, codes_B: Tensor, config: SampleConfig, keys_B: Tensor, t_1: Tensor, progress: Tensor
) -> Tensor:
    codes_R = codes_B.repeat(cache.batch // len(codes_B))
    logits_RV = prior.decode_static(codes_R, cache) if cache.static else prior.decode(codes_R, cache)
    return draw(guide(logits_RV, config, progress), config, keys_B, t_1, progress)


@functools.cache
def _compiled(device: str) -> Callable[..., Tensor]:
    if device == "cuda":  # CUDA graphs launch the hundreds of small kernels of a step at once
        return torch.compile(_step, dynamic=False, mode="reduce-overhead")
    return torch.compile(_step, dynamic=True)  # the length of the cache is a variable
