"""Differences between runs that share a seed, with simultaneous confidence intervals.

Runs of one seed have the same initial weights and batches, so their difference varies less than either of them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy import stats

Values = npt.NDArray[np.float64]
"""One value per seed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a difference over seeds, with its 95% interval: mean ± half."""

    mean: float
    half: float
    """Half the width of the interval; NaN for one seed."""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        if not self.half > 0:
            return f"{self.mean:+.3f}"
        digits = max(0, 1 - math.floor(math.log10(self.half)))  # two of the interval's are significant
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}"


def difference(values: Values, baseline: Values, comparisons: int = 1) -> Difference:
    """Return the mean of values - baseline with its 95% interval, Student's t of the differences.

    Args:
        values: One value per seed.
        baseline: Those of the same seeds that they are compared with.
        comparisons: Number of intervals that hold at once with 95% (Bonferroni's correction).
    """
    found = np.asarray(values) - np.asarray(baseline)
    if len(found) < 2:
        return Difference(float(found.mean()), math.nan)
    limit = stats.t.ppf(1 - 0.05 / (2 * comparisons), len(found) - 1)
    return Difference(float(found.mean()), float(limit * stats.sem(found)))


def listed(names: Iterable[str]) -> str:
    """Join names for a sentence."""
    return ", ".join(names) or "none"


def intervals_figure(differences: Mapping[str, Difference], xlabel: str) -> Figure:
    """Plot one interval per row; those that exclude zero are filled."""
    figure = Figure(figsize=(7, 0.8 + 0.32 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(differences.values()):
        fill = "tab:blue" if found.shown else "white"
        axes.errorbar(found.mean, row, xerr=found.half, fmt="o", color="tab:blue", markerfacecolor=fill, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.margins(y=0.1)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel)
    axes.grid(alpha=0.3)
    return figure
