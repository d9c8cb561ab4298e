"""What several commands share."""

from collections.abc import Mapping
from typing import Any

import tyro

FLAT = tyro.conf.arg(name="")
"""Fields of a config as flags without a prefix."""


def figures(summary: Mapping[str, Any]) -> str:
    """The numbers of a run's summary in one line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, int | float))
