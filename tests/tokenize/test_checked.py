"""Shards that were checked before are not read again, as long as their files stay the same."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_shards import make_dataset

from codeshards.format import open_store
from codeshards.format.checked import CheckedShards, cache_folder
from codeshards.format.contents import delete_dataset
from codeshards.format.plan import PlannedShard
from codeshards.tools.verify import Verification, verify
from runkit.places import Listed

SHARDS = [PlannedShard(split="train", index=index, start=0, stop=1) for index in range(3)]
LISTING = {f"{shard.name}.json": Listed(10 + shard.index, 1_000_000_007) for shard in SHARDS}


@pytest.fixture(autouse=True)
def _cache_beside_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEPRIORS_CACHE", raising=False)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six shards in train and one in val."""
    make_dataset(tmp_path / "d", rows=24)
    return tmp_path / "d"


def record_of(folder: Path) -> list[Path]:
    return list((folder / ".cache").glob("*.jsonl"))


def write_record(folder: Path, identity: str = "plan") -> None:
    record = CheckedShards(open_store(folder), "finished", identity)
    for shard in SHARDS:
        record.add(shard, [f"{shard.name}.json"], LISTING, {"rows": shard.index})
    record.close()


def test_a_shard_is_known_while_its_files_stay_the_same(tmp_path: Path) -> None:
    write_record(tmp_path)
    record = CheckedShards(open_store(tmp_path), "finished", "plan").read()
    assert [record.get(shard, LISTING) for shard in SHARDS] == [{"rows": 0}, {"rows": 1}, {"rows": 2}]
    name = f"{SHARDS[1].name}.json"
    for changed in (Listed(12, LISTING[name].mtime_ns), Listed(11, LISTING[name].mtime_ns + 1), None):
        listing = {**LISTING, name: changed} if changed else {key: LISTING[key] for key in LISTING if key != name}
        assert record.get(SHARDS[1], listing) is None
    for kind, identity in (("finished", "another plan"), ("verified", "plan")):
        assert CheckedShards(open_store(tmp_path), kind, identity).read().get(SHARDS[0], LISTING) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_costs_only_the_damaged_lines(tmp_path: Path, data: st.DataObject) -> None:
    """A kill in the middle of a line, or a flipped bit: no other shard, and never another value."""
    shutil.rmtree(tmp_path / ".cache", ignore_errors=True)
    write_record(tmp_path)
    (path,) = record_of(tmp_path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    record = CheckedShards(open_store(tmp_path), "finished", "plan").read()
    assert all(record.get(shard, LISTING) in (None, {"rows": shard.index}) for shard in SHARDS)
    write_record(tmp_path)  # appended
    record = CheckedShards(open_store(tmp_path), "finished", "plan").read()
    assert all(record.get(shard, LISTING) == {"rows": shard.index} for shard in SHARDS)


def test_a_cache_that_cannot_be_written_is_a_warning(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (dataset.parent / "file").touch()
    monkeypatch.setenv("IMAGEPRIORS_CACHE", str(dataset.parent / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert verify(dataset, resume=True).problems == ()
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


def test_caches_of_object_stores_are_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(open_store("s3://bucket/d")) == tmp_path / ".cache/imagepriors"


_DIES_AT_THE_LAST_SHARD = """
import os, signal, sys, time
from codeshards.tools.verify import verify

def hook(event, details):
    if event == "open" and str(details[0]).endswith("val/shard-000000.parquet"):
        time.sleep(1)  # the others are finished meanwhile
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
verify(sys.argv[1], resume=True)
"""


def killed(folder: Path) -> None:
    """Kill a verification when it reads the last shard."""
    done = subprocess.run([sys.executable, "-c", _DIES_AT_THE_LAST_SHARD, str(folder)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL


def flip(path: Path) -> None:
    """Change a byte and keep size and time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_killed_verification_continues(dataset: Path) -> None:
    killed(dataset)
    assert len(record_of(dataset)) == 1
    assert verify(dataset) == Verification(problems=(), files=20, rows=27)  # without resume, all is read
    assert verify(dataset, resume=True) == Verification(problems=(), files=20, rows=27, earlier=6)
    assert not record_of(dataset)
    assert verify(dataset, resume=True).earlier == 0  # a finished verification is repeated in full


def test_changed_shards_are_read_again(dataset: Path) -> None:
    killed(dataset)
    changed = dataset / "train/shard-000003.parquet"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    found = verify(dataset, resume=True)
    assert [str(changed) in problem for problem in found.problems] == [True]
    assert found.earlier == 5


def test_without_resume_everything_is_read(dataset: Path) -> None:
    killed(dataset)
    flip(dataset / "train/shard-000003.parquet")
    (problem,) = verify(dataset).problems
    assert "shard-000003.parquet is missing, or its sha256" in problem


def test_a_dataset_with_problems_keeps_the_record_of_its_intact_shards(dataset: Path) -> None:
    broken = dataset / "train/shard-000001.parquet"
    intact = broken.read_bytes()
    broken.write_bytes(b"x")
    assert len(verify(dataset, resume=True).problems) == 1
    broken.write_bytes(intact)
    repaired = verify(dataset, resume=True)
    assert (repaired.problems, repaired.earlier) == ((), 6)


def test_records_are_deleted_with_the_dataset(dataset: Path) -> None:
    killed(dataset)
    write_record(dataset)
    (dataset / ".cache/verified.jsonl").write_text("mine")
    delete_dataset(dataset)
    assert [path.name for path in dataset.rglob("*") if path.is_file()] == ["verified.jsonl"]


def test_workers_on_ray_find_the_same_problems(local_ray_cores: Any, dataset: Path) -> None:
    assert verify(dataset, workers=2).problems == ()
    for name in ("train/shard-000004.parquet", "train/shard-000001.json", "val/shard-000000.parquet"):
        flip(dataset / name)
    (dataset / "train/shard-000000.parquet").unlink()
    found = verify(dataset, workers=2, resume=True)
    assert found == verify(dataset)
    assert len(found.problems) == 4
    assert verify(dataset, resume=True).earlier == 3
