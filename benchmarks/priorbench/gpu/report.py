"""The report of the checks: a JSON file and a Markdown table, rewritten after every check. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from priorbench.gpu.check import Check, Figure
from priorbench.markdown import markdown
from runkit.files import write_file

Status = Literal["passed", "failed", "measured", "below target", "skipped", "left out"]
"""passed: within its limits; measured: a speed without a target; skipped: something is missing; left out: no time was
left for it, or for the rest of it."""


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
    check: Check, seconds: float, figures: Sequence[Figure], *, targets: bool, ended: tuple[Status, str] | None = None
) -> Outcome:
    """Judge what a check found.

    Args:
        check: The check.
        seconds: Its time.
        figures: Its figures, as far as it came.
        targets: Whether the targets of speed hold here.
        ended: How and why it ended before its last figure, if it did.
    """
    bad = [figure.what for figure in figures if not figure.within]
    status, reason = ended or ("passed" if check.kind == "correct" else "measured", "")
    if check.kind == "correct" and bad and status != "failed":
        status, reason = "failed", f"outside its limit: {', '.join(bad)}"
    elif not ended and not figures:
        status, reason = "failed", "it has no figures"
    elif not ended and check.kind == "speed" and targets and any(_limit(figure) for figure in figures):
        status = "below target" if bad else "passed"
    return Outcome(check.name, check.kind, status, round(seconds, 1), reason, list(figures))


def table(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Columns, rows and headlines of the figures of a report."""
    rows = []
    for one in figures["checks"]:
        found = [Figure(*figure) for figure in one["figures"]]
        head = [one["name"], one["status"], f"{one['seconds']:.0f}"]
        lines = [[figure.what, shown(figure), _limit(figure)] for figure in found]
        if one["reason"]:
            lines.append([one["reason"], "", ""])
        rows += [[*(["", "", ""] if number else head), *line] for number, line in enumerate(lines)]
    return {"columns": ["check", "result", "s", "figure", "value", "limit"], "rows": rows, "headlines": {}}


def shown(figure: Figure) -> str:
    """Return the value of a figure with its unit, in three digits."""
    return _number(figure.value, figure.unit)


def _limit(figure: Figure) -> str:
    found = [("≥", figure.at_least), ("≤", figure.at_most)]
    return " ".join(f"{sign} {_number(value, figure.unit)}" for sign, value in found if value is not None)


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.3%}" if value > 0.99 and value != 1 else f"{value:.1%}"
    text = f"{value:.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def save(path: Path, head: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write a report as a JSON file and as a Markdown table beside it, each whole or not at all.

    Args:
        path: The JSON file.
        head: `machine`, `command`, `versions` and `text`, as in the reports of the suites.
        outcomes: Those of all checks so far.
    """
    figures = {"checks": [asdict(one) for one in outcomes]}
    report = {**head, **table(figures), "figures": figures}
    write_file(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    write_file(path.with_suffix(".md"), markdown(report).encode())
