"""Which shards a job finds finished: on a fast disk, on a slow one, in an object store and from the driver's cache."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from tiny_shards import make_dataset

from codeshards.format import Failure, Manifest, Plan, Sidecar, load_plan, open_store
from codeshards.format.manifest import sidecar_path
from codeshards.job import resume
from codeshards.job.resume import Arrivals, close_job, open_job
from runkit.places import Store


@pytest.fixture(params=["fast", "slow", "cached", "s3"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Plan]:
    """A dataset of six shards in train and one in val; on a slow disk threads read the sidecars."""
    monkeypatch.delenv("IMAGEPRIORS_CACHE", raising=False)
    store = open_store(tmp_path / "d")
    if request.param == "s3":
        request.getfixturevalue("s3")
        store = open_store("s3://bucket/d")
    monkeypatch.setattr(resume, "_PROBED", 2)
    monkeypatch.setattr(resume, "_SLOW_READ_S", 0.0 if request.param == "slow" else 60.0)
    make_dataset(store, rows=24)
    if request.param == "cached":
        remember(store)
    return store, load_plan(store)


def remember(store: Store) -> None:
    """Cache the shards as a driver does."""
    plan = load_plan(store)
    arrivals = Arrivals(store, plan.hash)
    for shard in plan.shards:
        arrivals.expect(shard, Sidecar.load(sidecar_path(store, shard)))
    arrivals.close()


def names(missing: Any) -> list[str]:
    return [f"{shard.split}/{shard.index}" for shard in missing]


def change(store: Store, plan: Plan, index: int, **changed: Any) -> None:
    """Write the sidecar of one of train's shards again, with other fields and a valid hash."""
    path = sidecar_path(store, plan.shard("train", index))
    dataclasses.replace(Sidecar.load(path), **changed).save(path)


def test_only_shards_with_their_own_sidecar_and_whole_files_are_finished(made: tuple[Store, Plan]) -> None:
    store, plan = made
    train = store / "train"
    assert names(open_job(plan, store)) == []
    (train / "shard-000000.json").delete()  # lost
    change(store, plan, 1, plan_hash="0" * 64)  # of another plan
    (train / "shard-000002.json").write_bytes((train / "shard-000005.json").read_bytes())  # of another shard
    (train / "shard-000003.parquet").write_bytes((train / "shard-000003.parquet").read_bytes()[:-1])  # truncated
    (train / "shard-000004.parquet").delete()
    (train / "shard-000005.json").write_bytes((train / "shard-000005.json").read_bytes() + b" ")  # changed
    expected = [f"train/{index}" for index in range(6)]
    assert names(open_job(plan, store)) == expected
    (store / "val/shard-000000.json").delete()
    assert names(open_job(plan, store)) == [*expected, "val/0"]


def test_shards_with_failures_are_made_again_on_request(made: tuple[Store, Plan]) -> None:
    store, plan = made
    change(store, plan, 4, failures=(Failure("k", "a broken file"),))
    assert names(open_job(plan, store)) == []
    assert names(open_job(plan, store, retry_failed=True)) == ["train/4"]


def test_a_job_closes_with_its_sidecars_in_planned_order(made: tuple[Store, Plan]) -> None:
    store, plan = made
    before = (store / "dataset.json").read_bytes()
    found = list(close_job(plan, store, 0.0))
    assert [(sidecar.split, sidecar.index) for sidecar in found] == [(one.split, one.index) for one in plan.shards]
    old = Manifest.load(store)
    manifest = Manifest.build(plan=plan, sidecars=found, spec=old.spec, class_names=old.class_names)
    dataclasses.replace(manifest, tokenizer=old.tokenizer).save(store)
    assert (store / "dataset.json").read_bytes() == before
    assert not store.local or not (store.local / ".cache").exists()


def test_a_cached_sidecar_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEPRIORS_CACHE", raising=False)
    make_dataset(tmp_path)
    remember(open_store(tmp_path))
    path = tmp_path / "train/shard-000000.json"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    assert names(open_job(load_plan(tmp_path), tmp_path)) == ["train/0"]
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert names(open_job(load_plan(tmp_path), tmp_path)) == []


def test_a_folder_without_shards_misses_all(made: tuple[Store, Plan]) -> None:
    store, plan = made
    for split in plan.splits:
        for name in (store / split).files():
            (store / split / name).delete()
    assert names(open_job(plan, store)) == names(plan.shards)
