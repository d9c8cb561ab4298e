"""Signals become a flag; one that is sent twice at once is one."""

from __future__ import annotations

import pickle
import signal

import pytest

from runkit import signals
from runkit.signals import GracefulStop, StoppedError

pytestmark = pytest.mark.usefixtures("default_handlers")


def test_what_a_launcher_sends_twice_asks_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with GracefulStop() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == before


def test_a_later_repeat_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_REPEAT_S", -1.0)
    with GracefulStop():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_rank_that_stops_with_the_others_outlives_its_own_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_REPEAT_S", -1.0)
    with GracefulStop() as stop:
        stop.signal = signal.SIGTERM  # what the ranks agreed on
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM


def _stop_by(number: int, stop: GracefulStop) -> None:
    signal.raise_signal(number)
    stop.raise_stopped("stopped at step 3")


def test_a_program_that_goes_on_after_a_stop_gets_its_handlers_back() -> None:
    before, stop = signal.getsignal(signal.SIGTERM), GracefulStop()
    with pytest.raises(KeyboardInterrupt, match="at step 3"), stop:
        _stop_by(signal.SIGTERM, stop)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stopped_run_raises_one_class_for_both_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(signals._process, "exits", True)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stop = GracefulStop()
        with pytest.raises(StoppedError, match="at step 3") as stopped, stop:
            _stop_by(number, stop)
        assert (stopped.value.signal, stopped.value.exit_code) == (number, code)
        assert not isinstance(stopped.value, Exception)
        signal.raise_signal(number)  # a repeat within moments has no effect
        copy = pickle.loads(pickle.dumps(stopped.value))
        assert (copy.signal, str(copy)) == (number, "stopped at step 3")
