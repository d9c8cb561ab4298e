"""Progress of a running job: a live view on the terminal and an event log in JSON lines."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, TextIO

from codeshards.format.errors import ShardError
from runkit.jsonfiles import parse_json
from runkit.places import Where, open_store
from runkit.progress import tqdm

log = logging.getLogger(__name__)

_WINDOW_S = 60.0
"""Seconds over which rates are averaged: long enough to be steady, short enough to show a slow node."""
_EVENT_S = 10.0
"""Seconds between two progress events in the event log."""
_LINE_S = 60.0
"""Seconds between two log lines where there is no terminal."""


class EventLog:
    """Appends one JSON object per line; after a kill all lines but the last are complete.

    Objects cannot be appended to: in an object store the log of a run is written when the run ends.
    """

    def __init__(self, place: Where | None) -> None:
        self._place = open_store(place) if place is not None else None
        self._file: TextIO | None = None
        self._text = ""
        if self._place is None:
            return
        before = self._place.read_bytes() if self._place.exists() else b""
        self._text = "" if before.endswith(b"\n") or not before else "\n"  # the last line was cut by a kill
        if path := self._place.local:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._file.write(self._text)
        else:
            self._text = before.decode(errors="replace") + self._text

    def write(self, event: str, **fields: Any) -> None:
        """Append an event with the time (seconds since 1970). On a full disk the log ends and the job continues."""
        if self._place is None:
            return
        fields = {"time_s": round(time.time(), 3), "event": event, **fields}
        line = json.dumps(fields, ensure_ascii=False) + "\n"
        if self._file is None:
            self._text += line
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._disable(error)

    def close(self) -> None:
        """Close the file, or write it to its object store."""
        try:
            if self._file is not None:
                self._file.close()
            elif self._place is not None and self._place.local is None:
                self._place.write_bytes(self._text.encode())
        except (OSError, ShardError) as error:
            self._disable(error)
        self._place = self._file = None

    def _disable(self, error: Exception) -> None:
        log.warning("no further events are logged: %s", error)
        self._place = self._file = None


def read_events(place: Where) -> list[dict[str, Any]]:
    """The events of all runs in a log; incomplete lines are skipped."""
    store, events = open_store(place), []
    for line in store.read_bytes().decode(errors="replace").splitlines() if store.exists() else ():
        try:
            events.append(parse_json(line, store, ShardError))
        except ShardError:
            continue
    return [event for event in events if isinstance(event, dict) and "event" in event]


def kind_of(reason: str) -> str:
    """The reason of a failure without names and numbers, so that failures of one cause are counted together."""
    last = re.sub(r"<[^>]*>|'[^']*'|\"[^\"]*\"|\d+", "…", reason).rsplit(": ", 1)[-1]
    return last.strip() or reason


class LiveView:
    """A progress bar and a line on shards, failures and nodes; log lines where there is no terminal."""

    def __init__(self, name: str, *, shards: int, samples: int, events: EventLog) -> None:
        self._name, self._shards, self._samples, self._events = name, shards, samples, events
        self._shards_done = 0
        self._failures: Counter[str] = Counter()
        self._history: deque[tuple[float, dict[str, int]]] = deque()
        self._last_event_s = self._last_line_s = time.monotonic()
        self._bar = tqdm(total=samples, desc=name, unit="image", disable=None, position=0, smoothing=0.1)
        self._status = tqdm(total=0, bar_format="{desc}", disable=None, position=1, leave=False)

    def shard_done(self, failures: Mapping[str, int]) -> None:
        """Count a finished shard and its failures by kind."""
        self._shards_done += 1
        self._failures.update(failures)

    def update(self, done_by_node: dict[str, int]) -> None:
        """Show how many samples each node has finished in this run."""
        now = time.monotonic()
        self._history.append((now, done_by_node))
        while len(self._history) > 2 and now - self._history[1][0] > _WINDOW_S:
            self._history.popleft()
        total = min(self._samples, sum(done_by_node.values()))
        self._bar.update(total - self._bar.n)
        if now - self._last_event_s >= _EVENT_S:
            self._log_progress()
        if not self._bar.disable:
            self._status.set_description_str(self._status_text())
        elif now - self._last_line_s >= _LINE_S:
            self._last_line_s = now
            log.info(
                "%s: %s of %s images, %s", self._name, f"{total:,}", f"{self._samples:,}", self._status_text(total)
            )

    def _log_progress(self) -> None:
        if self._history:
            self._last_event_s, done_by_node = self._history[-1][0], self._history[-1][1]
            self._events.write("progress", samples=sum(done_by_node.values()), nodes=done_by_node)

    def _status_text(self, total: int | None = None) -> str:
        (start, first), (end, last) = self._history[0], self._history[-1]
        seconds = max(end - start, 1e-9)
        rates = {node: (count - first.get(node, 0)) / seconds for node, count in last.items()}
        parts = [f"{self._shards_done}/{self._shards} shards"]
        if total is not None:
            rate = sum(rates.values())
            eta = f"{(self._samples - total) / rate / 60:.1f} min left" if rate > 0 else "no rate yet"
            parts.append(f"{rate:.1f} images/s, {eta}")
        parts += [f"{count} failed: {kind}" for kind, count in self._failures.most_common(3)]
        parts += [f"{node} {rate:.1f}/s" for node, rate in sorted(rates.items())]
        return " · ".join(parts)

    def close(self) -> None:
        """Log the final progress and leave the bar on the terminal."""
        self._log_progress()
        self._status.close()
        self._bar.close()
