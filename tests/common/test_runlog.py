"""The log of a run: lines that are whole, and curves that TensorBoard reads."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runkit.errors import UserError
from runkit.files import append_file
from runkit.runlog import RunLog


def test_a_run_that_continues_drops_later_lines_and_points(tmp_path):
    path, curves = tmp_path / "metrics.jsonl", tmp_path / "curves"
    log = RunLog(path, curves, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step})
    log = RunLog(path, curves, 1)
    log.write(2, {"loss": 7.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0}, {"step": 2, "loss": 7.5},
    ]  # fmt: skip
    points = EventAccumulator(str(curves)).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 7.5)]


def test_an_evaluation_that_is_repeated_is_logged_once(tmp_path):
    path, curves = tmp_path / "metrics.jsonl", tmp_path / "curves"
    for evaluates, expected in ((False, [0.25, 0.5, 0.25]), (True, [0.25, 0.25])):
        log = RunLog(path, curves, 0)
        log.write(1, {"val_loss": 0.25})
        log.write(2, {"loss": 1.0})
        log.write(2, {"val_loss": 0.5})
        RunLog(path, curves, 2, evaluates=evaluates).write(2, {"val_loss": 0.25})
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["val_loss"] for line in lines if "val_loss" in line] == expected
        found = EventAccumulator(str(curves)).Reload()
        assert [point.value for point in found.Scalars("val_loss")] == expected
        assert [point.value for point in found.Scalars("loss")] == [1.0]


def test_what_cannot_be_appended_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder cannot be written .*nothing was left there"):
        append_file(tmp_path / "folder", b"x")
    (tmp_path / "file").write_bytes(b"a")
    append_file(tmp_path / "file", b"b")
    assert (tmp_path / "file").read_bytes() == b"ab"
