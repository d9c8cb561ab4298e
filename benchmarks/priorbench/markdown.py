"""Reports as Markdown. Imports no torch."""

from collections.abc import Mapping
from typing import Any


def markdown(report: Mapping[str, Any]) -> str:
    """Return a report as a Markdown table under its text."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = "| " + " | ".join(report["columns"]) + " |"
    rows = [[cell.replace("|", "\\|") for cell in row] for row in report["rows"]]
    lines = [head, "|---" * len(report["columns"]) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return f"{report['machine']}; {versions}. {report['text']} `{report['command']}`\n\n" + "\n".join(lines) + "\n"
