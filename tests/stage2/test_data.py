"""The loader: exact, resumable, the same for every world size, and safe to start many times."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeprior import cache
from codeprior.cache import memory_map
from codeprior.config import PriorError, SequenceSpec
from codeprior.data import CodeBatches, CodeData, checked, epoch_permutation, sequence_from_dataset
from codeprior.stream import StreamBatches
from codeprior.unigram import code_counts, entropy_nats, unigram_nll_nats
from codeshards.format import ORDER_NAMES, ShardDataset, ShardError, order


def toy_data(rows: int) -> CodeData:
    """Row i is the code i, four times."""
    codes = np.repeat(np.arange(rows, dtype=np.uint16)[:, None], 4, axis=1)
    sequence = SequenceSpec(height=2, width=2, codebook_size=rows, order="row_major", fingerprint="toy")
    return CodeData(sequence=sequence, grids_NT=(codes,), conditions_NC=(), identity="toy")


@pytest.mark.parametrize("name", ORDER_NAMES)
def test_memory_map_is_the_column_of_the_shards(dataset: ShardDataset, name: str) -> None:
    mapped = memory_map(dataset, "train", f"codes_{name}")
    read = np.concatenate([b[f"codes_{name}"] for b in dataset.batches("train", [f"codes_{name}"])])
    assert mapped.dtype == np.uint16
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, read)
    raster = memory_map(dataset, "train", "codes_row_major")
    np.testing.assert_array_equal(mapped, raster[:, order(name, 4, 4)])


@pytest.mark.parametrize(
    ("condition", "length", "vocabulary"),
    [
        ("none", 1, []), ("class", 1, [4]), ("segmentation", 4, [6]), ("depth", 4, [5]), ("pose", 4, [7]),
        ("class+depth+pose", 9, [4, 5, 7]),
    ],
)  # fmt: skip
def test_sequence_and_batches_of_each_condition(
    dataset: ShardDataset, condition: str, length: int, vocabulary: list[int]
) -> None:
    sequence = sequence_from_dataset(dataset, "zcurve", condition)
    assert (sequence.condition_length, [part.vocabulary for part in sequence.conditions]) == (length, vocabulary)
    assert sequence.class_names == (("ant", "bee", "cat", "dog") if "class" in condition else ())
    data = CodeData.open(dataset, "val", sequence)
    batch = data.take(np.array([3, 0]))
    assert batch.codes_BT.dtype == batch.condition_BC.dtype == torch.int64
    np.testing.assert_array_equal(batch.codes_BT, memory_map(dataset, "val", "codes_zcurve")[[3, 0]])
    columns = ["label" if part.name == "class" else f"cond_{part.name}" for part in sequence.conditions]
    parts = [memory_map(dataset, "val", column)[[3, 0]].reshape(2, -1) for column in columns] or [np.zeros((2, 1))]
    np.testing.assert_array_equal(batch.condition_BC, np.concatenate(parts, axis=1))


def test_unnamed_classes_are_counted(make_dataset) -> None:
    sequence = sequence_from_dataset(make_dataset(class_names=()), "row_major", "class")
    assert (sequence.conditions[0].vocabulary, sequence.class_names) == (4, ())


@given(rows=st.integers(1, 200), batch=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_is_an_exact_shuffle_without_the_tail(rows: int, batch: int, seed: int) -> None:
    batch = min(batch, rows)
    batches = CodeBatches(toy_data(rows), batch_size=batch, seed=seed)
    seen = [next(batches) for _ in range(batches.batches_per_epoch)]
    codes = torch.cat([b.codes_BT[:, 0] for b in seen])
    assert all(len(b.codes_BT) == batch for b in seen)
    assert len(codes) == rows - rows % batch
    assert len(set(codes.tolist())) == len(codes)
    assert set(codes.tolist()) <= set(range(rows))


def test_epochs_and_seeds_differ_but_repeat() -> None:
    a, b, c = epoch_permutation(100, 7, 0), epoch_permutation(100, 7, 1), epoch_permutation(100, 8, 0)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, c)
    np.testing.assert_array_equal(a, epoch_permutation(100, 7, 0))
    # Golden: a resumed run must find the same batches after any upgrade of numpy.
    assert epoch_permutation(8, 0, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_world_size(world_size: int) -> None:
    ranks = [
        CodeBatches(toy_data(50), batch_size=12, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    single = CodeBatches(toy_data(50), batch_size=12, seed=3)
    for _ in range(10):
        parts = [next(rank).codes_BT for rank in ranks]
        assert len({len(part) for part in parts}) == 1
        assert torch.equal(torch.cat(parts), next(single).codes_BT)


def test_resume_continues_exactly_and_takes_the_same_time_anywhere() -> None:
    one = CodeBatches(toy_data(50), batch_size=8, seed=1)
    for _ in range(9):
        next(one)
    other = CodeBatches(toy_data(50), batch_size=8, seed=1)
    other.load_state_dict(one.state_dict())
    for _ in range(8):
        assert torch.equal(next(other).codes_BT, next(one).codes_BT)
    # O(1): a replay of 10^15 steps would never end.
    other.load_state_dict({**one.state_dict(), "step": 10**15})
    assert len(next(other).codes_BT) == 8


def test_resume_refuses_another_loader() -> None:
    state = CodeBatches(toy_data(50), batch_size=8, seed=1).state_dict()
    with pytest.raises(PriorError, match="seed was 1 and is 2"):
        CodeBatches(toy_data(50), batch_size=8, seed=2).load_state_dict(state)


@pytest.mark.parametrize("loader", ["memory_map", "stream"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_ranks_together_count_every_code_once(
    make_dataset, monkeypatch: pytest.MonkeyPatch, loader: str, world_size: int
) -> None:
    monkeypatch.setattr("codeprior.data._PIECE_ROWS", 30)
    dataset = make_dataset(scales=(1, 2))
    sequence = sequence_from_dataset(dataset, "zcurve", "none", scales=True)
    data, parts = CodeData.open(dataset, "train", sequence), []
    for rank in range(world_size):
        options = {"batch_size": 12, "seed": 0, "rank": rank, "world_size": world_size}
        streamed = StreamBatches(dataset, "train", sequence, shuffle_rows=100, **options)
        batches = streamed if loader == "stream" else CodeBatches(data, **options)
        parts.append(code_counts(batches.codes(), 16))
        assert parts[-1].any()
    expected = [np.bincount(memory_map(dataset, "train", name).ravel(), minlength=16) for name in sequence.columns]
    np.testing.assert_array_equal(sum(parts), sum(expected))


def test_coarse_grids_stay_on_disk_and_are_put_in_order_as_they_are_taken(make_dataset) -> None:
    dataset = make_dataset(scales=(1, 2))
    sequence = sequence_from_dataset(dataset, "alternate", "none", scales=True)
    data, rows = CodeData.open(dataset, "train", sequence), np.array([5, 3])
    assert not any(grid.flags.writeable for grid in data.grids_NT)  # a copy in memory would be
    one, two, four = (memory_map(dataset, "train", name)[rows] for name in sequence.columns)
    np.testing.assert_array_equal(data.take(rows).codes_BT, np.concatenate((one, two[:, [0, 1, 3, 2]], four), axis=1))


def test_unigram_measures_agree_with_a_loop() -> None:
    train, val = np.array([3, 1, 0]), np.array([1, 0, 1])
    assert entropy_nats(train) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert unigram_nll_nats(train, val) == pytest.approx(-(np.log(4 / 7) + np.log(1 / 7)) / 2)


BUILD = """
import sys
from codeprior import cache
from codeprior.cache import memory_map
from codeshards.format import ShardDataset
print(int(memory_map(ShardDataset.open(sys.argv[1]), "train", "codes_zcurve").sum()))
"""


def test_concurrent_starters_all_read_a_whole_cache(make_dataset) -> None:
    dataset = make_dataset(rows={"train": 3000, "val": 10})
    run = [sys.executable, "-c", BUILD, str(dataset.path)]
    starters = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {starter.communicate(timeout=120)[0] for starter in starters}
    assert sums == {f"{memory_map(dataset, 'train', 'codes_zcurve').sum()}\n"}
    assert [path.suffix for path in (dataset.path.local / ".cache").iterdir()] == [".npy"]


def test_temporary_files_of_killed_processes_are_removed_and_those_of_live_ones_kept(make_dataset) -> None:
    dataset = make_dataset()
    folder = dataset.path.local / ".cache"
    folder.mkdir()
    half, live, other = (
        folder / f".{name}.tmp-1-ab" for name in ("train-codes_zcurve-0.npy", "val-view-1.npy", "notes")
    )
    for path in (half, live, other):
        path.write_bytes(b"half")
    for path in (half, other):
        os.utime(path, (0, time.time() - 2 * 3600))
    memory_map(dataset, "train", "codes_zcurve")
    assert (half.exists(), live.exists(), other.exists()) == (False, True, True)


def test_a_column_that_another_machine_finished_first_is_kept(make_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset()
    column = memory_map(dataset, "train", "codes_zcurve").copy()
    (path,) = (dataset.path.local / ".cache").iterdir()
    first = path.stat().st_ino
    cache._decode(dataset, "train", "codes_zcurve", path)  # as where no lock holds between machines
    assert [path] == list(path.parent.iterdir())
    assert path.stat().st_ino == first
    path.unlink()
    monkeypatch.setattr(cache.os, "link", mock.Mock(side_effect=OSError("no hard links here")))
    assert (memory_map(dataset, "train", "codes_zcurve") == column).all()
    assert [path] == list(path.parent.iterdir())


def test_who_waits_for_another_decoder_says_so(make_dataset, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset()
    folder = dataset.path.local / ".cache"
    folder.mkdir()
    descriptor, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + 30
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with caplog.at_level(logging.INFO, "codeprior.cache"):
        starter = threading.Thread(target=memory_map, args=(dataset, "train", "codes_zcurve"))
        starter.start()
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not list(folder.iterdir())
        os.close(descriptor)
        starter.join(30)
    assert caplog.messages == [f"waiting for another process to decode codes into {folder}"]
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("formats", [("parquet",), ("webdataset",)])
def test_a_flipped_byte_is_never_decoded(make_dataset, formats: tuple[str, ...]) -> None:
    dataset = make_dataset(formats=formats)
    file = dataset.file_of("train", dataset.shards("train")[1])
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    assert file.local
    file.local.write_bytes(content)
    with pytest.raises(ShardError, match=re.escape(f"{file} is missing or damaged")):
        memory_map(dataset, "train", "codes_zcurve")
    assert memory_map(dataset, "val", "codes_zcurve").shape == (50, 16)


def test_a_damaged_cache_is_named_and_deleting_it_helps(make_dataset) -> None:
    dataset = make_dataset()
    memory_map(dataset, "train", "codes_zcurve")
    (cache,) = (dataset.path / ".cache").local.glob("train-*.npy")
    column, content = memory_map(dataset, "train", "codes_zcurve").copy(), cache.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    for damaged in (content[:-8], bytes(flipped), content[:20], b""):
        cache.write_bytes(damaged)
        with pytest.raises(PriorError, match=f"{cache} is damaged .* delete the file and try again"):
            memory_map(dataset, "train", "codes_zcurve")
    cache.unlink()
    assert (memory_map(dataset, "train", "codes_zcurve") == column).all()


@pytest.mark.parametrize(("column", "size"), [("codes_zcurve", 16), ("cond_segmentation", 6)])
def test_a_code_beyond_its_codebook_is_named(make_dataset, column: str, size: int) -> None:
    dataset = make_dataset()
    sequence = sequence_from_dataset(dataset, "zcurve", "segmentation")
    memory_map(dataset, "train", column)
    (cache,) = (dataset.path / ".cache").local.glob(f"train-{column}-*.npy")
    content = cache.read_bytes()[:-34] + b"\xff\xff"
    cache.write_bytes(content + hashlib.sha256(content).digest())
    data = CodeData.open(dataset, "train", sequence)
    checked(data.take(slice(0, 10)), sequence)
    with pytest.raises(PriorError, match=rf"{column} holds the code 65535, its codebook 0 … {size - 1}: verify"):
        checked(data.take(np.array([3, data.rows - 1])), sequence)
    if column == "codes_zcurve":
        with pytest.raises(PriorError, match="65535"):
            code_counts(data.codes(), 16)
    shutil.rmtree(cache.parent)  # what the message advises
    data = CodeData.open(dataset, "train", sequence)
    checked(data.take(np.arange(data.rows)), sequence)


def test_tars_alone_give_the_same_sequences(make_dataset, dataset: ShardDataset) -> None:
    tars = make_dataset(formats=("webdataset",))
    assert not list(tars.path.local.rglob("*.parquet"))
    sequence = sequence_from_dataset(dataset, "zcurve", "class+segmentation")
    ours, theirs = (CodeData.open(one, "train", sequence) for one in (tars, dataset))
    for one, other in zip(
        (*ours.grids_NT, *ours.conditions_NC), (*theirs.grids_NT, *theirs.conditions_NC), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    loading = {"shuffle_rows": 100, "batch_size": 16, "seed": 3}
    streams = [StreamBatches(one, "train", sequence, **loading) for one in (tars, dataset)]
    for _ in range(5):
        one, other = (next(stream) for stream in streams)
        assert torch.equal(one.codes_BT, other.codes_BT)


def test_cache_is_found_again_and_follows_the_content(make_dataset, monkeypatch, tmp_path: Path) -> None:
    first, second = make_dataset("a", seed=0), make_dataset("b", seed=1)
    monkeypatch.setenv("IMAGEPRIORS_CACHE", str(tmp_path / "cache"))
    sums = {int(memory_map(d, "train", "codes_row_major").sum()) for d in (first, second)}
    files = sorted((tmp_path / "cache").iterdir())
    assert len(sums) == len(files) == 2
    assert not (first.path.local / ".cache").exists()
    before = [path.stat().st_mtime_ns for path in files]
    memory_map(first, "train", "codes_row_major")
    assert [path.stat().st_mtime_ns for path in files] == before


def test_unwritable_cache_names_the_way_out(make_dataset, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMAGEPRIORS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(PriorError, match="set IMAGEPRIORS_CACHE to a writable folder"):
        memory_map(make_dataset(), "train", "label")


def test_user_errors_say_what_the_shards_have(make_dataset) -> None:
    dataset = make_dataset(orders=("row_major", "zcurve"), labelled=False, pictures=("segmentation",))
    with pytest.raises(PriorError, match="'spiral_out' is not in these shards; they have row_major, zcurve"):
        sequence_from_dataset(dataset, "spiral_out", "none")
    with pytest.raises(PriorError, match="'depth' is not in these shards; they have none, segmentation"):
        sequence_from_dataset(dataset, "zcurve", "depth")
    with pytest.raises(PriorError, match="no class labels; use condition 'none'"):
        sequence_from_dataset(dataset, "zcurve", "class")
    with pytest.raises(ShardError, match="no split 'test'"):
        memory_map(dataset, "test", "label")


def test_class_condition_needs_every_label_within_the_classes(make_dataset) -> None:
    def classes(dataset: ShardDataset, count: int) -> SequenceSpec:
        return SequenceSpec.from_shards(dataset.spec, order="zcurve", condition="class", class_count=count)

    dataset = make_dataset("unlabelled", labelled=False)
    with pytest.raises(PriorError, match="200 of 200 rows in split 'train' have no label"):
        CodeData.open(dataset, "train", classes(dataset, 4))
    dataset = make_dataset("labelled")
    with pytest.raises(PriorError, match="has label 3, but there are 2 classes"):
        CodeData.open(dataset, "train", classes(dataset, 2))


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(PriorError, match="batch_size = 64: an epoch has only 10 rows"):
        CodeBatches(toy_data(10), batch_size=64, seed=0)
    with pytest.raises(PriorError, match="rank 0 of 3: use a multiple of the number of ranks"):
        CodeBatches(toy_data(10), batch_size=8, seed=0, world_size=3)


def test_config_needs_no_torch() -> None:
    code = "import sys, codeprior.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
