"""Each way of reading compares the hash of a shard with the manifest, once per dataset object."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from tiny_shards import make_dataset

from codeshards.format import ShardDataset, ShardError, open_store
from codeshards.format import dataset as dataset_module
from codeshards.tools.inspect import inspect

READERS: dict[str, Callable[[ShardDataset], object]] = {
    "batches": lambda dataset: list(dataset.batches("train", ["codes_zcurve"])),
    "some shards": lambda dataset: list(dataset.batches("train", ["key"], shards=[1])),
    "table": lambda dataset: dataset.table("train", dataset.shards("train")[1]),
    "check": lambda dataset: dataset.check("train"),
    "inspect": lambda dataset: inspect(dataset.path),
}


def swap(folder: Path, suffix: str) -> None:
    """Exchange two shards of equal spec and rows."""
    a, b = (folder / f"train/shard-00000{number}{suffix}" for number in (0, 1))
    whole = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(whole)


def flip(folder: Path, suffix: str) -> None:
    """Flip a bit of a code in a tar, which leaves its structure valid."""
    path = folder / f"train/shard-000001{suffix}"
    content = bytearray(path.read_bytes())
    content[content.index(b".scale_2.npy") + 512 + 128] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("harm", "kind"), [(swap, "parquet"), (swap, "webdataset"), (flip, "webdataset")])
def test_exchanged_and_damaged_shards_are_named(
    tmp_path: Path, name: str, harm: Callable[[Path, str], None], kind: Any
) -> None:
    make_dataset(tmp_path, formats=[kind])
    READERS[name](ShardDataset.open(tmp_path))
    suffix = ".parquet" if kind == "parquet" else ".tar"
    harm(tmp_path, suffix)
    with pytest.raises(ShardError, match=rf"train/shard-00000[01]\{suffix} is missing or damaged: its sha256"):
        READERS[name](ShardDataset.open(tmp_path))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files, in the order in which they are hashed."""
    names: list[str] = []
    intact = dataset_module.is_intact

    def count(file: Any, record: Any) -> bool:
        names.append(file.name)
        return intact(file, record)

    monkeypatch.setattr(dataset_module, "is_intact", count)
    return names


def test_a_file_is_hashed_once_per_dataset_object(tmp_path: Path, hashed: list[str]) -> None:
    make_dataset(tmp_path)
    dataset = ShardDataset.open(tmp_path)
    names = [f"shard-{number:06d}.parquet" for number in range(3)]
    threads = [threading.Thread(target=lambda: list(dataset.batches("train", ["key"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dataset.check("train")
    dataset.table("train", dataset.shards("train")[0])
    assert sorted(hashed) == names
    for other in (pickle.loads(pickle.dumps(dataset)), copy.copy(dataset)):
        hashed.clear()
        other.check("train")
        list(other.batches("train", ["key"]))
        assert sorted(hashed) == names


def test_objects_are_downloaded_once_for_hash_and_codes(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_store("s3://bucket/d")
    make_dataset(place)
    fetched: list[str] = []
    s3.fails = lambda environ: bool(
        environ["REQUEST_METHOD"] == "GET" and "shard-" in environ["PATH_INFO"] and fetched.append(environ["PATH_INFO"])
    )
    dataset = ShardDataset.open(place)
    assert sum(len(batch["key"]) for batch in dataset.batches("train", ["key"])) == 10
    assert len(fetched) == 3
    (place / "train/shard-000001.parquet").write_bytes((place / "train/shard-000000.parquet").read_bytes())
    with pytest.raises(ShardError, match=r"shard-000001.parquet is missing or damaged"):
        list(ShardDataset.open(place).batches("train", ["key"]))
