"""Stop signals: a run stops between two steps, with a checkpoint, instead of in the middle of one."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn, Self

# torchrun forwards a SIGTERM that Slurm sends to every process anyway: two signals within moments mean one.
_REPEAT_S = 5.0

_process = {"exits": "TORCHELASTIC_RUN_ID" in os.environ}
"""Whether a stopped run ends the process: torchrun and batch systems send a signal more than once meanwhile."""


def exit_when_stopped() -> None:
    """Declare that this process exits when a run is stopped, as a command does.

    A signal that is repeated while it exits then has no effect. Without this the handlers of the caller are restored.
    """
    _process["exits"] = True


class StoppedError(KeyboardInterrupt):
    """A signal stopped a run, after its checkpoint was saved.

    It is a KeyboardInterrupt, also after SIGTERM, so that `except Exception` does not continue what should end.

    Args:
        signal: Number of the signal.
        message: What was stopped, and how to resume.
    """

    def __init__(self, signal: int, message: str = "stopped") -> None:
        super().__init__(signal, message)  # both, so that it can be pickled
        self.signal, self.message = signal, message

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """The exit code of a process that this signal ends: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class GracefulStop:
    """A context manager that turns the first SIGTERM or Ctrl-C into a flag, `signal`, which a loop can check.

    Further signals are ignored for 5 s, even if the run has ended by then; a later one takes effect at once. Outside
    the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._first_s: float | None = None
        self._raising = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._raising:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _request(self, number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._first_s is None:
            # A rank that stops with the others, before its own signal, must not die while it writes the checkpoint.
            self.signal, self._first_s = self.signal or number, now_s
            with contextlib.suppress(OSError):  # not by logging, which may hold a lock that this handler interrupts
                os.write(2, b"stopping after this step; another signal, from 5 s on, stops at once\n")
        elif now_s - self._first_s > _REPEAT_S:
            self._restore()
            signal.raise_signal(number)

    def raise_stopped(self, message: str) -> NoReturn:
        """Raise :class:`StoppedError`. Where the process then exits, a repeated signal has no effect until it has."""
        self._raising = _process["exits"]
        if self._raising:
            for number in self._previous:  # Python removes handlers before all modules are unloaded
                atexit.register(signal.signal, number, signal.SIG_IGN)
        raise StoppedError(self.signal or signal.SIGTERM, message)
