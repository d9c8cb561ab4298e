"""Several processes give one process's run: DDP, FSDP2, other numbers of processes on resume, Ray Train."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_shards import SPEC, make_dataset

from codeprior.checkpoint import checkpoints, load_prior
from codeprior.config import ModelConfig, PriorError, TrainConfig
from codeprior.data import sequence_from_dataset
from codeprior.model import Prior
from codeprior.speed import peak_flops, step_flops_per_sequence
from codeprior.train import train_prior
from codeshards.format import ShardDataset
from runkit import training
from runkit.errors import user_message
from runkit.signals import GracefulStop
from runkit.training import TrainingLoop
from vqgan.errors import InputError

# Permuted throughout: an annealed order would depend on the number of steps, which some runs here extend.
CONFIG = TrainConfig(
    model=ModelConfig(n_layer=2, n_head=2, n_embd=32, target_positions=True), condition="class+segmentation",
    batch_size=16, steps=14, warmup_steps=10, learning_rate=1e-3, schedule="constant", precision="float32",
    device="cpu", log_every=1, eval_every=7, checkpoint_every=7, cond_dropout=0.2, pkeep=0.9, random_order=True,
    anneal_start=1.0, anneal_end=1.0, ema_decay=0.9,
)  # fmt: skip
SCRIPT = """
import json, sys
from pathlib import Path
import dacite
from codeprior.config import TrainConfig
from codeprior.train import train_prior
from runkit.ranks import process_group

with process_group():
    for out, config in json.loads(Path(sys.argv[2]).read_text()).items():
        config = dacite.from_dict(TrainConfig, config, dacite.Config(cast=[tuple]))
        train_prior(config, sys.argv[1], out)
