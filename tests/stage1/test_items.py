"""Lists of items that are in a file equal those in memory."""

import gc
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pictures import png, put_tar

from vqgan.data import Split, items, open_splits
from vqgan.data.archives import Absent
from vqgan.data.columns import Beside, Listed
from vqgan.data.items import StoredItems, collect, keys_of
from vqgan.data.poses import Keypoints
from vqgan.data.samples import Item
from vqgan.data.sources import Blob, File, Memory
from vqgan.data.split import hold_out
from vqgan.errors import InputError


def make(count):
    """Items of every kind of source."""
    for i in range(count):
        image = (
            File(f"/photos/{i}.png"),
            Blob("/a.tar", 512 * i, i, f"{i}.png", ((0, 5), (7, i)) if i % 2 else None),
            Memory(f"{i}.png", bytes([i % 256])),
            Absent(f"{i}.png", "it is a link"),
        )[i % 4]
        beside = Beside(File(f"{i}.txt"), Blob("/a.tar", i, 3, "x.json"))
        columns = (None, beside, Listed({"a": i, "b": [None, "ü"]}))[i % 3]
        pose = Keypoints(f"[{i}]", "[1]", f"{i}.png") if i % 3 else File(f"{i}.depth.png")
        yield Item(
            key=f"folder/{i:06d}", image=image, label=None if i % 5 == 0 else i % 7,
            conditions={"depth": pose} if i % 2 else {}, columns=columns,
        )  # fmt: skip


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(items, "IN_MEMORY", 100)


def test_short_lists_stay_in_memory(small_memory):
    assert isinstance(collect(make(100)), list)
    assert isinstance(collect(make(101)), StoredItems)


def test_stored_items_equal_the_list(small_memory):
    expected, stored = list(make(1000)), collect(make(1000))
    assert isinstance(stored, StoredItems)
    assert len(stored) == 1000
    assert list(stored) == expected
    assert [stored[i] for i in (999, 0, 517, -1)] == [expected[i] for i in (999, 0, 517, -1)]
    assert stored[100:300:7] == expected[100:300:7]
    assert list(keys_of(stored)) == keys_of(expected)
    assert keys_of(stored)[990:] == keys_of(expected)[990:]
    assert keys_of(stored)[-1] == expected[-1].key
    assert pickle.loads(pickle.dumps(stored)) == expected
    with pytest.raises(IndexError):
        stored[1000]


def test_selections_and_labels_compose(small_memory):
    expected, stored = list(make(1000)), collect(make(1000))
    labels = [None if i % 3 else i % 11 for i in range(1000)]
    relabelled = [item.labelled(label) for item, label in zip(expected, labels, strict=True)]
    chosen = np.array([5, 3, 999, 640, 3])
    assert list(stored.labelled(labels).select(chosen)) == [relabelled[i] for i in chosen]
    assert list(stored.select(np.arange(500, 1000)).select(np.array([1, 2]))) == expected[501:503]


def test_splits_of_stored_items_equal_those_of_lists(monkeypatch):
    in_memory = Split(make(700), ("a", "b"))
    monkeypatch.setattr(items, "IN_MEMORY", 100)
    stored = Split(make(700), ("a", "b"))
    assert isinstance(stored.items, StoredItems)
    assert stored.source_hash() == in_memory.source_hash()
    assert stored.source_hash(("a",)) == in_memory.source_hash(("a",))
    assert list(stored.subset([5, 600, 2]).items) == in_memory.subset([5, 600, 2]).items
    assert list(stored.subset(range(300)).items) == in_memory.subset(range(300)).items
    assert list(stored.having("depth").items) == in_memory.having("depth").items
    held, expected = hold_out(stored), hold_out(in_memory)
    assert {name: list(split.keys) for name, split in held.items()} == {
        name: list(split.keys) for name, split in expected.items()
    }
    assert 0 < len(held["val"]) < 100


@pytest.mark.parametrize("layout", ["webdataset", "huggingface"])
def test_readers_give_the_same_samples_from_a_file(tmp_path, monkeypatch, layout):
    if layout == "webdataset":
        for shard in range(3):
            members = {f"{shard}{n:02d}.png": png(n) for n in range(20)}
            members |= {f"{shard}{n:02d}.cls": ("cat", "fox", "ant")[n % 3].encode() for n in range(20)}
            put_tar(tmp_path / f"{('train', 'train', 'val')[shard]}-{shard}.tar", members)
    else:
        for split, rows in (("train", 40), ("validation", 20)):
            images = [{"bytes": png(n), "path": None} for n in range(rows)]
            table = pa.table({"image": images, "label": [n % 3 for n in range(rows)]})
            pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet", row_group_size=7)
    expected = open_splits(layout, tmp_path)
    monkeypatch.setattr(items, "IN_MEMORY", 10)
    found = open_splits(layout, tmp_path)
    for name, split in expected.items():
        assert isinstance(found[name].items, StoredItems)
        assert list(found[name].items) == split.items
        assert found[name].class_names == split.class_names
        assert found[name].source_hash() == split.source_hash()
        np.testing.assert_array_equal(found[name].read(13, 8).image, split.read(13, 8).image)
    assert {item.label for item in found["train"].items} == {0, 1, 2}


def test_a_repeated_key_of_stored_items_is_named(small_memory):
    repeated = [*make(300), *list(make(123))[-1:]]
    with pytest.raises(InputError, match="share the key 'folder/000122'"):
        Split(iter(repeated))


def test_the_file_is_deleted_with_the_list(small_memory, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    stored = collect(make(500))
    assert list(tmp_path.iterdir()) == []  # it has no name
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    del stored
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) < descriptors
