"""Where datasets lie: the same promises for a local folder and for a real S3 server."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_shards import SPEC, make_dataset

from codeprior.data import memory_map, sequence_from_dataset
from codeprior.stream import StreamBatches
from codeshards.format import ShardDataset, ShardError, Store, WriteError, open_store
from codeshards.format.files import remove_stale_temps


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "data")
    request.getfixturevalue("s3")
    return open_store("s3://bucket/some/data")


def fail_inside(store: Store) -> None:
    with store.write() as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_files_are_whole_or_absent(store: Store) -> None:
    file = store / "train/a.bin"
    assert file.name == "a.bin"
    assert str(file) == f"{store}/train/a.bin"
    assert file.size() is None
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fail_inside(file)
    assert store.files() == []
    file.write_bytes(b"")
    assert (file.exists(), file.size(), file.read_bytes()) == (True, 0, b"")
    file.write_bytes(pa.py_buffer(b"0123456789"))
    with pytest.raises(KeyboardInterrupt):
        fail_inside(file)
    assert file.read_bytes() == b"0123456789"
    with file.open() as opened:
        opened.seek(4)
        assert opened.read(3) == b"456"


def test_listing_and_deleting(store: Store) -> None:
    assert store.files() == []
    store.delete()  # what is not there
    for name in ("b.json", "train/x.tar", "train/deep/y", ".cache/z"):
        (store / name).write_bytes(b"1")
    hidden = [] if store.local else [".cache/z"]  # an object store has no hidden folders
    assert store.files() == [*hidden, "b.json", "train/deep/y", "train/x.tar"]
    assert (store / "train").files() == ["deep/y", "x.tar"]
    (store / "train/x.tar").delete()
    assert (store / "train").files() == ["deep/y"]
    (store / "train").delete() if store.local is None else None
    assert (store / "train").files() == ["deep/y"]  # a folder is deleted file by file
    for name in store.files():
        (store / name).delete()
    store.remove_empty_folders()
    assert store.files() == []
    assert store.local is None or not (store.local / "train").exists()


def test_stores_travel_to_other_processes(store: Store) -> None:
    (store / "a").write_bytes(b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert (copy / "a").read_bytes() == b"1"
    assert remove_stale_temps(store) == []


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("a/b", "a/b"),
        (Path("a/b"), "a/b"),
        ("file:///a/b%20c", "/a/b c"),
        ("s3://bucket/a/", "s3://bucket/a"),
        (Path("s3://bucket/a"), "s3://bucket/a"),  # the command line makes paths of everything
        ("gs://bucket/a", "gs://bucket/a"),
    ],
)
def test_names_of_places(where: str | Path, found: str) -> None:
    assert str(open_store(where)) == found
    assert open_store(open_store(where)) == open_store(where)


@pytest.mark.parametrize("where", ["hdfs://x/y", "http://x/y"])
def test_unknown_schemes_are_refused(where: str) -> None:
    with pytest.raises(ShardError, match=r"local folders or under s3, gs, gcs or file URLs"):
        open_store(where)
    with pytest.raises(ShardError, match="names no bucket: write s3://BUCKET/FOLDER"):
        open_store("s3://")


def test_a_dataset_is_the_same_in_an_object_store(s3: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ("parquet", "webdataset")
    make_dataset(tmp_path / "d", formats=formats)
    make_dataset("s3://bucket/d", formats=formats)
    remote, local = open_store("s3://bucket/d"), open_store(tmp_path / "d")
    assert remote.files() == local.files()
    for name in local.files():
        assert (remote / name).read_bytes() == (local / name).read_bytes()
    dataset = ShardDataset.open("s3://bucket/d")
    here = next(ShardDataset.open(tmp_path / "d").batches("train", SPEC.column_names))
    there = next(dataset.batches("train", SPEC.column_names))
    assert all(np.array_equal(here[name], there[name]) for name in SPEC.column_names)
    # Training maps columns into memory: that needs a file here.
    monkeypatch.delenv("IMAGEPRIORS_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    codes = memory_map(dataset, "train", "codes_zcurve")
    assert np.array_equal(codes, memory_map(ShardDataset.open(tmp_path / "d"), "train", "codes_zcurve"))
    assert len(list((tmp_path / "home" / ".cache" / "imagepriors").glob("train-codes_zcurve-*.npy"))) == 1
    sequence = sequence_from_dataset(dataset, "zcurve", "none")
    streams = [
        StreamBatches(one, "train", sequence, shuffle_rows=100, batch_size=4, seed=0)
        for one in (dataset, ShardDataset.open(tmp_path / "d"))
    ]
    assert torch.equal(*(next(stream).codes_BT for stream in streams))
    (remote / "val/shard-000000.parquet").delete()
    with pytest.raises(ShardError, match=r"s3://bucket/d/val/shard-000000.parquet is missing"):
        next(dataset.batches("val", ["key"]))
    with pytest.raises(ShardError, match=r"s3://bucket/none/dataset.json is missing"):
        ShardDataset.open("s3://bucket/none")


def test_an_upload_that_fails_midway_leaves_no_object(s3: object) -> None:
    file = open_store("s3://bucket/train/big.bin")
    content = bytes(24 << 20)  # more than one part
    s3.fails = lambda environ: "partNumber=2" in environ["QUERY_STRING"]  # type: ignore[attr-defined]
    with pytest.raises(WriteError, match=r"s3://bucket/train/big.bin cannot be written .*credentials.*run again"):
        file.write_bytes(content)
    assert not file.exists()
    assert open_store("s3://bucket/train").files() == []
    s3.fails = lambda environ: False  # type: ignore[attr-defined]
    file.write_bytes(content)
    assert file.read_bytes() == content


def test_a_refusing_server_is_named(s3: object) -> None:
    s3.fails = lambda environ: True  # type: ignore[attr-defined]
    with pytest.raises(ShardError, match=r"s3://bucket/d/dataset.json cannot be .*Check the address, the credentials"):
        ShardDataset.open("s3://bucket/d")
    with pytest.raises(WriteError, match=r"s3://bucket/d/x cannot be written"):
        open_store("s3://bucket/d/x").write_bytes(b"1")


def test_local_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match=r"file/x cannot be written \((Not|File).*Choose a folder"):
        open_store(tmp_path / "file" / "x").write_bytes(b"1")
    if Path("/dev/full").exists():
        full = open_store(tmp_path / "full")
        with pytest.raises(WriteError, match=r"full cannot be written \(No space left.*Free some space"), full.write():
            Path("/dev/full").write_bytes(b"1")
    with pytest.raises(FileNotFoundError), open_store(tmp_path / "y").write():  # the block's own error is not ours
        (tmp_path / "none").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
