"""Training: it learns, resumes to the bit, survives signals, refuses what it must, and needs no pixels."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupts import interrupted_at
from safetensors.torch import load_file, save_file

from codeprior import checkpoint as ckpt
from codeprior import speed, train
from codeprior.checkpoint import checkpoints, load_prior
from codeprior.config import ModelConfig, PriorError, TrainConfig
from codeprior.data import CodeBatches, CodeData, checked, sequence_from_dataset
from codeprior.given import given_scales
from codeprior.model import Prior
from codeprior.optim import learning_rate_at, make_optimizer
from codeprior.sample import sample_codes, sample_sequences, to_grids
from codeprior.sample_config import SampleConfig
from codeprior.speed import resolve_precision
from codeprior.train import evaluate, train_prior
from codeprior.trainer import SequenceLoss, train_step
from codeshards.format import ORDER_NAMES, ShardDataset, ShardError, order
from runkit.devices import make_autocast
from runkit.signals import StoppedError

TINY = TrainConfig(
    model=ModelConfig(n_layer=2, n_head=2, n_embd=32, dropout=0.1),
    order="zcurve",
    condition="segmentation",
    batch_size=16,
    steps=14,
    warmup_steps=3,
    learning_rate=3e-3,
    precision="float32",
    device="cpu",
    log_every=5,
    eval_every=4,
    checkpoint_every=4,
)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "mfu")} for line in lines]


def final_bytes(run: Path, step: int = 14) -> list[bytes]:
    last = run / "checkpoints" / f"step-{step:08d}"
    return [path.read_bytes() for path in (run / "model.safetensors", last / "state.safetensors")]


@pytest.fixture(scope="module")
def finished(dataset: ShardDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY, run without interruption."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train_prior(TINY, dataset.path, out)
    return out


@pytest.mark.parametrize("accumulate", [1, 4])
def test_train_step_is_adamw_on_the_mean_nll(dataset: ShardDataset, accumulate: int) -> None:
    sequence = sequence_from_dataset(dataset, "row_major", "class")
    batches = CodeBatches(CodeData.open(dataset, "train", sequence), batch_size=8, seed=0)
    torch.manual_seed(0)
    prior = Prior(ModelConfig(n_layer=1, n_head=2, n_embd=16), sequence)
    twin = Prior(prior.config, sequence)
    twin.load_state_dict(prior.state_dict())
    config = replace(TINY, weight_decay=0.3)
    loss_of = SequenceLoss(prior)
    optimizer, autocast = make_optimizer(prior, config), make_autocast(torch.device("cpu"), "float32")
    decayed = [p for n, p in twin.named_parameters() if p.ndim == 2 and "embedding" not in n]
    others = [p for n, p in twin.named_parameters() if p.ndim < 2 or "embedding" in n]
    assert len(decayed) == 5
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=config.betas, foreach=False, fused=False)
    for _ in range(3):
        batch = next(batches)
        parts = batch.split(accumulate)
        nll, norm = train_step(loss_of, optimizer, parts, learning_rate=0.01, grad_clip=0.5, autocast=autocast)
        logits = twin(batch.condition_BC, batch.codes_BT[:, :-1])
        loss = -logits.log_softmax(-1).gather(2, batch.codes_BT[..., None]).mean()
        reference.zero_grad()
        loss.backward()
        expected = torch.sqrt(sum(p.grad.square().sum() for p in twin.parameters()))
        assert norm.item() == pytest.approx(expected.item(), rel=1e-4)
        for p in twin.parameters():
            p.grad.mul_(min(1.0, 0.5 / (expected.item() + 1e-6)))
        reference.step()
        assert nll.item() == pytest.approx(loss.item(), rel=1e-5)
        assert not nll.requires_grad
    for ours, theirs in zip(prior.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_learning_rate_warms_up_and_ends_at_the_final_fraction() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4, steps=105, final_fraction=0.2)
    assert [learning_rate_at(config, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate_at(config, 54) == pytest.approx(0.6)
    assert learning_rate_at(config, 104) == pytest.approx(0.2)
    assert learning_rate_at(replace(config, schedule="constant"), 104) == 1.0


def test_it_learns_structure_beyond_the_unigram(dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(TINY, steps=200, condition="class", eval_every=60, checkpoint_every=60)
    summary = train_prior(config, dataset.path, tmp_path / "run")
    losses = [line["train_nll_nats"] for line in read_metrics(tmp_path / "run") if "train_nll_nats" in line]
    assert losses[0] > 0.9 * math.log(16) > 3 * losses[-1]
    # A tenth of the codes is noise: 0.1 · (15/16) wrong codes cost H(0.094) + 0.094 · ln 15 = 0.57 nats.
    assert 0.5 < summary["val_nll_nats"] < 0.4 * summary["unigram_entropy_nats"]
    assert summary["unigram_entropy_nats"] <= math.log(16)
    assert summary["unigram_val_nll_nats"] == pytest.approx(summary["unigram_entropy_nats"], rel=0.05)
    assert summary["val_bits_per_code"] == pytest.approx(summary["val_nll_nats"] / math.log(2))
    assert np.mean(summary["val_nll_nats_by_position"]) == pytest.approx(summary["val_nll_nats"])
    prior = load_prior(tmp_path / "run")
    codes = sample_codes(prior, 40, condition=torch.arange(40) % 4, config=SampleConfig(seed=1))
    row, column = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    expected = (4 * (torch.arange(40) % 4)[:, None, None] + row + 2 * column) % 16
    assert (codes == expected).float().mean() > 0.8


def test_a_multiscale_prior_learns_every_scale(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(scales=(1, 2))
    config = replace(TINY, steps=200, condition="class", multiscale=True, eval_every=200, checkpoint_every=200)
    summary = train_prior(config, dataset.path, tmp_path / "run")
    assert len(summary["val_nll_nats_by_position"]) == 1 + 4 + 16
    prior = load_prior(tmp_path / "run")
    classes = torch.arange(40) % 4
    coarse_NT = sample_sequences(prior, 40, condition=classes, config=SampleConfig(seed=1))
    one, two, four = to_grids(prior.sequence, coarse_NT)
    # The coarser grids are every fourth and every second code of the full one, of which a tenth is noise.
    assert (one == four[:, ::4, ::4]).float().mean() > 0.6
    assert (two == four[:, ::2, ::2]).float().mean() > 0.6
    # Given coarse codes, the rest follows them.
    given_NT = given_scales(prior.sequence, [one, two])
    again = sample_codes(prior, 40, condition=classes, given_NT=given_NT)
    assert (again[:, ::2, ::2] == two).float().mean() > 0.6


def test_a_prior_of_any_order_learns_all_orders(dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(TINY, objective="any_order", steps=120, eval_every=120, checkpoint_every=60)
    with interrupted_at(60), pytest.raises(StoppedError):
        train_prior(config, dataset.path, tmp_path / "run")
    summary = train_prior(config, dataset.path, tmp_path / "run")
    prior = load_prior(tmp_path / "run")
    assert prior.sequence.objective == "any_order"
    data, autocast = CodeData.open(dataset, "val", prior.sequence), make_autocast(prior.device, "float32")
    nats = {name: evaluate(prior, data, batch_size=64, autocast=autocast, order=name) for name in ORDER_NAMES}
    assert nats["zcurve"].mean() == pytest.approx(summary["val_nll_nats"], rel=1e-5)
    for name, nll_T in nats.items():
        assert nll_T.mean() < summary["unigram_val_nll_nats"] - 0.2, name
    # By hand: the codes of the shards' own column of an order, at the places of its cells in the prior's order.
    rows = next(dataset.batches("val", ["codes_spiral_out", "cond_segmentation"]))
    codes_BT = torch.from_numpy(rows["codes_spiral_out"].astype(np.int64))
    places = [list(order("zcurve", 4, 4)).index(cell) for cell in order("spiral_out", 4, 4)]
    condition_BC = torch.from_numpy(rows["cond_segmentation"].astype(np.int64)).flatten(1)
    with torch.inference_mode():
        expected = prior.nll(condition_BC, codes_BT, positions_BT=torch.tensor(places).expand(len(codes_BT), 16))
    np.testing.assert_allclose(nats["spiral_out"], expected.mean(dim=0), rtol=1e-4)


def test_bfloat16_learns_the_same(dataset: ShardDataset, finished: Path, tmp_path: Path) -> None:
    summary = train_prior(replace(TINY, precision="bfloat16"), dataset.path, tmp_path / "run")
    expected = json.loads((finished / "summary.json").read_text())
    assert (summary["precision"], expected["precision"]) == ("bfloat16", "float32")
    assert summary["val_nll_nats"] == pytest.approx(expected["val_nll_nats"], rel=0.02)


def test_files_of_a_finished_run(dataset: ShardDataset, finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        ".train-prior.lock",
        "best",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "summary.json",
        "tensorboard",
    ]
    assert [path.name for path in checkpoints(finished)] == ["step-00000012", "step-00000014"]
    run = ckpt.RunConfig.load(finished / "config.json")
    assert run == ckpt.RunConfig(
        train=TINY,
        sequence=sequence_from_dataset(dataset, "zcurve", "segmentation"),
        data=dataset.fingerprint,
    )
    lines = read_metrics(finished)
    assert [line["step"] for line in lines if "train_nll_nats" in line] == [5, 10, 14]
    assert [line["step"] for line in lines if "val_nll_nats" in line] == [4, 8, 12, 14]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["val_nll_nats"] == lines[-1]["val_nll_nats"]
    assert len(summary["val_nll_nats_by_position"]) == 16


def test_loaded_prior_gives_the_summary_s_loss(dataset: ShardDataset, finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for path in (finished, checkpoints(finished)[-1]):
        before = torch.get_rng_state()
        prior = load_prior(path)
        assert torch.equal(torch.get_rng_state(), before)
        assert not prior.training
        data = CodeData.open(dataset, "val", prior.sequence)
        autocast = make_autocast(torch.device("cpu"), "float32")
        nll_T = evaluate(prior, data, batch_size=7, autocast=autocast)
        np.testing.assert_allclose(nll_T, summary["val_nll_nats_by_position"], rtol=1e-5)


@pytest.mark.parametrize("stop_at", [1, 7, 8])
def test_resume_equals_uninterrupted_to_the_bit(
    dataset: ShardDataset, finished: Path, tmp_path: Path, stop_at: int
) -> None:
    """Ctrl-C in the middle of an interval, of an epoch, and at a checkpoint; dropout is on."""
    with interrupted_at(stop_at), pytest.raises(StoppedError):
        train_prior(TINY, dataset.path, tmp_path / "run")
    assert checkpoints(tmp_path / "run")[-1].name == f"step-{stop_at:08d}"
    torch.rand(5)  # another process would not have these random numbers either
    train_prior(TINY, dataset.path, tmp_path / "run")
    assert final_bytes(tmp_path / "run") == final_bytes(finished)
    assert read_metrics(tmp_path / "run") == read_metrics(finished)


def test_a_run_with_muon_resumes_to_the_bit(dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(TINY, optimizer="muon", ema_decay=0.9)
    train_prior(config, dataset.path, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=shutil.ignore_patterns("step-00000014"))
    (tmp_path / "parts" / "summary.json").unlink()
    train_prior(config, dataset.path, tmp_path / "parts")
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
    first, *_, last = (line["train_nll_nats"] for line in read_metrics(tmp_path / "whole") if "train_nll_nats" in line)
    assert last < first
    with pytest.raises(PriorError, match="whole matrices; use adamw"):
        replace(config, parallel="fsdp")


def test_a_crash_between_checkpoints_loses_only_the_steps_since(
    dataset: ShardDataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing_step(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(1)
        if len(steps) == 12:
            raise MemoryError
        return train_step(*args, **kwargs)

    steps: list[int] = []
    monkeypatch.setattr("codeprior.trainer.train_step", crashing_step)
    with pytest.raises(MemoryError):
        train_prior(TINY, dataset.path, tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoints" / ".tmp-step-00000012-1").mkdir()
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4, 5, 8, 10]
    train_prior(TINY, dataset.path, tmp_path / "run")
    assert final_bytes(tmp_path / "run") == final_bytes(finished)
    assert read_metrics(tmp_path / "run") == read_metrics(finished)
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp-*"))


def test_more_steps_continue_a_finished_run(dataset: ShardDataset, tmp_path: Path) -> None:
    long = replace(TINY, steps=20, schedule="constant")
    train_prior(long, dataset.path, tmp_path / "whole")
    short = replace(long, steps=12)
    assert train_prior(short, dataset.path, tmp_path / "parts")["steps"] == 12
    assert train_prior(long, dataset.path, tmp_path / "parts")["steps"] == 20
    assert final_bytes(tmp_path / "parts", 20) == final_bytes(tmp_path / "whole", 20)
    with pytest.raises(PriorError, match=r"steps is 12: .* already at step 20"):
        train_prior(short, dataset.path, tmp_path / "parts")
    assert (tmp_path / "parts" / "summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["steps was 2 and is 3 now: from step 2 on that changes the learning rate (schedule 'cosine'), so"]),
        ({"schedule": "constant"}, []),
        ({"schedule": "constant", "random_order": True}, ["changes the share of permuted sequences (random_order)"]),
    ],
)
def test_other_steps_are_warned_of_where_the_schedule_counts_them(
    dataset: ShardDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: list[str]
) -> None:
    model = ModelConfig(n_layer=1, n_head=2, n_embd=16, target_positions=True)
    config = replace(TINY, model=model, steps=2, **changes)
    train_prior(config, dataset.path, tmp_path / "run")
    with caplog.at_level(logging.WARNING, "codeprior"):
        train_prior(replace(config, steps=3), dataset.path, tmp_path / "run")
        assert len(caplog.messages) == len(words)
        assert all(word in message for word, message in zip(words, caplog.messages, strict=True))
        train_prior(replace(config, steps=3), dataset.path, tmp_path / "run")
        assert len(caplog.messages) == len(words)


def test_a_run_on_decoded_codes_reads_no_shard_again(
    dataset: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train_prior(replace(TINY, steps=1), dataset.path, tmp_path / "first")
    monkeypatch.setattr(ShardDataset, "batches", None)
    found = train_prior(replace(TINY, steps=1), dataset.path, tmp_path / "again")
    for name in ("unigram_entropy_nats", "unigram_val_nll_nats"):
        assert found[name] == expected[name]


def test_a_run_resumes_in_the_precision_that_auto_picked(dataset: ShardDataset, tmp_path: Path) -> None:
    config = replace(TINY, steps=2, precision="auto")
    here = train_prior(config, dataset.path, tmp_path / "run")["precision"]
    other = "float32" if here == "bfloat16" else "bfloat16"
    state = checkpoints(tmp_path / "run")[-1] / "state.json"
    values = json.loads(state.read_text()) | {"precision": other}
    del values["sha256"]
    state.write_text(json.dumps(values))
    assert train_prior(replace(config, steps=3), dataset.path, tmp_path / "run")["precision"] == other


def test_a_complete_run_is_not_run_again(dataset: ShardDataset, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    summary = train_prior(replace(TINY, log_every=1), dataset.path, finished)
    assert summary == json.loads((finished / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_config_or_dataset_is_refused_by_name(dataset, make_dataset, finished: Path) -> None:
    other = replace(TINY, model=replace(TINY.model, n_layer=3), order="alternate")
    with pytest.raises(PriorError) as error:
        train_prior(other, dataset.path, finished)
    assert "train.model.n_layer was 2 and is 3 now" in str(error.value)
    assert "train.order was 'zcurve' and is 'alternate' now" in str(error.value)
    with pytest.raises(PriorError, match="data was"):
        train_prior(TINY, make_dataset(seed=5).path, finished)


def test_no_resume_starts_over(dataset: ShardDataset, tmp_path: Path) -> None:
    train_prior(replace(TINY, steps=4, seed=1), dataset.path, tmp_path / "run")
    train_prior(replace(TINY, steps=4), dataset.path, tmp_path / "run", resume=False)
    train_prior(replace(TINY, steps=4), dataset.path, tmp_path / "fresh")
    assert final_bytes(tmp_path / "run", 4) == final_bytes(tmp_path / "fresh", 4)
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "fresh")


def test_a_loss_that_is_not_finite_stops_with_its_step(dataset: ShardDataset, tmp_path: Path) -> None:
    wild = replace(TINY, learning_rate=1e30, warmup_steps=0, grad_clip=0.0)
    with pytest.raises(PriorError, match=r"the loss is \S+ at step \d .*: lower learning_rate"):
        train_prior(wild, dataset.path, tmp_path / "run")
    assert not checkpoints(tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("non-finite-step-*")
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())
    prior = load_prior(folder)
    assert json.loads((folder / "state.json").read_text())["step"] == int(folder.name.rpartition("-")[2])
    batch = load_file(folder / "batch-rank-0.safetensors")
    assert len(batch["codes_BT"]) == TINY.batch_size
    loss = SequenceLoss(prior)(**batch)
    loss.backward()
    assert not all(parameter.grad.isfinite().all() for parameter in prior.parameters())  # it happens again


def test_a_dataset_without_val_trains(make_dataset, tmp_path: Path) -> None:
    summary = train_prior(replace(TINY, steps=4), make_dataset(rows={"train": 40}).path, tmp_path / "run")
    assert summary["val_nll_nats"] is None
    assert summary["val_rows"] == 0


def test_unfinished_datasets_and_missing_priors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"there are no shards in"):
        train_prior(TINY, tmp_path / "shards", tmp_path / "run")
    with pytest.raises(PriorError, match="holds no prior"):
        load_prior(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 99, "format_version is 99, this code reads 2"),
        (("train", "model", "n_heads"), 2, "n_heads"),
        (("sequence", "codebook_size"), None, "codebook_size"),
        (("train", "order"), "diagonal", "order"),
        (("train", "model", "n_layer"), 0, "n_layer is 0"),
        (("train", "model", "n_layer"), 3, r"lacks blocks\.2\."),
        (("train", "model", "n_layer"), 1, r"has unknown blocks\.1\."),
        (("sequence", "codebook_size"), 17, r"code_embedding.weight is \[16, 32\], expected \[17, 32\]"),
    ],
)
def test_loading_is_strict(finished: Path, tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    config = json.loads((finished / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "summary.json").write_text("{}")
    save_file(load_file(finished / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(PriorError, match=message):
        load_prior(tmp_path)


def test_damaged_weights_are_a_user_error(finished: Path, tmp_path: Path) -> None:
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((finished / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(PriorError, match="cannot be read"):
        load_prior(tmp_path)


def test_whole_numbers_in_a_config_survive_json(tmp_path: Path, dataset: ShardDataset) -> None:
    config = replace(TINY, steps=2, grad_clip=1, betas=(0, 0.95))
    train_prior(config, dataset.path, tmp_path / "run")
    assert ckpt.RunConfig.load(tmp_path / "run" / "config.json").train == config


def test_an_attention_that_this_machine_lacks_is_refused_before_the_first_step(
    dataset: ShardDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codeprior.trainer.train_step", lambda *_, **__: pytest.fail("a step was done"))
    config = replace(TINY, model=replace(TINY.model, attention="xformers"))
    with pytest.raises(PriorError, match="attention = 'xformers' runs on NVIDIA GPUs only"):
        train_prior(config, dataset.path, tmp_path / "run")


def test_measuring_a_device_draws_none_of_the_random_numbers() -> None:
    before = torch.get_rng_state()
    assert speed.measured_flops.__wrapped__("cpu", "float32") > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_precision_is_decided_by_the_machine() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == "float32"
    assert resolve_precision("auto", cpu) in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0: use at least 1"),
        ({"order": "diagonal"}, "choose one of row_major, spiral_out, zcurve, subsample, alternate"),
        ({"condition": "caption"}, "choose one of none, class, segmentation, depth, pose"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9, 0.95, 0.99)}, r"betas is \(0.9, 0.95, 0.99\): pass 2 values"),
        ({"parallel": "fsdp2"}, "parallel is 'fsdp2': did you mean fsdp"),
        ({"loader": "mmap"}, "loader is 'mmap': choose one of memory_map, stream"),
        ({"views": "two"}, "views is 'two': choose one of all, one"),
        ({"schedule": "linear"}, "schedule is 'linear': choose one of cosine, constant"),
        ({"precision": "bf16"}, "precision is 'bf16': choose one of auto, float32, bfloat16"),
        ({"device": "gpu"}, "device is 'gpu': choose one of auto, cpu, cuda"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"final_fraction": 2.0}, "final_fraction"),
    ],
)
def test_training_configs_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        TrainConfig(**changes)


# Stage 2 must train where nothing that knows pixels is installed.
TRAIN_WITHOUT_PIXELS = """
import sys
from pathlib import Path

