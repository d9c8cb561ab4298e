"""The report of the checks: a JSON file and a Markdown table, rewritten after every check. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from priorbench.gpu.check import Check, Figure
from runkit.files import write_file

Status = Literal["passed", "failed", "measured", "below target", "skipped", "left out"]
"""measured: a speed without a target; skipped: something is missing; left out: no time was left for it."""


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    name: str
    kind: str
    status: Status
    seconds: float
    reason: str = ""
    """Why it failed, was skipped or was left out."""
    figures: list[Figure] = field(default_factory=list)


def outcome(
    check: Check, seconds: float, figures: Sequence[Figure], *, targets: bool, failed: str = "", skipped: str = ""
) -> Outcome:
    """Return what a check found.

    Args:
        check: The check.
        seconds: Its time.
        figures: Its figures; those before an error, if it failed.
        targets: Whether the targets of speed hold here.
        failed: Why it failed, if it did.
        skipped: Why it was skipped, if it was.
    """
    bad = [figure.what for figure in figures if not figure.within]
    status: Status = "passed" if check.kind == "correct" else "measured"
    if check.kind == "speed" and targets and any(_limit(figure) for figure in figures):
        status = "below target" if bad else "passed"
    elif check.kind == "correct" and bad:
        status, failed = "failed", failed or f"outside its limit: {', '.join(bad)}"
    if failed:
        status = "failed"
    elif skipped or (check.kind == "correct" and not figures):
        status, skipped = "skipped", skipped or "it has no figures"
    return Outcome(check.name, check.kind, status, round(seconds, 1), failed or skipped, list(figures))


def table(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Columns, rows and headlines of the figures of a report."""
    rows = []
    for one in figures["checks"]:
        found = [Figure(*figure) for figure in one["figures"]]
        head = [one["name"], one["status"], f"{one['seconds']:.0f}"]
        rows += [
            [*(head if first else ["", "", ""]), figure.what, shown(figure), _limit(figure)]
            for first, figure in zip([True, *[False] * len(found)], found, strict=False)
        ]
        if one["reason"]:
            rows.append([*(["", "", ""] if found else head), one["reason"], "", ""])
    return {"columns": ["check", "result", "s", "figure", "value", "limit"], "rows": rows, "headlines": {}}


def shown(figure: Figure) -> str:
    """Return the value with its unit, in three digits."""
    return _number(figure.value, figure.unit)


def _limit(figure: Figure) -> str:
    found = [("≥", figure.at_least), ("≤", figure.at_most)]
    return " ".join(f"{sign} {_number(value, figure.unit)}" for sign, value in found if value is not None)


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.3%}" if value > 0.99 and value != 1 else f"{value:.1%}"
    text = f"{value:.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def save(path: Path, head: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write a report, whole or not at all, and return it.

    Args:
        path: The JSON file.
        head: `machine`, `command`, `versions` and `text`, as in the reports of the suites.
        outcomes: Those of all checks so far.
    """
    figures = {"checks": [asdict(one) for one in outcomes]}
    report = {**head, **table(figures), "figures": figures}
    write_file(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return report
