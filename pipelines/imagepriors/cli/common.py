"""What several commands share."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

FLAT = tyro.conf.arg(name="")
"""Fields of a config as flags without a prefix."""


def shown(path: Path | str) -> str:
    """A path as a person writes it: relative to the working folder if it is in it."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def figures(summary: Mapping[str, Any]) -> str:
    """The numbers of a run's summary in one line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, int | float))
