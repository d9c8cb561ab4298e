"""Plans of jobs: what one would do, how large and how long it is. Making a plan writes nothing.

This module imports torch where a trial runs.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

TRIAL_S = 4.0
"""Seconds that one trial step may take; larger steps are tried with a part of the batch."""
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkPlan:
    """What a job would do. `str(plan)` is the text that a person reads."""

    work: str
    """What would be done, in one line."""
    figures: dict[str, Any]
    """Counts and sizes by name; names that end in _bytes and _s have these units."""
    notes: tuple[str, ...] = ()
    """How figures were estimated, and what they leave out."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The settings that are not the defaults, with dotted names."""

    def __str__(self) -> str:
        lines = [self.work]
        lines += [f"  {_title(name):30} {_shown(name, value)}" for name, value in self.figures.items()]
        lines += ["  settings that are not the default:"] if self.settings else []
        lines += [f"    {name:28} {value}" for name, value in self.settings.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes), "nothing was written"])


def changed_settings(config: Any, default: Any = None, prefix: str = "") -> dict[str, Any]:
    """Return the fields of a config dataclass that differ from its defaults, nested ones with dotted names."""
    default = type(config)() if default is None else default
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            found |= changed_settings(value, usual, f"{prefix}{field.name}.")
        elif value != usual:
            found[prefix + field.name] = value
    return found


class Trial(NamedTuple):
    """What a trial of a step measured."""

    seconds: float
    """Seconds per step, scaled to the whole batch."""
    memory_bytes: int
    """Peak memory of the process, or of the GPU, with the whole batch."""


def try_step(step: Callable[[int], object], rows: int, part: int, device: Any, *, sample_s: float = 0.0) -> Trial:
    """Run a step several times, with as many rows as take a few seconds, and scale the result.

    Args:
        step: Does a step with a number of rows; the first calls also allocate what later ones reuse.
        rows: Rows of a whole batch.
        part: Rows that are in memory at once.
        device: Where it computes, a torch.device.
        sample_s: Expected seconds per row; 0: measured with one row.
    """
    base = _memory(device)
    if not sample_s:
        _timed(step, 1, device)
        sample_s = _timed(step, 1, device)
    tried = max(1, min(part, int(TRIAL_S / max(sample_s, 1e-9))))
    times: list[float] = []
    while len(times) < 3 and sum(times) < TRIAL_S:  # on a busy machine one step may take long
        times.append(_timed(step, tried, device))
    peak = _memory(device)
    return Trial(min(times) / tried * rows, int(base + max(0, peak - base) * part / tried))


def _timed(step: Callable[[int], object], rows: int, device: Any) -> float:
    start = time.perf_counter()
    step(rows)
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - start


def _memory(device: Any) -> int:
    """Peak memory until now, in bytes."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux


def evaluations(steps: int, every: int) -> int:
    """Return the number of evaluations in so many further steps; there is one at the end."""
    return -(-steps // every)


def _title(name: str) -> str:
    return name.replace("_per_s", "/s").removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown('', part)}" for key, part in value.items())
    if value is None:
        return "unknown"
    if name.endswith("_bytes"):
        size, unit = next((size, unit) for size, unit in _UNITS if value >= size or size == 1)
        return f"{value / size:.3g} {unit}"
    if name.endswith("_s") and not name.endswith("_per_s"):
        if value < 60:
            return f"{value:.3g} s"
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    return f"{value:,}" if isinstance(value, int) else str(value)