BLOCKED = {"PIL", "torchvision", "vqgan", "lpips", "ray", "imagepriors"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import torch
from codeprior.checkpoint import load_prior
from codeprior.config import ModelConfig, TrainConfig
from codeprior.sample import sample_codes
from codeprior.train import train_prior
from runkit.signals import StoppedError, exit_when_stopped

exit_when_stopped()

steps = int(sys.argv[3])
config = TrainConfig(
    model=ModelConfig(n_layer=1, n_head=2, n_embd=16), batch_size=8, steps=steps, condition="class",
    precision="float32", device="cpu", log_every=1, checkpoint_every=10**9, eval_every=10**9,
)
try:
    train_prior(config, Path(sys.argv[1]), Path(sys.argv[2]))
except StoppedError as stopped:
    sys.exit(stopped.exit_code)
codes = sample_codes(load_prior(sys.argv[2]), 2, condition=torch.tensor([0, 1]))
assert codes.shape == (2, 4, 4) and not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""


def test_it_trains_and_samples_with_pixel_packages_blocked(dataset: ShardDataset, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", TRAIN_WITHOUT_PIXELS, str(dataset.path), str(tmp_path / "run"), "4"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_sigterm_saves_a_checkpoint_from_which_training_resumes(dataset: ShardDataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [sys.executable, "-c", TRAIN_WITHOUT_PIXELS, str(dataset.path), str(run)]
    started = subprocess.Popen([*arguments, "1000000"], stderr=subprocess.PIPE, text=True)
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(2):  # Slurm's and torchrun's
        started.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGTERM, errors
    assert "the same command resumes there" in errors
    assert "Traceback" not in errors
    saved = checkpoints(run)
    assert len(saved) == 1
    step = int(saved[0].name.removeprefix("step-"))
    assert not (run / "summary.json").exists()
    assert load_prior(run).parameter_count > 0
    resumed = subprocess.run([*arguments, str(step + 3)], capture_output=True, text=True, env=os.environ)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "summary.json").read_text())["steps"] == step + 3
    assert [line["step"] for line in read_metrics(run) if "lr" in line] == list(range(1, step + 4))


