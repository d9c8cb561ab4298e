"""Signals become a flag; one that is sent twice at once is one."""

from __future__ import annotations

import signal

import pytest

from codeprior import interrupt
from codeprior.interrupt import GracefulStop

pytestmark = pytest.mark.usefixtures("default_handlers")


def test_what_a_launcher_sends_twice_asks_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with GracefulStop() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == before


def test_a_later_repeat_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_REPEAT_S", -1.0)
    with GracefulStop():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_rank_that_stops_with_the_others_outlives_its_own_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_REPEAT_S", -1.0)
    with GracefulStop() as stop:
        stop.signal = signal.SIGTERM  # what the ranks agreed on
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM
