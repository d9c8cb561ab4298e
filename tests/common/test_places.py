"""Stores give the same guarantees in a local folder and on a real S3 server."""

import pickle
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from s3_server import S3Server

from runkit.places import Store, StoreError, WriteError, open_store


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


def test_files_are_complete_or_absent(store: Store) -> None:
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
    store.delete()  # a missing file
    for name in ("b.json", "train/x.tar", "train/deep/y", ".cache/z"):
        (store / name).write_bytes(b"1")
    hidden = [] if store.local else [".cache/z"]  # an object store has no hidden folders
    assert store.files() == [*hidden, "b.json", "train/deep/y", "train/x.tar"]
    assert (store / "train").files() == ["deep/y", "x.tar"]
    ((name, found),) = (store / "train").listing().items()
    assert (name, found.bytes) == ("x.tar", 1)
    assert abs(found.mtime_ns / 1e9 - time.time()) < 600
    assert (store / "val").listing() == {}
    (store / "train/x.tar").delete()
    assert (store / "train").files() == ["deep/y"]
    (store / "train").delete() if store.local is None else None
    assert (store / "train").files() == ["deep/y"]  # a folder is deleted file by file
    for name in store.files():
        (store / name).delete()
    store.remove_empty_folders()
    assert store.files() == []
    assert store.local is None or not (store.local / "train").exists()


def test_stores_can_be_pickled(store: Store) -> None:
    (store / "a").write_bytes(b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert (copy / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("a/b", "a/b"),
        (Path("a/b"), "a/b"),
        ("file:///a/b%20c", "/a/b c"),
        ("s3://bucket/a/", "s3://bucket/a"),
        (Path("s3://bucket/a"), "s3://bucket/a"),  # the command line converts every argument to a Path
        ("gs://bucket/a", "gs://bucket/a"),
    ],
)
def test_names_of_stores(where: str | Path, found: str) -> None:
    assert str(open_store(where)) == found
    assert open_store(open_store(where)) == open_store(where)


@pytest.mark.parametrize("where", ["hdfs://x/y", "http://x/y"])
def test_unknown_schemes_are_refused(where: str) -> None:
    with pytest.raises(StoreError, match=r"a local path or an s3, gs, gcs, hf or file URL"):
        open_store(where)
    with pytest.raises(StoreError, match="names no bucket or repository: write s3://BUCKET/FOLDER"):
        open_store("s3://")


def test_a_writer_that_is_killed_leaves_no_file(store: Store) -> None:
    (store / "a").write_bytes(b"before")
    code = """
import os, sys
from runkit.places import open_store
store = open_store(sys.argv[1])
with (store / "a").write() as first, (store / "b").write() as second:
    for file in (first, second):
        file.write(bytes(1 << 20))
        file.flush()
    os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(store)], check=False)
    assert killed.returncode == -9
    assert (store / "a").read_bytes() == b"before"
    assert not (store / "b").exists()


def test_a_small_object_is_written_in_one_request(s3: S3Server) -> None:
    requests: list[str] = []
    s3.fails = lambda environ: requests.append(environ["REQUEST_METHOD"]) is not None
    open_store("s3://bucket/a").write_bytes(b"1")
    assert requests == ["PUT"]


def test_an_upload_that_fails_midway_leaves_no_object(s3: S3Server) -> None:
    file = open_store("s3://bucket/train/big.bin")
    content = bytes(24 << 20)  # more than one part
    s3.fails = lambda environ: "partNumber=2" in environ["QUERY_STRING"]
    with pytest.raises(WriteError, match=r"s3://bucket/train/big.bin cannot be written .*credentials.*run again"):
        file.write_bytes(content)
    assert not file.exists()
    assert open_store("s3://bucket/train").files() == []
    s3.fails = lambda environ: False
    file.write_bytes(content)
    assert file.read_bytes() == content


def test_a_server_that_refuses_is_reported(s3: S3Server) -> None:
    s3.fails = lambda environ: True
    with pytest.raises(StoreError, match=r"s3://bucket/d/dataset.json cannot be .*Check the address, the credentials"):
        open_store("s3://bucket/d/dataset.json").read_bytes()
    with pytest.raises(WriteError, match=r"s3://bucket/d/x cannot be written"):
        open_store("s3://bucket/d/x").write_bytes(b"1")


def test_local_errors_report_the_file_and_the_remedy(tmp_path: Path) -> None:
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
