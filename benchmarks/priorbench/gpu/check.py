"""What a check gets and what it returns. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
FIGURES, PHOTOS = "figures.jsonl", "photos"
"""In the work folder: a file with the figures of the current check, one per line; the folder of JPEG files."""
Size = Literal["full", "tiny"]
"""tiny is for rehearsals on a CPU: every check runs, and its figures mean nothing."""


class Figure(NamedTuple):
    """One result of a check."""

    what: str
    """What was measured."""
    value: float
    unit: str = ""
    """Such as `images/s`, or `%` of a value that is a fraction."""
    at_least: float | None = None
    """Lower limit of the value."""
    at_most: float | None = None
    """Upper limit of the value."""

    @property
    def within(self) -> bool:
        """Whether the value is within its limits; a NaN is not."""
        low = self.at_least is None or self.value >= self.at_least
        high = self.at_most is None or self.value <= self.at_most
        return low and high and self.value == self.value


class Check(NamedTuple):
    """One check: a function of a module of this package."""

    name: str
    """Name of the function."""
    module: str
    """Its module; one that begins with a dot is in this package."""
    kind: Literal["correct", "speed"]
    """Limits of speed are targets, and hold for full sizes on a GPU only."""
    seconds: float
    """Expected time on an H100 or H200, including compilation."""
    what: str
    """What it checks or measures."""
    needs: tuple[str, ...] = ()
    """Modules besides those that every check requires."""
    gpu: bool = False
    """Whether it cannot be rehearsed on a CPU."""
    photos: bool = False
    """Whether it reads the photos."""


@dataclass(frozen=True)
class Setup:
    """Where and how a check runs."""

    device: torch.device
    size: Size
    work: Path
    """Folder for files, shared by all checks of a run; `PHOTOS` in it is complete when a check of speed runs."""

    def pick(self, full: T, tiny: T) -> T:
        """Return the value for this size."""
        return full if self.size == "full" else tiny


class SkipCheckError(Exception):
    """A check cannot run here; the message says why."""


Run = Callable[[Setup], Iterator[Figure]]
"""A check yields its figures, so that those before an error are kept."""
