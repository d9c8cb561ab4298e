"""A prior's run folder: one process at a time, nothing foreign touched, damage survived, kills without a trace."""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from killing import killed_at
from safetensors.torch import load_file, save_file

from codeprior.checkpoint import load_prior
from codeprior.config import ModelConfig, PriorError, SequenceSpec, TrainConfig
from codeprior.sample_config import SampleConfig
from codeprior.train import train_prior
from codeshards.format import ShardDataset
from codeshards.format.files import sha256_file
from runkit.checkpoints import checkpoints
from runkit.folders import held

TINY = TrainConfig(
    model=ModelConfig(n_layer=1, n_head=2, n_embd=16, dropout=0.1), batch_size=8, steps=6, warmup_steps=2,
    precision="float32", device="cpu", log_every=2, eval_every=2, checkpoint_every=2, keep_checkpoints=3,
    ema_decay=0.9,
)  # fmt: skip
FILES = ("config.json", "model.safetensors", "state.safetensors", "state.json")


def snapshot(run: Path) -> dict[str, Any]:
    """Return all files of a run, without times and its hidden lock file."""
    times = {"tokens_per_s", "mfu", "train_seconds", "sha256"}
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name == ".train-prior.lock" or "tfevents" in name:
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def finished(dataset: ShardDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train_prior(TINY, dataset.path, out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


SCRIPT = """
import json, sys
from pathlib import Path
import dacite
from codeprior.config import TrainConfig
from codeprior.train import train_prior
from runkit.signals import StoppedError, exit_when_stopped

exit_when_stopped()

config = dacite.from_dict(TrainConfig, json.loads(sys.argv[3]), dacite.Config(cast=[tuple]))
try:
    train_prior(config, sys.argv[1], sys.argv[2])
except StoppedError as stopped:
    sys.exit(stopped.exit_code)
"""


def test_a_second_process_is_refused_and_the_first_continues(dataset: ShardDataset, finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = replace(TINY, steps=10**6, schedule="constant")
    arguments = [sys.executable, "-c", SCRIPT, str(dataset.path), str(run), json.dumps(asdict(config))]
    first = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(checkpoints(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(3):
        with pytest.raises(
            PriorError, match=rf"{run} is in use by train-prior \(process {first.pid} on .*\): wait until"
        ):
            train_prior(config, dataset.path, run, resume=False)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM, errors
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_all_ranks_end_with_the_refusal(dataset: ShardDataset, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(tmp_path / "script.py"), str(dataset.path), str(tmp_path / "run"), json.dumps(asdict(TINY))]
    with held(tmp_path / "run", "train-prior"):
        done = subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert done.stderr.count("PriorError: ") >= 2
    assert "is in use by train-prior" in done.stderr


def test_a_complete_run_needs_no_lock(dataset: ShardDataset, run: Path) -> None:
    with held(run, "train-prior"):
        assert train_prior(TINY, dataset.path, run)["steps"] == 6


@pytest.mark.parametrize(
    "name", ["best/x.txt", "checkpoints/step-00000001/x", "tensorboard/x", "metrics.jsonl", "config.json",
             "summary.json", "model.safetensors", "non-finite-step-00000001/x"],
)  # fmt: skip
@pytest.mark.parametrize("resume", [True, False])
def test_foreign_files_are_refused_and_kept(dataset, tmp_path: Path, name: str, resume: bool) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(PriorError, match=r"summary.json|was not made by train-prior"):
        train_prior(TINY, dataset.path, tmp_path / "run", resume=resume)
    assert [found for found in (tmp_path / "run").rglob("*") if found.is_file()] == [path]
    assert path.read_text() == "mine"
    path.rename(tmp_path / "elsewhere")  # what the message advises
    while path.parent != tmp_path / "run":
        path = path.parent
        path.rmdir()
    assert train_prior(replace(TINY, steps=1), dataset.path, tmp_path / "run", resume=resume)["steps"] == 1


def test_foreign_files_in_a_run_survive_all_that_it_removes(dataset: ShardDataset, run: Path) -> None:
    foreign = [
        "log.txt",
        "tensorboard/other/events.out.tfevents.1",
        "tensorboard/notes",
        ".tmp-mine/x",
        "checkpoints/notes",
    ]
    for name in (*foreign, "checkpoints/step-00000002/notes", "best/notes"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    train_prior(replace(TINY, steps=8, keep_checkpoints=1), dataset.path, run)  # removes old checkpoints
    train_prior(TINY, dataset.path, run, resume=False)
    kept = [*foreign, "checkpoints/leftover-step-00000002/notes", "leftover-best/notes"]
    assert [(run / name).read_text() for name in kept] == ["mine"] * len(kept)
    assert len(list((run / "tensorboard").glob("events.*"))) == 1


def test_no_resume_gives_what_a_new_folder_gives(dataset: ShardDataset, run: Path, finished: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000002", run / "checkpoints" / "damaged-step-00000001")
    train_prior(TINY, dataset.path, run, resume=False)
    assert snapshot(run) == snapshot(finished)


def damaged(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "bit":
        content[len(content) // 2] ^= 4
    if kind == "nan":
        tensors = load_file(path)
        tensors[max(tensors)].view(-1)[0] = float("nan")
        save_file(tensors, path)
        return
    path.write_bytes(
        {"empty": b"", "cut": content[: len(content) // 2], "zeros": bytes(len(content))}.get(kind, content)
    )


def test_without_a_bar_the_log_shows_the_progress(dataset, run: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("runkit.training.SECONDS_PER_LINE", 0)
    with caplog.at_level(logging.INFO, "runkit.training"):
        train_prior(replace(TINY, steps=8), dataset.path, run)
    shown = [message for message in caplog.messages if message.startswith("step 8 of 8: nll ")]
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in FILES for kind in ("empty", "cut", "zeros", "bit", "missing")),
     ("model.safetensors", "nan"), ("state.safetensors", "nan")],
)  # fmt: skip
def test_a_damaged_checkpoint_loses_only_its_steps(dataset, finished, run: Path, caplog, name: str, kind: str) -> None:
    for published in ("summary.json", "config.json", "model.safetensors"):
        (run / published).unlink()
    path = checkpoints(run)[-1] / name
    if kind == "missing":
        path.unlink()
    else:
        damaged(path, kind)
    with caplog.at_level(logging.WARNING):
        train_prior(TINY, dataset.path, run)
    assert any(f"step-00000006/{name}" in message for message in caplog.messages)
    assert (run / "checkpoints" / "damaged-step-00000006").is_dir()
    shutil.rmtree(run / "checkpoints" / "damaged-step-00000006")
    assert snapshot(run) == snapshot(finished)


def test_with_all_checkpoints_damaged_another_folder_works(dataset: ShardDataset, run: Path) -> None:
    for path in checkpoints(run):
        damaged(path / "state.json", "empty")
    (run / "summary.json").unlink()
    for _ in range(2):
        with pytest.raises(PriorError, match=r"no intact checkpoint .* Train again in another output folder"):
            train_prior(TINY, dataset.path, run)
    assert train_prior(TINY, dataset.path, run.with_name("another"))["steps"] == 6
    assert train_prior(TINY, dataset.path, run, resume=False)["steps"] == 6


def test_another_config_is_no_damage(dataset: ShardDataset, run: Path) -> None:
    (run / "summary.json").unlink()
    with pytest.raises(
        PriorError, match=r"train.seed was 0 and is 1 now. Use the same settings, or another output folder"
    ):
        train_prior(replace(TINY, seed=1), dataset.path, run)
    assert len(checkpoints(run)) == 3


@pytest.mark.parametrize("name", ["summary.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["empty", "cut", "zeros", "missing"])
def test_a_damaged_result_is_published_again(dataset, finished, run: Path, caplog, name: str, kind: str) -> None:
    if kind == "missing":
        (run / name).unlink()
    else:
        damaged(run / name, kind)
    train_prior(TINY, dataset.path, run)
    assert snapshot(run) == snapshot(finished)


def test_a_finished_run_without_checkpoints_is_never_trained_over(dataset: ShardDataset, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    before = snapshot(run)
    assert train_prior(TINY, dataset.path, run)["steps"] == 6
    for left in (run, run / "summary.json"):
        if left != run:
            left.unlink()
            del before["summary.json"]
        with pytest.raises(PriorError, match="its checkpoints are gone: choose another output folder"):
            train_prior(replace(TINY, steps=8), dataset.path, run)
        assert snapshot(run) == before


def test_runs_of_earlier_versions_continue(dataset: ShardDataset, finished: Path, run: Path) -> None:
    (run / ".train-prior.lock").unlink()
    (run / "summary.json").unlink()
    data = sha256_file(dataset.path / "dataset.json")  # their name for the dataset
    for path in checkpoints(run):
        config, state = (json.loads((path / name).read_text()) for name in ("config.json", "state.json"))
        (path / "config.json").write_text(json.dumps({**config, "data": data}))
        state["loader"]["data"] = f"{data}/train"
        (path / "state.json").write_text(json.dumps({k: v for k, v in state.items() if "sha256" not in k}))
        for name in ("model.safetensors", "state.safetensors"):
            save_file(load_file(path / name), path / name)
    shutil.rmtree(checkpoints(run)[-1])
    train_prior(TINY, dataset.path, run)
    for name in ("model.safetensors", "checkpoints/step-00000006/state.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert json.loads((run / "config.json").read_text())["data"] == data


def test_another_licence_or_card_is_the_same_data(dataset: ShardDataset, run: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(dataset.path.local, tmp_path / "shards"))
    (shards / "README.md").write_text("my own words")
    replace(dataset.manifest, license="cc-by-4.0").save(shards)
    shutil.rmtree(checkpoints(run)[-1])
    (run / "summary.json").unlink()
    cached = sorted((shards / ".cache").iterdir())
    assert train_prior(TINY, shards, run)["steps"] == TINY.steps
    assert sorted((shards / ".cache").iterdir()) == cached


@pytest.mark.parametrize("tail", [b'{"step": 6, "tr', b"\0" * 64, b"\xff\xfe\n", b"[1]\n"])
def test_a_damaged_log_loses_only_its_damaged_lines(
    dataset: ShardDataset, finished: Path, run: Path, tail: bytes
) -> None:
    log = run / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + tail)
    (run / "summary.json").unlink()
    train_prior(TINY, dataset.path, run)
    assert snapshot(run) == snapshot(finished)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + tail)  # shorter than at the checkpoint
    (run / "summary.json").unlink()
    train_prior(TINY, dataset.path, run)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()][:1] == [2]


def test_a_flipped_bit_or_nan_in_weights_is_named_where_they_are_used(run: Path, tmp_path: Path) -> None:
    damaged(run / "model.safetensors", "bit")
    with pytest.raises(PriorError, match=r"model\.safetensors (is damaged|cannot be read)"):
        load_prior(run)
    damaged(run / "best" / "model.safetensors", "nan")
    with pytest.raises(PriorError, match=r"best/model\.safetensors: norm\.weight has values"):
        load_prior(run / "best")


def test_a_diverged_run_keeps_earlier_checkpoints(dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("codeprior.trainer.learning_rate_at", lambda _, step: 1e39 if step == 3 else 1e-3)
    monkeypatch.setattr("codeprior.train.learning_rate_at", lambda *_: 1e-3)
    with pytest.raises(ValueError, match="finite"):
        train_prior(TINY, dataset.path, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002"]
    monkeypatch.undo()
    assert train_prior(TINY, dataset.path, tmp_path / "run")["steps"] == 6


@pytest.mark.parametrize(
    "name", ["learning_rate", "weight_decay", "grad_clip", "final_fraction", "cond_dropout", "pkeep"]
)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, "1", True])
def test_numbers_that_json_cannot_hold_are_refused_before_a_run(name: str, value: Any) -> None:
    with pytest.raises(PriorError, match=f"{name} is .*: choose a finite number"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "guidance"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_sampling_settings_are_finite(name: str, value: float) -> None:
    with pytest.raises(PriorError, match=f"{name} is .*: choose a finite number"):
        SampleConfig(**{name: value})


@pytest.mark.parametrize("name", ["n_layer", "n_head", "n_embd"])
def test_sizes_that_no_machine_holds_are_refused_at_once(name: str) -> None:
    with pytest.raises(PriorError, match=f"{name} is 10000000: use 1 to"):
        ModelConfig(**{name: 10**7})
    with pytest.raises(PriorError, match="codebook_size"):
        SequenceSpec(height=4, width=4, codebook_size=10**12, order="row_major", fingerprint="")


def check_kills(dataset: ShardDataset, finished: Path, folder: Path, sample: int) -> None:
    """Kill runs at `sample` of their file operations (0: at each), resume them, and compare all that they leave."""
    whole = folder / "whole"
    operations = killed_at(0, whole, train_prior, TINY, dataset.path, whole)
    assert snapshot(whole) == snapshot(finished)
    moments = range(1, operations + 1)
    for at in random.sample(moments, sample) if sample else moments:
        run = folder / f"run-{at}"
        killed_at(at, run, train_prior, TINY, dataset.path, run)
        train_prior(TINY, dataset.path, run)
        assert snapshot(run) == snapshot(finished), at


def test_a_kill_at_a_file_operation_leaves_no_trace(dataset: ShardDataset, finished: Path, tmp_path: Path) -> None:
    check_kills(dataset, finished, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_file_operation_leaves_no_trace(dataset: ShardDataset, finished: Path, tmp_path: Path) -> None:
    check_kills(dataset, finished, tmp_path, 0)
