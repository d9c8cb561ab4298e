"""The device and the precision of a run."""

from __future__ import annotations

import logging

import pytest
import torch

from runkit.devices import make_autocast, pick_device, pick_precision, rank_device, resumed_precision
from runkit.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("gain", "expected"), [(0.5, "float32"), (1.1, "float32"), (2.0, "bfloat16")])
def test_auto_picks_the_precision_that_is_clearly_faster(gain: float, expected: str) -> None:
    assert pick_precision("auto", CPU, lambda precision: gain if precision == "bfloat16" else 1.0) == expected


def test_a_named_precision_is_not_measured() -> None:
    def fail(precision: str) -> float:
        raise AssertionError(precision)

    assert pick_precision("bfloat16", CPU, fail) == "bfloat16"
    with pytest.raises(UserError, match="precision is 'half': choose one of auto, float32, bfloat16"):
        pick_precision("half", CPU, fail)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "saved", "expected"),
    [("auto", "bfloat16", "bfloat16"), ("auto", None, "float32"), ("float32", "bfloat16", "float32")],
)
def test_a_resumed_run_keeps_its_precision(name, saved, expected, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert resumed_precision(name, "float32", saved) == expected
    assert bool(caplog.messages) == (expected == "bfloat16")


def test_autocast_has_the_precision() -> None:
    layer = torch.nn.Linear(2, 2)
    for precision in ("float32", "bfloat16"):
        with make_autocast(CPU, precision):
            assert layer(torch.ones(1, 2)).dtype == getattr(torch, precision)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_device("auto").type == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="this machine has 2 GPUs for more processes"):
        rank_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device = 'cuda', but torch finds no GPU"):
        pick_device("cuda")
