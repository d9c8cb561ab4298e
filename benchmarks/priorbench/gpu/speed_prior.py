"""Training steps of GPT-2 medium, with a batch that is copied from main memory, as in the trainer, and its rivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from codeprior.speed import peak_flops
from priorbench import harness
from priorbench import train_prior as steps
from priorbench.gpu.check import Figure, Setup
from priorbench.gpu.memory import require_compiler, start_afresh, waits
from priorbench.train_prior import Size, Step

_TOKENS = 2**16
"""Per batch: 24 layers of width 1024 keep about 0.9 MiB of activations per token, 57 GiB of the 139 of an H200."""
_PRECISION = "bfloat16"
_LEAST_MFU = 0.5
"""The target for GPT-2 medium."""


class Speed(NamedTuple):
    """What was measured of a step."""

    first_s: float
    """Time of the first step, which compiles."""
    s: float
    peak_gib: float


def train_prior(setup: Setup) -> Iterator[Figure]:
    """Measure steps without compilation, what the CPU takes to start a step, and whether a step waits for the GPU."""
    for codes in (256, 512):
        size = _size(setup, codes)
        speed = _measure(partial(steps.ours, size, _PRECISION, False))
        yield from _figures(_name(setup, codes), size, speed, setup)
        if codes == 256:
            yield from _host_figures(size, speed)


def train_prior_compiled(setup: Setup) -> Iterator[Figure]:
    """Measure the same steps, compiled as the trainer does, and by a candidate that compiles one block for all."""
    require_compiler(setup.device)
    variants = ((256, False), (512, False), (256, True))
    for codes, by_block in setup.pick(variants, variants[::2]):
        size = _size(setup, codes)
        speed = _measure(partial(steps.ours, size, _PRECISION, True, by_block=by_block))
        what = f"{_name(setup, codes)}, compiled{' by block' * by_block}"
        yield Figure(f"{what}: first step", speed.first_s, "s")
        yield from _figures(what, size, speed, setup, at_least=None if by_block else _LEAST_MFU)


def train_prior_xformers(setup: Setup) -> Iterator[Figure]:
    """Measure the steps with attention by xformers."""
    size = _size(setup, 256)
    speed = _measure(partial(steps.ours, size, _PRECISION, False, "xformers"))
    yield from _figures(f"{_name(setup, 256)}, xformers", size, speed, setup)


def train_transformers(setup: Setup) -> Iterator[Figure]:
    """Measure GPT2LMHeadModel of the same size, with SDPA and the same optimizer, against this project."""
    yield from _compared(setup, "transformers", steps.transformers, compiled=False)


def train_nanogpt(setup: Setup) -> Iterator[Figure]:
    """Measure the step of nanoGPT, compiled, against this project, compiled."""
    require_compiler(setup.device)
    yield from _compared(setup, "nanoGPT, compiled", steps.nanogpt, compiled=True)


def _compared(setup: Setup, rival: str, make: Callable[[Size, str, bool], Step], *, compiled: bool) -> Iterator[Figure]:
    """Yield the speed of a rival and of this project, measured one after the other, and their ratio."""
    size = _size(setup, 256)
    theirs = _measure(partial(make, size, _PRECISION, compiled))
    yield from _figures(f"{rival}: {_name(setup, 256)}", size, theirs, setup)
    own = _measure(partial(steps.ours, size, _PRECISION, compiled))
    yield Figure(f"imagepriors{', compiled' * compiled}", _tokens(size) / own.s, "tokens/s")
    yield Figure(f"imagepriors over {rival}", theirs.s / own.s, "×", at_least=1.0)


def _name(setup: Setup, codes: int) -> str:
    return setup.pick(f"GPT-2 medium, {codes} codes", f"a tiny prior, {codes // 16} codes")


def _size(setup: Setup, codes: int) -> Size:
    return setup.pick(Size(24, 16, 1024, codes, _TOKENS // codes), Size(1, 2, 32, codes // 16, 2))


def _tokens(size: Size) -> int:
    return size.batch * size.codes


def _measure(make: Callable[[], Step]) -> Speed:
    """Measure a step in memory that no other step uses; steps follow one another without waiting, as in training."""
    start_afresh()
    step = make()
    first_s = harness.seconds(step)
    step()  # it allocates for the last time
    s = harness.median_seconds(lambda: [step() for _ in range(3)], warm=0, repeats=3) / 3
    return Speed(first_s, s, harness.peak_gib())


def _figures(what: str, size: Size, speed: Speed, setup: Setup, *, at_least: float | None = None) -> Iterator[Figure]:
    what = f"{what}, batch {size.batch}"
    yield Figure(what, _tokens(size) / speed.s, "tokens/s")
    mfu = steps.step_flops(size) / speed.s / peak_flops(setup.device, _PRECISION)
    yield Figure(f"{what}: MFU", mfu, "%", at_least=at_least)
    yield Figure(f"{what}: peak memory", speed.peak_gib, "GiB")


def _host_figures(size: Size, speed: Speed) -> Iterator[Figure]:
    """Yield what a step of one sequence shows: it starts as many kernels as one of a batch, and they end sooner.

    A batch cannot show it, because starting a kernel waits while about a thousand others are queued.
    """
    start_afresh()
    step = steps.ours(size._replace(batch=1), _PRECISION, False)
    step()
    harness.synchronize()
    host_s = harness.median([_start_s(step) for _ in range(5)])
    yield Figure("time to start a step, over that of the step", host_s / speed.s, "%", at_most=1.0)
    step = steps.ours(
        size._replace(batch=min(16, size.batch)), _PRECISION, False
    )  # few codes have kernels of their own
    step()
    yield Figure("calls in a step that wait for the GPU", waits(step), at_most=0)


def _start_s(step: Step) -> float:
    """Seconds until a step returns, without its work on the GPU."""
    start = time.perf_counter()
    step()
    found = time.perf_counter() - start
    harness.synchronize()
    return found