def test_a_signal_ends_an_evaluation_with_a_checkpoint(
    dataset: ShardDataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, checkpoint_every=100)
    with monkeypatch.context() as patched:
        patched.setattr(train, "checked", lambda *batch: signal.raise_signal(signal.SIGTERM) or checked(*batch))
        with pytest.raises(StoppedError):
            train_prior(config, dataset.path, tmp_path)
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004"]
        with pytest.raises(StoppedError):  # it resumes with the evaluation of that step
            train_prior(config, dataset.path, tmp_path)
    assert not (tmp_path / "best").exists()
    train_prior(config, dataset.path, tmp_path)
    assert read_metrics(tmp_path) == read_metrics(finished)
    assert final_bytes(tmp_path) == final_bytes(finished)


def test_temporary_files_of_a_killed_run_are_removed(dataset: ShardDataset, tmp_path: Path) -> None:
    train_prior(replace(TINY, steps=1), dataset.path, tmp_path)
    folders = [".tmp-best", ".best.tmp-1-ab", "checkpoints/.tmp-step-00000004-1", "checkpoints/.step-00000004.tmp-1-ab"]
    left = [tmp_path / name for name in (*folders, ".model.safetensors.tmp-1-ab")]
    for folder in left[:-1]:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    left[-1].write_bytes(b"half")
    others = [tmp_path / ".tmp-mine", tmp_path / ".notes.txt.tmp-1-ab"]
    for path in others:
        path.write_text("not of a training")
    train_prior(replace(TINY, steps=2), dataset.path, tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(("name", "tflops"), [("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989),
                                              ("NVIDIA GH200 480GB", 989), ("NVIDIA RTX A1000", 0)])  # fmt: skip
def test_the_peak_is_that_of_the_named_gpu(name: str, tflops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(speed, "measured_flops", lambda *_: 0.0)
    assert speed.peak_flops(torch.device("cuda"), "bfloat16") == tflops * 1e12