"""


def command(tmp_path: Path, dataset: ShardDataset, runs: dict[Path, TrainConfig], processes: int = 2) -> list[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "runs.json").write_text(json.dumps({str(out): asdict(config) for out, config in runs.items()}))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, str(tmp_path / "script.py"), str(dataset.path), str(tmp_path / "runs.json")]


def curve(run: Path) -> dict[str, list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("train_nll_nats", "grad_norm", "val_nll_nats")
    return {name: [line[name] for line in lines if name in line] for name in names}


@pytest.fixture(scope="module")
def single(dataset: ShardDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single") / "run"
    train_prior(CONFIG, dataset.path, out)
    return out


def test_two_processes_give_the_curve_of_one(dataset: ShardDataset, single: Path, tmp_path: Path) -> None:
    half, stream = replace(CONFIG, steps=7), replace(CONFIG, loader="stream", shuffle_rows=100)
    train_prior(half, dataset.path, tmp_path / "one-then-two")
    runs = {
        "ddp": replace(CONFIG, accumulate=2),
        "fsdp": replace(CONFIG, parallel="fsdp", accumulate=2, checkpoint_activations=True),
        "one-then-two": CONFIG,
        "ddp-then-fsdp": half,
        "two-then-one": half,
        "stream": stream,
    }
    again = command(tmp_path, dataset, {tmp_path / name: config for name, config in runs.items()})
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    resumed = {tmp_path / "ddp-then-fsdp": replace(CONFIG, parallel="fsdp")}
    done = subprocess.run(command(tmp_path, dataset, resumed), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    train_prior(CONFIG, dataset.path, tmp_path / "two-then-one")
    train_prior(stream, dataset.path, tmp_path / "stream-of-one")
    for name in runs:
        expected = curve(tmp_path / "stream-of-one" if name == "stream" else single)
        for figure, values in curve(tmp_path / name).items():
            assert len(values) == len(expected[figure])
            assert values == pytest.approx(expected[figure], rel=2e-4), (name, figure)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["processes"] == (1 if name == "two-then-one" else 2)
    expected_weights = load_file(single / "model.safetensors")
    for name in ("ddp", "fsdp", "one-then-two", "ddp-then-fsdp"):
        assert load_prior(tmp_path / name / "best").parameter_count == load_prior(single).parameter_count
        for key, tensor in load_file(tmp_path / name / "model.safetensors").items():
            torch.testing.assert_close(tensor, expected_weights[key], rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_with_a_codebook_that_is_computed_in_parts(tmp_path: Path) -> None:
    make_dataset(tmp_path / "shards", rows=12, spec=replace(SPEC, image=replace(SPEC.image, codebook_size=70_000)))
    dataset = ShardDataset.open(tmp_path / "shards")
    config = replace(
        CONFIG, model=ModelConfig(n_layer=1, n_head=2, n_embd=8), condition="none", batch_size=4, steps=2,
        eval_every=2, checkpoint_every=2, cond_dropout=0.0, random_order=False,
    )  # fmt: skip
    train_prior(config, dataset.path, tmp_path / "single")
    runs = {"ddp": replace(config, accumulate=2), "fsdp": replace(config, parallel="fsdp")}
    again = command(tmp_path, dataset, {tmp_path / name: run for name, run in runs.items()})
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = load_file(tmp_path / "single/model.safetensors")
    for name in runs:
        for figure, values in curve(tmp_path / name).items():
            assert values == pytest.approx(curve(tmp_path / "single")[figure], rel=2e-4), (name, figure)
        for key, tensor in load_file(tmp_path / name / "model.safetensors").items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-2, atol=2e-4)


def test_sigterm_to_one_of_two_processes_stops_both_with_a_checkpoint(dataset: ShardDataset, tmp_path: Path) -> None:
    # No line of training metrics is ever due: the evaluation tells when the run is under way.
    run = tmp_path / "run"
    config = replace(CONFIG, steps=10**6, log_every=10**9, eval_every=20, checkpoint_every=10**9)
    started = subprocess.Popen(command(tmp_path, dataset, {run: config}), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    search = ["pgrep", "-P", str(started.pid), "-f", "script.py"]
    workers = [int(pid) for pid in subprocess.run(search, capture_output=True, text=True).stdout.split()]
    try:
        for _ in range(2):  # Slurm's and torchrun's
            os.kill(workers[-1], signal.SIGTERM)
            time.sleep(0.01)
        _, errors = started.communicate(timeout=60)
    finally:
        for process in (started.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert started.returncode != 0
    assert "the same command resumes there" in errors
    (saved,) = checkpoints(run)
    step = int(saved.name.removeprefix("step-"))
    assert train_prior(replace(config, steps=step + 2), dataset.path, run)["steps"] == step + 2


def test_a_signal_that_comes_while_the_ranks_agree_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = SimpleNamespace(_stop=GracefulStop(), _hosts="hosts")
    late = iter((signal.SIGTERM, None))

    def all_reduce(highest: torch.Tensor, op: object, group: object) -> None:
        assert (highest.device.type, group) == ("cpu", "hosts")  # nothing here waits for a GPU
        loop._stop.signal = next(late) or loop._stop.signal

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(training, "world_size", lambda: 2)
    assert not TrainingLoop._stop_requested(loop)  # type: ignore[arg-type]
    assert TrainingLoop._stop_requested(loop)  # type: ignore[arg-type]
    assert loop._stop.signal == signal.SIGTERM


@pytest.mark.slow
def test_ray_train_runs_the_same_training(
    local_ray_cores: object, dataset: ShardDataset, single: Path, tmp_path: Path
) -> None:
    from imagepriors.cluster import train_prior_on_ray

    summary = train_prior_on_ray(CONFIG, dataset.path, tmp_path / "run", 2)
    assert summary["processes"] == 2
    assert curve(tmp_path / "run")["train_nll_nats"] == pytest.approx(curve(single)["train_nll_nats"], rel=2e-4)


def test_a_batch_that_does_not_divide_is_refused(dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(CONFIG, batch_size=15)
    runs = command(tmp_path, dataset, {tmp_path / "run": config})
    done = subprocess.run(runs, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "batch_size is 15: choose a multiple of 2 (2 processes × accumulate = 1)" in done.stderr
    with pytest.raises(PriorError, match="accumulate"):
        replace(CONFIG, accumulate=5)


def test_average_is_what_is_shipped(dataset: ShardDataset, tmp_path: Path, single: Path) -> None:
    raw = replace(CONFIG, ema_decay=0.0)
    train_prior(raw, dataset.path, tmp_path / "raw")
    trained = load_file(tmp_path / "raw" / "model.safetensors")
    averaged = load_file(single / "model.safetensors")
    state = load_file(checkpoints(single)[-1] / "state.safetensors")
    for name, tensor in trained.items():
        assert torch.equal(state[f"trained/{name}"], tensor)  # averaging does not touch the training
    assert not torch.equal(trained["head.weight"], averaged["head.weight"])


@pytest.mark.slow
def test_a_worker_of_ray_train_says_why_it_failed(local_ray_cores: object, tmp_path: Path) -> None:
    from imagepriors.cluster import train_on_ray

    def refuse(device: str) -> None:
        raise PriorError("learning_rate = -1: use a positive number")

    with pytest.raises(InputError, match=r"failed: learning_rate = -1: use a positive number$"):
        train_on_ray(refuse, tmp_path / "a", 1, name="refuse", device="cpu")


@pytest.mark.slow
def test_a_bug_in_a_worker_of_ray_train_keeps_its_traceback(local_ray_cores: object, tmp_path: Path) -> None:
    from imagepriors.cluster import train_on_ray

    def fail(device: str) -> None:
        {}["bug"]

    with pytest.raises(Exception, match=r"(?s)in fail.*KeyError: 'bug'") as raised:
        train_on_ray(fail, tmp_path / "b", 1, name="fail", device="cpu")
    assert user_message(raised.value) is None  # the command line prints the traceback


def test_flops_are_those_of_the_matrix_products(dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr("codeprior.cpu_kernels._BY_ONEDNN", False)  # the counter knows torch's products only
    sequence = sequence_from_dataset(dataset, "zcurve", "class")
    prior = Prior(replace(CONFIG.model, attention="math"), sequence)
    condition, codes = torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        prior.nll(condition, codes).mean().backward()
    # All tokens need gradients but the very first layer's input products with respect to embeddings: within 2%.
    assert step_flops_per_sequence(prior) * 3 == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert peak_flops(torch.device("cpu"), "float32") > 1e8


def golden(dataset: ShardDataset, tmp_path: Path, **changes: Any) -> list[float]:
    model = replace(CONFIG.model, position="learned")
    config = replace(
        CONFIG, model=model, condition="class", steps=4, cond_dropout=0.0, pkeep=1.0, random_order=False, **changes
    )
    train_prior(config, dataset.path, tmp_path / "run")
    return curve(tmp_path / "run")["train_nll_nats"]


def test_golden_losses(dataset: ShardDataset, tmp_path: Path) -> None:
    """These shards, this seed and this code gave these losses; another result is another training."""
    assert golden(dataset, tmp_path) == pytest.approx([2.80761, 2.78775, 2.77715, 2.75662], abs=2e-4)


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(dataset: ShardDataset, tmp_path: Path) -> None:
    assert golden(dataset, tmp_path / "a", compile=True) == pytest.approx(golden(dataset, tmp_path / "b"), rel=1e-4)
