"""The figures of a run while it trains: metrics.jsonl, and the same as TensorBoard curves."""

from __future__ import annotations

import io
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runkit.files import append_file, write_file


class RunLog:
    """The lines and curves of one run. All that is written is in the files at once, and there is nothing to close.

    Args:
        path: The file of lines, metrics.jsonl; it is made with the first one.
        curves: The folder of TensorBoard's event files; one more is made in it.
        step: The step that the run continues from. TensorBoard drops points past it.
        stays: Whether a line that is there already stays.

    Raises:
        UserError: they cannot be written, here and in :meth:`write`.
    """

    def __init__(self, path: Path, curves: Path, step: int, stays: Callable[[bytes], bool]) -> None:
        self._path = path
        before = path.read_bytes() if path.exists() else b""
        kept = b"".join(line for line in before.splitlines(keepends=True) if stays(line))
        if kept != before:
            write_file(path, kept)
        # TensorBoard reads the files by name: in nanoseconds, so that those of one second stand in their order too.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._events = curves / name
        version = "brain.Event:2"
        start = {"step": step + 1, "session_log": {"status": "START"}}
        self._add_events({"file_version": version}, {"step": step + 1, "file_version": version}, start)

    @property
    def bytes(self) -> int:
        """Length of the lines."""
        return self._path.stat().st_size if self._path.exists() else 0

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one line, and one point to each curve."""
        append_file(self._path, (json.dumps({"step": step, **figures}) + "\n").encode())
        values = [{"tag": name, "simple_value": value} for name, value in figures.items()]
        self._add_events({"step": step, "summary": {"value": values}})

    def _add_events(self, *events: Mapping[str, Any]) -> None:
        # torch's own writer has a thread, whose errors end in a traceback or nowhere.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(Event(wall_time=time.time(), **event).SerializeToString())
        append_file(self._events, records.getvalue())
