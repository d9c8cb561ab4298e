"""Inputs and outputs that fail temporarily cost time, but no row and no byte."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tiny_job import CONFIG, hashes
from tiny_shards import make_dataset

from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset, ShardError, Sidecar, load_plan, open_store
from codeshards.format.files import sha256_file
from codeshards.job import scheduler
from codeshards.job.encode import ShardTask, encode_shard
from codeshards.job.progress import EventLog, read_events
from codeshards.job.scheduler import run_shards
from codeshards.job.tokenize import tokenize
from runkit import retries
from vqgan.data import Split, open_splits
from vqgan.tokenizer import Tokenizer

_OPENED = Counter[str]()


@dataclass(frozen=True)
class Flaky:
    """A file on a storage that fails a number of times when it is opened, or while it is read."""

    path: str
    number: int
    times: int
    midway: bool

    @property
    def name(self) -> str:
        return Path(self.path).name

    def nbytes(self) -> int:
        return Path(self.path).stat().st_size

    def open(self) -> BinaryIO:
        _OPENED[self.path] += 1
        fails = _OPENED[self.path] <= self.times
        if fails and not self.midway:
            raise OSError(self.number, os.strerror(self.number), self.path)
        return io.BufferedReader(_Stream(self.path, self.number if fails else 0))


class _Stream(io.FileIO):
    def __init__(self, path: str, number: int) -> None:
        super().__init__(path)
        self._number = number

    def readinto(self, buffer: Any) -> int | None:
        if self._number and self.tell() > 0:
            raise OSError(self._number, os.strerror(self._number))
        return super().readinto(memoryview(buffer)[:64])  # an open file gives its head, and then fails

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(64) or b"", b""))

    def read(self, size: int | None = -1) -> bytes:
        buffer = bytearray(64)
        return bytes(buffer[: self.readinto(buffer)])


def encode_one(undisturbed: Path, split: Split, tokenizer: Path, out: Path) -> Sidecar:
    """Encode the first training shard of the undisturbed dataset again."""
    plan = load_plan(undisturbed)
    shard = plan.shard("train", 0)
    return encode_shard(
        ShardTask(shard=shard, plan_hash=plan.hash, samples=split.subset(plan.sample_indices(shard))),
        tokenizers={"image": Tokenizer.load(tokenizer, device="cpu")},
        spec=ShardDataset.open(undisturbed).spec,
        config=CONFIG,
        out=out,
    )


def flaky(split: Split, number: int, times: int, midway: bool) -> Split:
    _OPENED.clear()
    items = [replace(item, image=Flaky(item.image.path, number, times, midway)) for item in split.items]  # type: ignore[union-attr]
    return Split(items, split.class_names)


@pytest.mark.parametrize("midway", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_that_fails_twice_costs_no_row(undisturbed, data, tokenizer, tmp_path, monkeypatch, number, midway):
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))
    split = flaky(open_splits("folder", data)["train"], number, 2, midway)
    made = encode_one(undisturbed, split, tokenizer, tmp_path)
    assert made.failures == ()
    name = "train/shard-000000.parquet"
    assert sha256_file(tmp_path / name) == sha256_file(undisturbed / name)
    assert set(_OPENED.values()) == {3}


@pytest.fixture(autouse=True)
def no_failing_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries._lost_in_a_row, "count", 0)


def test_a_bad_sector_costs_its_row_and_a_missing_file_is_not_tried_again(
    undisturbed, data, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))
    for number, tries in ((errno.EIO, 3), (errno.ENOENT, 1), (errno.EACCES, 1)):
        made = encode_one(
            undisturbed, flaky(open_splits("folder", data)["train"], number, 99, False), tokenizer, tmp_path
        )
        assert len(made.failures) == 8
        assert os.strerror(number) in made.failures[0].reason
        assert set(_OPENED.values()) == {tries}


def test_unavailable_storage_costs_no_row(undisturbed, data, tokenizer, tmp_path, monkeypatch):
    """The whole shard fails, so that the driver can requeue it."""
    monkeypatch.setattr(retries, "PAUSES_S", (0.0,))
    split = flaky(open_splits("folder", data)["train"], errno.ESTALE, 99, False)
    with pytest.raises(ValueError, match="Stale file handle"):
        encode_one(undisturbed, split, tokenizer, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_temporarily_busy_object_store_costs_only_time(s3, data, tokenizer, undisturbed, caplog):
    """Arrow tries three times itself; requests that it gives up are repeated here."""
    refused = Counter[str]()

    def busy(environ: dict[str, Any]) -> bool:
        place, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        kind = "read" if method == "HEAD" and place.endswith("plan.json") else "write"
        if kind == "write" and (method in ("GET", "HEAD") or not place.endswith("train/shard-000003.parquet")):
            return False
        refused[kind] += 1
        return refused[kind] <= 4

    s3.fails, s3.status = busy, "503 Slow Down"
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out="s3://bucket/o")
    assert min(refused["read"], refused["write"]) > 4
    assert "trying again in 0.5 s" in caplog.text
    found = {name: sha256_file(open_store("s3://bucket/o") / name) for name in hashes(undisturbed)}
    assert found == hashes(undisturbed)


@pytest.mark.slow
def test_shards_are_read_from_a_temporarily_busy_store(s3, monkeypatch):
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))
    expected = make_dataset("s3://bucket/d", rows=10)["train"]
    refused = Counter[str]()

    def busy(environ: dict[str, Any]) -> bool:
        refused[environ["PATH_INFO"]] += environ["PATH_INFO"].endswith(".parquet")
        return 0 < refused[environ["PATH_INFO"]] <= 4

    s3.status = "503 Slow Down"
    dataset = ShardDataset.open("s3://bucket/d")
    for _ in range(2):  # the second time the shards are not fetched to be hashed first
        refused.clear()
        s3.fails = busy
        keys = [key for batch in dataset.batches("train", ["key"]) for key in batch["key"]]
        assert keys == expected["keys"]
        assert sum(refused.values()) > 3 * 4
    s3.fails = lambda environ: environ["PATH_INFO"].endswith(".parquet")
    with pytest.raises(ShardError, match=r"cannot be .*503"):
        list(dataset.batches("train", ["key"]))


def run_away(undisturbed: Path, folder: Path, times: int, events: Path) -> list[str]:
    """Make three shards with a worker whose storage is unavailable the first times for each."""

    class Away:
        def run(self, name: str) -> str:
            import errno
            import os

            before = len(list(folder.glob(f"{name}.*")))
            (folder / f"{name}.{before}").touch()
            if before < times:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), f"/mnt/{name}")
            return name

    plan, done, log = load_plan(undisturbed), list[str](), EventLog(events)
    shards = [plan.shard("train", index) for index in range(3)]
    run_shards(
        shards, lambda shard: shard.name, Away, (), name="away", device="cpu",
        settings=TokenizeConfig(workers=1, threads=1), events=log,
        on_done=lambda shard, result: done.append(result) or {},
    )  # fmt: skip
    log.close()
    return done


def test_shard_with_unavailable_storage_is_made_later(local_ray_cores, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_PAUSE_S", 0.2)
    done = run_away(undisturbed, tmp_path, 2, tmp_path / "events.jsonl")
    assert sorted(done) == ["shard-000000", "shard-000001", "shard-000002"]
    events = Counter(event["event"] for event in read_events(tmp_path / "events.jsonl"))
    assert (events["shard_put_off"], events["worker_died"]) == (6, 0)


def test_storage_that_stays_unavailable_ends_the_job(local_ray_cores, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_PAUSE_S", 0.2)
    with pytest.raises(ShardError, match=r"train/shard-00000\d could not be made in 3 attempts: .*/mnt/shard"):
        run_away(undisturbed, tmp_path, 99, tmp_path / "events.jsonl")
