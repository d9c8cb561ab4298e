"""Blends: exact proportions at every prefix, exact shuffles of every dataset, exact resume, any number of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts import interrupted_at
from tiny_shards import SPEC
from tiny_shards import make_dataset as make_tiny

from codeprior.blend import Blend, absolute_shards, rows_per_cycle, schedule
from codeprior.checkpoint import checkpoints, load_prior
from codeprior.config import ModelConfig, PriorError, TrainConfig
from codeprior.data import Batch, Batches, CodeBatches, CodeData
from codeprior.plan import plan_training
from codeprior.train import evaluate, train_prior
from codeshards.format import ShardDataset
from runkit.devices import make_autocast
from runkit.signals import StoppedError

CONFIG = TrainConfig(
    model=ModelConfig(n_layer=1, n_head=2, n_embd=16, dropout=0.1), condition="class", cond_dropout=0.2, batch_size=16,
    steps=14, warmup_steps=4, precision="float32", device="cpu", log_every=5, eval_every=7, checkpoint_every=6,
    shuffle_rows=100,
)  # fmt: skip
SCRIPT = """
import json, sys
from pathlib import Path
import dacite
from codeprior.config import TrainConfig
from codeprior.train import train_prior
from runkit.ranks import process_group

with process_group():
    for out, config in json.loads(Path("runs.json").read_text()).items():
        config = dacite.from_dict(TrainConfig, config, dacite.Config(cast=[tuple]))
        train_prior(config, json.loads(sys.argv[1]), out)
