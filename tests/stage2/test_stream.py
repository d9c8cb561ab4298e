"""The stream: an exact shuffle of every epoch, resumable anywhere, the same for every world size, flat in memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.config import PriorError
from codeprior.data import CodeBatches, CodeData, draw_views, sample_starts, sequence_from_dataset
from codeprior.stream import StreamBatches
from codeshards.format import ShardDataset


def stream(dataset: ShardDataset, condition: str = "class+segmentation", **options: object) -> StreamBatches:
    sequence = sequence_from_dataset(dataset, "zcurve", condition)
    defaults = {"shuffle_rows": 100, "batch_size": 16, "seed": 3}
    return StreamBatches(dataset, "train", sequence, **(defaults | options))


def rows(batches: StreamBatches | CodeBatches, steps: int) -> list[tuple[int, ...]]:
    found = [next(batches) for _ in range(steps)]
    joined = [torch.cat((batch.condition_BC, batch.codes_BT), dim=1) for batch in found]
    return [tuple(row) for row in torch.cat(joined).tolist()]


def test_an_epoch_holds_every_row_once_and_epochs_differ(dataset: ShardDataset) -> None:
    sequence = sequence_from_dataset(dataset, "zcurve", "class+segmentation")
    data = CodeData.open(dataset, "train", sequence)
    everything = rows(CodeBatches(data, batch_size=1, seed=0), data.rows)
    batches = stream(dataset, batch_size=1)
    first, second = rows(batches, data.rows), rows(batches, data.rows)
    assert sorted(first) == sorted(second) == sorted(everything)
    assert first != second
    assert len(batches.windows(0)) == 2  # whole shards of 60, 60, 60 and 20 rows, at least 100 to a window


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_do_not_depend_on_the_world_size(dataset: ShardDataset, world_size: int) -> None:
    ranks = [stream(dataset, rank=rank, world_size=world_size) for rank in range(world_size)]
    single = stream(dataset)
    for _ in range(2 * single.batches_per_epoch):
        parts = [next(rank).codes_BT for rank in ranks]
        assert torch.equal(torch.cat(parts), next(single).codes_BT)


def test_it_resumes_anywhere_without_a_replay(dataset: ShardDataset) -> None:
    one = stream(dataset)
    rows(one, 17)
    other = stream(dataset)
    other.load_state_dict(one.state_dict())
    assert rows(other, 20) == rows(one, 20)
    other.load_state_dict({**one.state_dict(), "step": 10**12})
    assert len(rows(other, 1)) == 16
    with pytest.raises(PriorError, match="shuffle_rows was 100 and is 10 now"):
        stream(dataset, shuffle_rows=10).load_state_dict(one.state_dict())


@pytest.mark.parametrize("loader", ["memory_map", "stream"])
def test_one_view_of_each_sample_is_drawn_every_epoch(make_dataset, loader: str) -> None:
    dataset = make_dataset(rows={"train": 80, "val": 4}, views=2, shard_rows=30)
    sequence = sequence_from_dataset(dataset, "zcurve", "none")
    options = {"batch_size": 8, "seed": 1}
    batches: StreamBatches | CodeBatches
    if loader == "stream":
        batches = StreamBatches(dataset, "train", sequence, shuffle_rows=20, views=True, **options)
    else:
        batches = CodeBatches(CodeData.open(dataset, "train", sequence, views=True), **options)
    assert batches.batches_per_epoch == 10
    codes_NT = CodeData.open(dataset, "train", sequence).grids_NT[0]
    of_row: dict[tuple[int, ...], list[int]] = {}
    for i, codes in enumerate(codes_NT):
        of_row.setdefault((0, *map(int, codes)), []).append(i)
    unique = {row: i[0] for row, i in of_row.items() if len(i) == 1}  # some of the toy pictures are equal
    whole = [sample for sample in range(80) if {2 * sample, 2 * sample + 1} <= set(unique.values())]
    assert len(whole) > 20
    epochs = [[unique[row] for row in rows(batches, 10) if row in unique] for _ in range(3)]
    for epoch in epochs:
        drawn = [row for row in epoch if row // 2 in whole]
        assert sorted(row // 2 for row in drawn) == whole
        assert 0.2 < sum(row % 2 for row in drawn) / len(drawn) < 0.8
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 3


def test_views_of_uneven_samples() -> None:
    starts = sample_starts(np.array([0, 1, 2, 0, 0, 1], np.uint8))
    assert starts.tolist() == [0, 3, 4, 6]
    drawn = np.array([draw_views(starts, 0, epoch) for epoch in range(200)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2], [3], [4, 5]]
    with pytest.raises(PriorError, match="first row is not a view 0"):
        sample_starts(np.array([1, 0], np.uint8))


def test_shards_of_another_tokenizer_are_refused_by_what_differs(make_dataset) -> None:
    dataset = make_dataset(orders=("row_major", "zcurve"))
    sequence = sequence_from_dataset(dataset, "zcurve", "class+segmentation")
    part = replace(sequence.conditions[1], fingerprint="other-masks")
    other = replace(sequence, fingerprint="other", codebook_size=99, order="alternate", height=8)
    other = replace(other, conditions=(sequence.conditions[0], part), class_names=("cat", *sequence.class_names[1:]))
    with pytest.raises(PriorError) as error:
        CodeData.open(dataset, "train", other)
    for words in ("grid: the prior requires 8×4, the shards have 4×4", "codebook_size: the prior requires 99",
                  "alternate", "tokenizer: the prior requires other, the shards have image-tokenizer", "other-masks",
                  f"classes: the prior requires {len(other.class_names)} (cat, "):  # fmt: skip
        assert words in str(error.value)


def resident_mib() -> float:
    """What this process holds now: its highest mark would hide growth below what an earlier test held."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def growth_mib(batches: StreamBatches | CodeBatches, steps: int) -> float:
    for _ in range(steps // 10):
        next(batches)
    before = resident_mib()
    for _ in range(steps):
        next(batches)
    return resident_mib() - before


@pytest.mark.parametrize("steps", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loader", ["memory_map", "stream"])
def test_memory_is_flat(dataset: ShardDataset, loader: str, steps: int) -> None:
    """A leak of one batch (4.6 kB) a step would show as 14 MiB in 3,000 steps, as 450 MiB in 100,000."""
    sequence = sequence_from_dataset(dataset, "zcurve", "class")
    if loader == "stream":
        batches: StreamBatches | CodeBatches = stream(dataset, "class", batch_size=32)
    else:
        batches = CodeBatches(CodeData.open(dataset, "train", sequence), batch_size=32, seed=0)
    assert growth_mib(batches, steps) < 8
