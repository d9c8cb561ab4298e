"""The metrics of a run while it trains: metrics.jsonl, and the same values as TensorBoard curves."""

from __future__ import annotations

import io
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runkit.files import append_file, write_file
from runkit.trackers import Tracker


class RunLog:
    """The lines and curves of one run. Every write goes to the files at once; only a tracker has to be closed.

    Args:
        path: The file of lines, metrics.jsonl; it is created with the first line.
        curves: The folder of TensorBoard's event files; a new file is created in it.
        step: The step from which the run continues. Later lines and points are removed, and damaged lines.
        evaluates: Whether the run evaluates at `step` again: the lines and points of the evaluation that was written
            there, whose names begin with "val_", are removed too.
        tracker: Gets the same values.

    Raises:
        UserError: A file cannot be written, here or in :meth:`write`.
    """

    def __init__(
        self, path: Path, curves: Path, step: int, *, evaluates: bool = False, tracker: Tracker | None = None
    ) -> None:
        self._path, self._tracker = path, tracker
        before = path.read_bytes() if path.exists() else b""
        kept: list[tuple[bytes, dict[str, Any]]] = []
        for line in before.splitlines(keepends=True):
            values = _parse(line)
            if values and values["step"] <= step and not (evaluates and values["step"] == step and _is_val(values)):
                kept.append((line, values))
        if (text := b"".join(line for line, _ in kept)) != before:
            write_file(path, text)
        # TensorBoard reads the files in the order of their names: nanoseconds keep those of one second in order.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._events = curves / name
        version = "brain.Event:2"
        # A start event makes TensorBoard drop the points of its step and later ones.
        start = {"step": step, "session_log": {"status": "START"}}
        self._add_events({"file_version": version}, {"step": step, "file_version": version}, start)
        for _, values in kept:
            if values["step"] == step:
                self._add_points(values)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one line, and one point to each curve."""
        append_file(self._path, (json.dumps({"step": step, **figures}) + "\n").encode())
        self._add_points({"step": step, **figures})
        if self._tracker is not None:
            self._tracker.log(step, figures)

    def close(self) -> None:
        """Send what the tracker has not sent yet."""
        if self._tracker is not None:
            self._tracker.finish()

    def _add_points(self, line: Mapping[str, Any]) -> None:
        values = [{"tag": name, "simple_value": value} for name, value in line.items() if name != "step"]
        self._add_events({"step": line["step"], "summary": {"value": values}})

    def _add_events(self, *events: Mapping[str, Any]) -> None:
        # torch's own writer has a thread, whose errors end in a traceback or are lost.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(Event(wall_time=time.time(), **event).SerializeToString())
        append_file(self._events, records.getvalue())


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line, or None if a killed process or a disk has damaged it."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(values, dict) and isinstance(values.get("step"), int)
    return values if whole else None


def _is_val(values: Mapping[str, Any]) -> bool:
    return any(name.startswith("val_") for name in values)
