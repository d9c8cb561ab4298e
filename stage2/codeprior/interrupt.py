"""Stopping a run between two steps instead of in the middle of one."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

# torchrun forwards a SIGTERM that Slurm sends to every process anyway: within moments two mean what one does.
_REPEAT_S = 5.0


class GracefulStop:
    """Turns the first SIGTERM or Ctrl-C into a flag, so that a checkpoint can be written.

    Further ones mean nothing for 5 s, even where the run has ended by then; after that one acts at once. Off the main
    thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._first_s: float | None = None
        self._leaving = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._leaving:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _request(self, number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._first_s is None:
            # A rank that stops with the others, not yet asked itself, must not die in their checkpoint either.
            self.signal, self._first_s = self.signal or number, now_s
        elif now_s - self._first_s > _REPEAT_S:
            self._restore()
            signal.raise_signal(number)

    def leave(self) -> None:
        """End the process the way the signal would have; a repeat meanwhile changes nothing about that."""
        self._leaving = True
        for number in self._previous:  # Python would take the handlers off, before all modules are gone
            atexit.register(signal.signal, number, signal.SIG_IGN)
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or 0))
