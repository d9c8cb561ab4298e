"""The figures of a run while it trains: metrics.jsonl and TensorBoard curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codeprior import distributed
from codeprior.checkpoint import CURVES, METRICS
from runkit.files import write_file


class RunLog:
    """metrics.jsonl and TensorBoard curves of one run; ranks other than the first write nothing."""

    def __init__(self, out: Path) -> None:
        self._path, self._first = out / METRICS, distributed.rank() == 0
        self._board: Any = None

    @property
    def bytes(self) -> int:
        """Length of metrics.jsonl."""
        return self._path.stat().st_size if self._path.exists() else 0

    def begin(self, step: int, length_bytes: int) -> None:
        """Drop the lines and points after `step`: they tell of steps that are about to be done again."""
        if not self._first:
            return
        from torch.utils.tensorboard import SummaryWriter

        before = self._path.read_bytes() if self._path.exists() else b""
        kept = b"".join(line for line in before[:length_bytes].splitlines(keepends=True) if _is_whole(line))
        if kept != before:
            write_file(self._path, kept)
        self._board = SummaryWriter(str(self._path.parent / CURVES), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line, and one point on each curve."""
        if self._board is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the curves."""
        if self._board is not None:
            self._board.close()


def _is_whole(line: bytes) -> bool:
    """Whether a power cut has left a line of the log as it was written."""
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
