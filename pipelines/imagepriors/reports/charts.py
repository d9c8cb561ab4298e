"""Line charts as geometry, which the pages draw as SVG in the colours of their theme, and the curves of a run."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runkit.jsonfiles import parse_json

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""
_SIDE = 1000
"""Side of the square in which lines are drawn; the page stretches it."""
_MAX_POINTS = 300
_MARKED = 12
"""Curves with fewer points have a dot at each."""


@dataclass(frozen=True, slots=True)
class Line:
    """A named line of a chart."""

    name: str
    path: str
    """SVG path in a square of 1000 × 1000 units, y downwards."""
    dots: str
    """SVG path of a dot at each point; empty if there are many."""
    colour: int
    """Number of the colour in the page's palette."""
    style: str
    """One of "line", "dotted", "area" (filled down to the axis) and "mark" (a dashed reference)."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart; ticks are (place in per cent from the lower left, text)."""

    title: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]


def line_chart(
    title: str,
    curves: Mapping[str, Curve],
    *,
    x_label: str = "step",
    marks: Mapping[str, float] | None = None,
    colours: Mapping[str, int] | None = None,
    dotted: Collection[str] = (),
    from_zero: bool = False,
    area: bool = False,
) -> Chart | None:
    """Lay out named curves; None if they have no finite point.

    Args:
        title: What the vertical axis shows, with its unit.
        curves: Name → steps and values; points that are not finite are left out.
        x_label: What the horizontal axis shows.
        marks: Name → value of horizontal reference lines.
        colours: Name → number of a colour; default: one each.
        dotted: Names of the curves that are dotted.
        from_zero: Whether the vertical axis starts at 0.
        area: Whether to fill the area below the curves.
    """
    points = {name: pairs for name, curve in curves.items() if (pairs := _thinned(curve))}
    if not points:
        return None
    marks = marks or {}
    xs = [x for pairs in points.values() for x, _ in pairs]
    ys = [y for pairs in points.values() for _, y in pairs] + list(marks.values())
    x_axis, y_axis = _ticks(min(xs), max(xs)), _ticks(0.0 if from_zero else min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_axis[0], min(y_axis[-1], max(ys) + 0.05 * (max(ys) - y_axis[0]))
    y_axis = [y for y in y_axis if y <= y_high]

    def place(x: float, y: float) -> str:
        return f"{_SIDE * (x - x_low) / (x_high - x_low):.1f} {_SIDE * (1 - (y - y_low) / (y_high - y_low)):.1f}"

    lines = []
    for index, (name, pairs) in enumerate(points.items()):
        path = "M" + "L".join(place(*pair) for pair in pairs)
        dots = "".join(f"M{place(*pair)}h.01" for pair in pairs) if len(pairs) < _MARKED else ""
        style = "area" if area else "dotted" if name in dotted else "line"
        lines.append(Line(name, path, dots, (colours or {}).get(name, index), style))
    lines += [Line(name, f"M{place(x_low, y)}L{place(x_high, y)}", "", 0, "mark") for name, y in marks.items()]
    x_ticks = [(100 * (x - x_low) / (x_high - x_low), f"{x:,g}") for x in x_axis if x_low <= x <= x_high]
    y_ticks = [(100 * (y - y_low) / (y_high - y_low), f"{y:,g}") for y in y_axis]
    return Chart(title, x_label, x_ticks, y_ticks, lines)


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    pairs = [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(x) and math.isfinite(y)]
    every = -(-len(pairs) // _MAX_POINTS) or 1
    return [*pairs[:-1:every], *pairs[-1:]]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers about a quarter of the range apart, from one at or below `low` to one at or above `high`."""
    spread = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(spread / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= spread / 4.001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]


def curve(folder: Path, field: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric in a run's metrics.jsonl; empty without this file."""
    file = folder / "metrics.jsonl"  # missing for an imported network
    lines = [parse_json(line, file) for line in file.read_text().splitlines()] if file.is_file() else []
    points = [(line["step"], line[field]) for line in lines if field in line]
    return [step for step, _ in points], [value for _, value in points]