"""
LOADERS = pytest.mark.parametrize("loader", ["memory_map", "stream"])


def batches_of(shards: Any, rank: int = 0, world_size: int = 1, **changes: Any) -> Batches:
    config = replace(CONFIG, **changes)
    blend = Blend.open(shards)
    return blend.batches(config, blend.sequence(config), rank=rank, world_size=world_size)


def numbers(batch: Batch) -> list[int]:
    return (batch.codes_BT[:, -4:] @ torch.tensor([4096, 256, 16, 1])).tolist()


def drawn(batches: Batches, steps: int) -> list[int]:
    return [number for _ in range(steps) for number in numbers(next(batches))]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=7))
@settings(max_examples=60, deadline=None)
def test_every_prefix_has_the_proportions_to_within_a_row(weights: list[int]) -> None:
    parts = rows_per_cycle({str(number): weight for number, weight in enumerate(weights)})
    order = np.tile(schedule(parts), 2)
    lengths = np.arange(1, len(order) + 1)
    for number, weight in enumerate(weights):
        off = np.cumsum(order == number) - lengths * weight / sum(weights)
        assert np.abs(off).max() < 1


def test_weights_become_whole_rows() -> None:
    assert rows_per_cycle({"a": 0.7, "b": 0.3}) == (7, 3)
    assert rows_per_cycle({"a": 2, "b": 2.0, "c": np.float64(4)}) == (1, 1, 2)
    parts = rows_per_cycle({"a": 1_281_167, "b": 118_287})  # an exact cycle would have 1.4 million rows
    assert sum(parts) <= 100_000
    assert parts[0] / sum(parts) == pytest.approx(1_281_167 / 1_399_454, abs=1e-5)
    with pytest.raises(PriorError, match=r"the weight of b is 1e-09, less than 1 row of 100,000"):
        rows_per_cycle({"a": 1, "b": 1e-9})


@LOADERS
def test_rows_are_in_proportion_and_every_dataset_is_shuffled_exactly(pair: dict[Path, float], loader: str) -> None:
    batches = batches_of(pair, loader=loader)
    assert batches.batches_per_epoch == 290 // 16
    found = np.array(drawn(batches, 4 * batches.batches_per_epoch))
    second = found >= 1000
    lengths = np.arange(1, len(found) + 1)
    assert np.abs(np.cumsum(second) - 0.3 * lengths).max() < 1
    assert len(found) == 1152
    for rows, everything in ((found[~second], range(200)), (found[second], range(1000, 1090))):
        size = len(everything)
        epochs = [rows[start : start + size].tolist() for start in range(0, len(rows) - size + 1, size)]
        assert len(epochs) >= 3
        assert all(sorted(epoch) == list(everything) for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))


@LOADERS
@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    pair: dict[Path, float], loader: str, world_size: int
) -> None:
    ranks = [batches_of(pair, rank, world_size, loader=loader) for rank in range(world_size)]
    single = batches_of(pair, loader=loader)
    for _ in range(40):
        assert [number for rank in ranks for number in numbers(next(rank))] == numbers(next(single))
    assert sum(len(codes) for rank in ranks for codes in rank.codes()) == 290


@LOADERS
def test_it_resumes_anywhere_without_a_replay(pair: dict[Path, float], loader: str) -> None:
    one, other = batches_of(pair, loader=loader), batches_of(pair, loader=loader)
    drawn(one, 23)
    other.load_state_dict(one.state_dict())
    assert drawn(other, 30) == drawn(one, 30)
    other.load_state_dict({**one.state_dict(), "step": 10**12})
    assert len(drawn(other, 1)) == 16
    assert drawn(batches_of(pair, loader=loader, seed=1), 23) != drawn(batches_of(pair, loader=loader), 23)
    first, second = pair
    with pytest.raises(PriorError, match=r"data was 'blend of 7/10 .* and is 'blend of 3/5 "):
        batches_of({first: 6, second: 4}, loader=loader).load_state_dict(one.state_dict())


@LOADERS
def test_one_view_of_each_sample_is_drawn_in_each_epoch(make_dataset, loader: str) -> None:
    options = {"views": 2, "shard_rows": 30}
    made = [make_dataset(f"{n}", rows={"train": n}, first_number=100 * n, **options) for n in (80, 40)]
    batches = batches_of({one.path: 1 for one in made}, loader=loader, views="one")
    assert batches.epoch_rows == 120
    # Of 160 rows in equal parts, every sample of the first dataset is drawn once, and of the second twice.
    found = np.array(drawn(batches, 10))
    large, small = found[found >= 8000] - 8000, found[found < 8000] - 4000
    assert np.bincount(large // 2).tolist() == [1] * 80
    assert np.bincount(small // 2).tolist() == [2] * 40
    assert 0.2 < np.mean(large % 2) < 0.8


@LOADERS
@pytest.mark.parametrize("stop_at", [7, 12])
def test_resume_equals_uninterrupted_to_the_bit(
    pair: dict[Path, float], tmp_path: Path, loader: str, stop_at: int
) -> None:
    """Stopped in the middle of an interval, and at a checkpoint; dropout and dropped conditions are on."""
    config = replace(CONFIG, loader=loader)
    train_prior(config, pair, tmp_path / "whole")
    with interrupted_at(stop_at), pytest.raises(StoppedError):
        train_prior(config, pair, tmp_path / "parts")
    assert checkpoints(tmp_path / "parts")[-1].name == f"step-{stop_at:08d}"
    train_prior(config, pair, tmp_path / "parts")
    for name in ("model.safetensors", "config.json", "checkpoints/step-00000014/state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def curve(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("tokens_per_s", "mfu")} for line in lines]


def test_two_processes_give_the_curve_of_one(pair: dict[Path, float], tmp_path: Path) -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, dropout=0.0))
    runs = {loader: replace(config, loader=loader) for loader in ("memory_map", "stream")}
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "runs.json").write_text(json.dumps({name: asdict(run) for name, run in runs.items()}))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    shards = json.dumps({str(path): weight for path, weight in pair.items()})
    done = subprocess.run([*start, shards], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, run in runs.items():
        summary = train_prior(run, pair, tmp_path / "one" / name)
        for line, expected in zip(curve(tmp_path / name), curve(tmp_path / "one" / name), strict=True):
            assert line == pytest.approx(expected, rel=2e-4)
        two = json.loads((tmp_path / name / "summary.json").read_text())
        assert (two["processes"], two["blend"]) == (2, summary["blend"])
        assert two["unigram_entropy_nats"] == pytest.approx(summary["unigram_entropy_nats"])


def test_the_summary_has_every_dataset_and_their_weighted_loss(pair: dict[Path, float], tmp_path: Path) -> None:
    summary = train_prior(CONFIG, pair, tmp_path / "run")
    prior, losses = load_prior(tmp_path / "run"), []
    for number, path in enumerate(pair, start=1):
        data = CodeData.open(ShardDataset.open(path), "val", prior.sequence)
        nll_T = evaluate(prior, data, batch_size=9, autocast=make_autocast(torch.device("cpu"), "float32"))
        losses.append(float(nll_T.mean()))
        assert summary[f"val_nll_nats_{number}"] == pytest.approx(losses[-1], rel=1e-5)
    assert summary["val_nll_nats"] == pytest.approx(0.7 * losses[0] + 0.3 * losses[1], rel=1e-5)
    assert (summary["train_rows"], summary["val_rows"]) == (290, 70)
    assert [part["shards"] for part in summary["blend"]] == [str(path) for path in pair]
    assert [part["proportion"] for part in summary["blend"]] == [0.7, 0.3]
    assert [part["epochs"] for part in summary["blend"]] == pytest.approx([0.7 * 224 / 200, 0.3 * 224 / 90])
    text = str(plan_training(replace(CONFIG, steps=20), pair, tmp_path / "run"))
    assert "70.00%" in text
    assert "from step 14" in text


def test_a_dataset_without_a_val_split_is_not_in_the_loss(pair: dict[Path, float], make_dataset, tmp_path) -> None:
    first, _ = pair
    other = make_dataset(rows={"train": 60}, first_number=2000)
    summary = train_prior(CONFIG, {first: 1, other.path: 3}, tmp_path / "run")
    assert summary["val_nll_nats"] == summary["val_nll_nats_1"]
    assert "val_nll_nats_2" not in summary


@LOADERS
def test_datasets_in_an_object_store_blend_with_local_ones(
    s3: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    monkeypatch.setenv("IMAGEPRIORS_CACHE", str(tmp_path / "cache"))
    for place, seed in ((tmp_path / "a", 1), (tmp_path / "b", 5), ("s3://bucket/b", 5)):
        make_tiny(place, rows=20, seed=seed)
    options = {"condition": "none", "cond_dropout": 0.0, "loader": loader}
    remote, local = (
        batches_of(absolute_shards({tmp_path / "a": 3, second: 1}), **options)
        for second in ("s3://bucket/b", tmp_path / "b")
    )
    assert all(torch.equal(next(remote).codes_BT, next(local).codes_BT) for _ in range(6))


def test_another_blend_does_not_resume(pair: dict[Path, float], make_dataset, tmp_path: Path) -> None:
    first, second = pair
    train_prior(CONFIG, pair, tmp_path / "run")
    assert train_prior(CONFIG, {str(first): 7, str(second): 3}, tmp_path / "run")["steps"] == 14
    for other in ({first: 0.6, second: 0.4}, first, {first: 0.7, make_dataset("c", seed=9).path: 0.3}):
        with pytest.raises(PriorError, match="data was 'blend of 7/10"):
            train_prior(CONFIG, other, tmp_path / "run")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), True, "0.5"])
def test_weights_that_are_no_positive_numbers_are_refused(pair: dict[Path, float], weight: Any) -> None:
    first, second = pair
    with pytest.raises(PriorError) as error:
        Blend.open({first: 1, second: weight})
    assert f"the weight of {second} is {weight!r}: use a positive number" in str(error.value)


def test_the_same_dataset_and_a_single_one_are_refused(pair: dict[Path, float], tmp_path: Path) -> None:
    first, _ = pair
    (tmp_path / "link").symlink_to(first)
    with pytest.raises(PriorError, match=r"are the same dataset: give it once"):
        Blend.open({first: 1, tmp_path / "link": 1})
    with pytest.raises(PriorError, match="a blend of 1 datasets: give several, or the path of one without a weight"):
        Blend.open({first: 1.0})


@pytest.mark.parametrize(
    ("options", "config", "words"),
    [
        ({"orders": ("row_major",)}, {"order": "zcurve"}, ("order: the prior requires zcurve",)),
        ({"pictures": ("depth",)}, {"condition": "segmentation"}, ("condition segmentation: the shards have depth",)),
        ({"class_names": ("ant", "bee", "cat", "elk")}, {}, ("classes: the prior requires 4 (ant",)),
        ({"labelled": False}, {}, ("no class labels",)),
    ],
)
def test_datasets_that_differ_are_refused(pair: dict[Path, float], make_dataset, options, config, words) -> None:
    first, other = next(iter(pair)), make_dataset("other", seed=3, **options)
    config = replace(CONFIG, cond_dropout=0.0, **config)
    with pytest.raises(PriorError) as error:
        Blend.open({first: 1, other.path: 1}).sequence(config)
    assert str(other.path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_another_tokenizer_grid_and_codebook_are_refused_by_name(tmp_path: Path) -> None:
    image = replace(SPEC.image, height=8, codebook_size=60, fingerprint="other")
    make_tiny(tmp_path / "a")
    make_tiny(tmp_path / "b", spec=replace(SPEC, image=replace(image, height=4)), seed=5)
    with pytest.raises(PriorError) as error:
        Blend.open({tmp_path / "a": 1, tmp_path / "b": 1}).sequence(replace(CONFIG, condition="none", cond_dropout=0))
    for words in (f"{tmp_path / 'a'} and {tmp_path / 'b'} cannot be blended", "codebook_size: the prior requires 50",
                  "tokenizer: the prior requires image-tokenizer, the shards have other"):  # fmt: skip
        assert words in str(error.value)


def test_classes_without_names_are_those_of_all_datasets(make_dataset) -> None:
    named = make_dataset("named")
    unnamed = make_dataset("unnamed", class_names=(), seed=2)
    for shards in ((named, unnamed), (unnamed, named)):
        sequence = Blend.open({one.path: 1 for one in shards}).sequence(CONFIG)
        assert sequence.class_names == ("ant", "bee", "cat", "dog")
        assert sequence.conditions[0].vocabulary == 4


def test_a_single_dataset_has_the_batches_and_the_state_of_its_own(dataset: ShardDataset) -> None:
    blend = Blend.open(dataset.path)
    assert (blend.fingerprint, blend.splits, blend.rows("train")) == (dataset.fingerprint, ("train", "val"), 200)
    found = batches_of(dataset.path)
    data = CodeData.open(dataset, "train", blend.sequence(CONFIG))
    alone = CodeBatches(data, batch_size=16, seed=0)
    assert [numbers(next(found)) for _ in range(30)] == [numbers(next(alone)) for _ in range(30)]
    state = {"step": 30, "seed": 0, "batch_size": 16, "data": f"{dataset.fingerprint}/train"}
    assert found.state_dict() == alone.state_dict() == state
