"""SIGTERM and Ctrl-C in a process that has to clean up before it exits, such as one that has started Ray."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from runkit.signals import StoppedError

_received: list[int] = []
"""The SIGTERM that ends this process, while :func:`exit_on_sigterm` cleans up."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit in the block, so that the block cleans up, and StoppedError out of it.

    Outside the main thread it does nothing. Blocks may be nested: the outermost one is in effect.

    Raises:
        StoppedError: SIGTERM came.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is _exit:
        yield
        return
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    except SystemExit as error:  # while Ray waits it replaces this exit by its own, with code 1
        if _received:
            raise StoppedError(_received[0], "stopped by SIGTERM; the same call resumes") from error
        raise
    finally:
        forget_sigterm()
        signal.signal(signal.SIGTERM, previous)


def raise_if_terminated(cause: BaseException | None = None) -> None:
    """Raise SystemExit again if a SIGTERM came whose exception was lost, for example in a destructor."""
    if _received:
        raise SystemExit(128 + _received[0]) from cause


def forget_sigterm() -> None:
    """Treat the SIGTERM that came as handled."""
    _received.clear()


def _exit(number: int, _: Any) -> None:
    signal.alarm(0)  # Ray's own handler may have been called before and would abort the process in three seconds
    if not _received:  # a second one must not interrupt the clean-up
        _received.append(number)
        raise SystemExit(128 + number)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Defer SIGTERM and Ctrl-C to the end of the block, because a Ray that is half started cannot be shut down."""
    if not _in_main_thread():
        yield
        return
    came, deferred = list[int](), (signal.SIGTERM, signal.SIGINT)

    def defer(number: int, _: Any) -> None:
        signal.alarm(0)  # as in _exit
        came.append(number)

    previous = {number: signal.signal(number, defer) for number in deferred}
    try:
        with keep_handlers(*deferred):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def keep_handlers(*numbers: int) -> Iterator[None]:
    """Keep the handlers of these signals in the block: Ray would install its own, which exit with other codes."""
    if not _in_main_thread():
        yield
        return
    set_handler: Any = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in numbers else set_handler(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler
        for number in numbers:
            signal.signal(number, signal.getsignal(number))  # Ray also sets handlers in C, which Python does not see


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
