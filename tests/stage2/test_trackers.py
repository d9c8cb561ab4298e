"""Runs whose metrics also go to a tracker, with the real packages where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from codeprior.config import ModelConfig, PriorError, TrainConfig
from codeprior.train import train_prior
from codeshards.format import ShardDataset
from runkit.trackers import ID_FILE

TINY = TrainConfig(
    model=ModelConfig(n_layer=1, n_head=2, n_embd=16), batch_size=8, steps=4, precision="float32", device="cpu",
    schedule="constant", log_every=2, eval_every=4, checkpoint_every=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)


def lines_of(run: Path) -> dict[int, dict[str, float]]:
    """The run log: step → values."""
    found: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values.pop("step"), {}).update(values)
    return found


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_any_work(name: Any, dataset: ShardDataset, tmp_path: Path) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(PriorError, match=f"pip install {name}, or use none"):
        train_prior(replace(TINY, tracker=name), dataset.path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wandb_gets_the_run_log_and_a_resumed_run_is_the_same_run(dataset: ShardDataset, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    train_prior(replace(TINY, tracker="wandb"), dataset.path, run)
    run_id = json.loads((run / ID_FILE).read_text())["id"]
    train_prior(replace(TINY, tracker="wandb", steps=6), dataset.path, run)
    train_prior(replace(TINY, steps=8), dataset.path, run)  # may change when a run resumes
    files = sorted((run / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
    assert len(files) == 2
    found: dict[int, dict[str, float]] = {}
    for values in map(_wandb_history, files):
        for step, figures in values.items():
            found.setdefault(step, {}).update(figures)
    assert found == {step: values for step, values in lines_of(run).items() if step <= 6}


def _wandb_history(path: Path) -> dict[int, dict[str, float]]:
    """The values in a file of wandb: step → name → value."""
    from wandb.proto import wandb_internal_pb2 as pb

    found: dict[int, dict[str, float]] = {}
    for content in _records(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(content)
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if "step" in items:
            step = items.pop("step")
            found.setdefault(step, {}).update({k: v for k, v in items.items() if not k.startswith("_")})
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, parts with crc, length and type."""
    place, record = 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        _, length, kind = struct.unpack("<IHB", content[place : place + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:
            place += left
            continue
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last
            yield record
            record = b""


def test_trackio_gets_the_run_log_and_a_resumed_run_is_the_same_run(
    dataset: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    for steps in (4, 6):
        train_prior(replace(TINY, tracker="trackio", steps=steps), dataset.path, run)
    assert capsys.readouterr().out == ""  # standard output is for the answer of a command
    (name,) = SQLiteStorage.get_runs("imagepriors")
    assert name == f"{tmp_path.name}-run-{json.loads((run / ID_FILE).read_text())['id']}"
    found: dict[int, dict[str, float]] = {}
    for line in SQLiteStorage.get_logs("imagepriors", name):
        step = line.pop("step")
        found.setdefault(step, {}).update({k: v for k, v in line.items() if k != "timestamp"})
    assert found == lines_of(run)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_cannot_be_reached_warns_once_and_training_continues(
    name: Any, dataset: ShardDataset, tmp_path: Path
) -> None:
    pytest.importorskip(name)
    nowhere = "http://127.0.0.1:9"
    environment = {
        "WANDB_MODE": "online", "WANDB_BASE_URL": nowhere, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "2",
        "TRACKIO_SERVER_URL": f"{nowhere}?write_token=x", "TRACKIO_DIR": str(tmp_path / "trackio"),
    }  # fmt: skip
    config = asdict(replace(TINY, tracker=name))
    code = (
        "import logging, sys\nfrom codeprior.config import TrainConfig\nfrom codeprior.train import train_prior\n"
        "from runkit.configs import from_dict\nlogging.basicConfig(format='%(name)s %(message)s')\n"
        f"train_prior(from_dict(TrainConfig, {config!r}), {str(dataset.path)!r}, 'run')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    # trackio itself keeps what it cannot send, and sends it later
    assert done.stderr.count("runkit.trackers wandb gets no more metrics of this run, which continues") == (
        name == "wandb"
    )
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 4
    assert lines_of(tmp_path / "run").keys() == {2, 4}
