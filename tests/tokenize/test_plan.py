"""The plan, sidecars and manifest: equal inputs give equal bytes, and every sample is accounted for."""

import dataclasses
import gc
import json
import resource
import signal
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeshards.format import (
    Failure,
    GridSpec,
    Manifest,
    Plan,
    ShardError,
    ShardSpec,
    Sidecar,
    build_plan,
    keys,
    load_plan,
)
from codeshards.format.contents import save_dataset, save_or_match
from codeshards.format.files import FileRecord, write_sealed_json
from codeshards.format.manifest import CARD_FILE, shard_is_done, sidecar_path
from codeshards.format.plan import planned_order
from codeshards.format.schema import row_key

SPEC = ShardSpec(image=GridSpec(height=4, width=4, codebook_size=9, fingerprint="f"))


def make_plan(train: int = 20, val: int = 5, **changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        "samples": {"val": [f"v{i}" for i in range(val)], "train": [f"t{i}" for i in range(train)]},
        "source_hashes": {"train": "a", "val": "b"},
        "settings": {"spec": SPEC.to_json(), "transform": {"size": 64, "crops": (1, 2)}},
        "views": 2,
        "shard_rows": 8,
        "shuffle_seed": 7,
    }
    return build_plan(**(arguments | changes))


# -- the plan ----------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(1, 30), st.none() | st.integers(0, 9))
def test_every_sample_is_planned_once(train: int, val: int, views: int, shard_rows: int, seed: int | None) -> None:
    plan = make_plan(train, val, views=views, shard_rows=shard_rows, shuffle_seed=seed)
    for split, count in (("train", train), ("val", val)):
        shards = [shard for shard in plan.shards if shard.split == split]
        assert [shard.index for shard in shards] == list(range(len(shards)))
        indices = np.concatenate([plan.sample_indices(shard) for shard in shards])
        assert sorted(indices.tolist()) == list(range(count))
        keys = [key for shard in shards for key in plan.sample_keys(shard)]
        assert keys == [f"{split[0]}{i}" for i in indices]
        assert all(shard.samples == max(1, shard_rows // views) for shard in shards[:-1])


def test_only_train_is_shuffled() -> None:
    plan = make_plan(train=200, val=200)
    position = {split: [] for split in plan.splits}  # type: ignore[var-annotated]
    for shard in plan.shards:
        position[shard.split].extend(plan.sample_indices(shard).tolist())
    assert position["val"] == list(range(200))
    assert position["train"] != list(range(200))
    unshuffled = make_plan(train=200, shuffle_seed=None)
    assert unshuffled.sample_indices(unshuffled.shards[1]).tolist() == [4, 5, 6, 7]


def test_shuffle_is_a_golden_value() -> None:
    # Resumed jobs and published datasets rest on it: a change must be seen, and needs a new format version.
    assert planned_order(10, 7).tolist() == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1]
    assert not planned_order(10, 7).flags.writeable


def test_names_and_paths() -> None:
    shard = make_plan().shards[1]
    assert (shard.split, shard.index, shard.start, shard.stop) == ("train", 1, 4, 8)
    assert shard.name == "shard-000001"
    assert shard.path("out", ".parquet").local == Path("out/train/shard-000001.parquet")
    assert sidecar_path("out", shard).local == Path("out/train/shard-000001.json")


def test_equal_inputs_give_equal_hashes_and_any_change_gives_another() -> None:
    samples = {"train": [f"t{i}" for i in range(20)], "val": [f"v{i}" for i in range(5)]}
    changes: list[dict[str, Any]] = [
        {"train": 21},
        {"samples": samples | {"val": ["v0", "v1", "v2", "v4", "v3"]}},
        {"source_hashes": {"train": "a", "val": "c"}},
        {"settings": {"transform": {"size": 65}}},
        {"views": 1},
        {"shard_rows": 16},
        {"shuffle_seed": None},
        {"shuffle_seed": 8},
    ]
    hashes = [make_plan(**change).hash for change in changes]
    assert make_plan().hash == make_plan(samples=samples).hash
    assert len({*hashes, make_plan().hash}) == len(changes) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 0}, "views is 0"),
        ({"views": 257}, "views is 257"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"shuffle_seed": -1}, "shuffle_seed is -1"),
        ({"val": 0}, "split 'val' has no samples"),
        ({"source_hashes": {"train": "a"}}, "differ"),
        ({"samples": {"train": ["a", "b", "a"], "val": ["v"]}}, "'a' occurs more than once in split 'train'"),
        ({"samples": {"train": ["a", "b.png"], "val": ["v"]}}, "'b.png' is not allowed"),
        ({"samples": {"train": ["a", "a-v1"], "val": ["v"]}}, "'a-v1' is named like a view"),
        ({"samples": {"../up": ["a"]}, "source_hashes": {"../up": "a"}}, "split name '../up'"),
    ],
)
def test_invalid_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        make_plan(**changes)


def test_views_have_keys_of_their_own() -> None:
    assert [row_key("cat", view) for view in range(3)] == ["cat", "cat-v1", "cat-v2"]
    # One view: nothing to mistake it for.
    make_plan(samples={"train": ["a", "a-v1"], "val": ["v"]}, views=1)


def test_a_million_samples_are_planned_in_seconds_and_little_memory() -> None:
    keys = [f"n{i:08d}" for i in range(1_000_000)]
    tracemalloc.start()
    started = time.perf_counter()
    plan = make_plan(samples={"train": keys, "val": ["v"]}, shard_rows=8192, views=1)
    shards = plan.shards
    assert len(plan.sample_indices(shards[3])) == 8192
    elapsed_s = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(shards) == 123 + 1
    assert elapsed_s < 10
    # Python's own share: the order, its sort, one chunk of keys; no object stays for each sample.
    assert peak_bytes < 60e6


# -- the plan on disk --------------------------------------------------------------------------------------


def test_first_save_writes_and_the_second_resumes(tmp_path: Path) -> None:
    plan = make_plan()
    assert save_or_match(plan, tmp_path / "new") is False
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert sorted(before) == ["plan.json", "samples.parquet"]
    assert save_or_match(make_plan(), tmp_path / "new") is True
    save_or_match(plan, tmp_path / "again")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    saved = json.loads(before["plan.json"])
    assert saved["hash"] == plan.hash
    assert saved["shards"]["train"][:2] == [[0, 4], [4, 8]]


def test_saved_samples_are_in_planned_order(tmp_path: Path) -> None:
    plan = make_plan()
    save_or_match(plan, tmp_path)
    table = pq.read_table(tmp_path / "samples.parquet")
    expected = [(shard.split, key) for shard in plan.shards for key in plan.sample_keys(shard)]
    assert list(zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True)) == expected


def test_loaded_plan_equals_the_saved_one(tmp_path: Path) -> None:
    plan = make_plan()
    save_or_match(plan, tmp_path)
    loaded = load_plan(tmp_path)
    assert loaded == plan
    assert loaded.hash == plan.hash
    assert loaded.shards == plan.shards
    for shard in plan.shards:
        assert loaded.sample_keys(shard) == plan.sample_keys(shard)
        assert np.array_equal(loaded.sample_indices(shard), plan.sample_indices(shard))


def test_another_plan_is_refused_and_every_difference_named(tmp_path: Path) -> None:
    save_or_match(make_plan(), tmp_path)
    before = (tmp_path / "plan.json").read_bytes()
    other = make_plan(settings={"spec": SPEC.to_json(), "transform": {"size": 96}}, views=1, val=6)
    with pytest.raises(ShardError) as error:
        save_or_match(other, tmp_path)
    message = str(error.value)
    for expected in (
        "settings.transform.size: 64 → 96",
        "settings.transform.crops: [1, 2] → null",
        "views: 2 → 1",
        "splits.val.samples: 5 → 6",
        "restore these settings",
        "another output folder",
    ):
        assert expected in message
    assert "shard_rows" not in message
    assert (tmp_path / "plan.json").read_bytes() == before


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    save_or_match(make_plan(), tmp_path)
    save_or_match(make_plan(samples={"train": list("abc"), "val": ["v"]}), tmp_path / "other")
    (tmp_path / "other" / "samples.parquet").replace(tmp_path / "samples.parquet")
    with pytest.raises(ShardError, match="do not match the plan's hash"):
        load_plan(tmp_path)
    (tmp_path / "samples.parquet").write_bytes(b"nothing")
    with pytest.raises(ShardError, match=r"samples.parquet cannot be read"):
        load_plan(tmp_path)
    (tmp_path / "plan.json").write_text('{"hash": "x"}')
    with pytest.raises(ShardError, match="is not a plan"):
        load_plan(tmp_path)
    with pytest.raises(ShardError, match="is not a plan of a job"):
        save_or_match(make_plan(), tmp_path)


# -- sidecars and the manifest -----------------------------------------------------------------------------


def sidecars_of(plan: Plan, duration_s: float = 1.0) -> list[Sidecar]:
    return [
        Sidecar(
            plan_hash=plan.hash,
            split=shard.split,
            index=shard.index,
            rows=(shard.samples - 1) * plan.views,
            samples=shard.samples - 1,
            failures=(Failure(plan.sample_keys(shard)[0], "truncated file"),),
            files={f"{shard.name}.parquet": FileRecord("00ff", 4)},
            durations_s={"encode": duration_s},
        )
        for shard in plan.shards
    ]


def test_loaded_sidecar_equals_the_saved_one(tmp_path: Path) -> None:
    sidecar = sidecars_of(make_plan())[0]
    sidecar.save(tmp_path / "s.json")
    assert Sidecar.load(tmp_path / "s.json") == sidecar
    saved = json.loads((tmp_path / "s.json").read_text())
    assert saved["failures"][0]["reason"] == "truncated file"
    assert saved["files"] == {"shard-000000.parquet": {"sha256": "00ff", "bytes": 4}}
    write_sealed_json(tmp_path / "s.json", {"rows": 1})
    with pytest.raises(ShardError, match="is not a sidecar"):
        Sidecar.load(tmp_path / "s.json")


def test_shard_is_done_only_when_complete(tmp_path: Path) -> None:
    plan = make_plan()
    shard = plan.shards[0]
    path = sidecar_path(tmp_path, shard)
    assert not shard_is_done(tmp_path, plan.hash, shard)
    sidecars_of(plan)[0].save(path)
    assert not shard_is_done(tmp_path, plan.hash, shard)  # the data file is missing
    data = shard.path(tmp_path, ".parquet").local
    assert data
    data.write_bytes(b"1234")
    assert shard_is_done(tmp_path, plan.hash, shard)
    assert not shard_is_done(tmp_path, plan.hash, shard, check_hash=True)
    assert not shard_is_done(tmp_path, make_plan(views=1).hash, shard)
    data.write_bytes(b"123")
    assert not shard_is_done(tmp_path, plan.hash, shard)
    path.write_bytes(b"{")
    assert not shard_is_done(tmp_path, plan.hash, shard)


def test_manifest_bytes_do_not_depend_on_the_order_of_work(tmp_path: Path) -> None:
    plan = make_plan()
    for name, sidecars in (("a", sidecars_of(plan)), ("b", sidecars_of(plan, duration_s=9.0)[::-1])):
        (tmp_path / name).mkdir()
        Manifest.build(plan=plan, sidecars=sidecars, spec=SPEC, class_names=["x"]).save(tmp_path / name)
    content = (tmp_path / "a" / "dataset.json").read_bytes()
    assert content == (tmp_path / "b" / "dataset.json").read_bytes()
    assert b"duration" not in content


def test_manifest_counts_and_equals_the_saved_one(tmp_path: Path) -> None:
    plan = make_plan()
    manifest = Manifest.build(
        plan=plan,
        sidecars=sidecars_of(plan),
        spec=SPEC,
        class_names=["x", "y"],
        tokenizer={"fingerprint": "f", "path": "tokenizer"},
        conditions={"segmentation": {"fingerprint": "g"}},
    )
    train = manifest.splits["train"]
    assert (train.samples, train.failures, train.rows) == (15, 5, 30)
    assert [shard.name for shard in train.shards] == [f"shard-{i:06d}" for i in range(5)]
    save_dataset(manifest, tmp_path)
    loaded = Manifest.load(tmp_path)
    assert list(loaded.files) == [CARD_FILE]  # the folder has neither a plan nor tokenizers
    assert loaded == dataclasses.replace(manifest, files=loaded.files)
    write_sealed_json(tmp_path / "dataset.json", {"spec": SPEC.to_json()})
    with pytest.raises(ShardError, match="is not a manifest"):
        Manifest.load(tmp_path)


def test_manifest_refuses_missing_shards_and_samples() -> None:
    plan = make_plan()
    good = sidecars_of(plan)

    def build(sidecars: list[Sidecar]) -> Manifest:
        return Manifest.build(plan=plan, sidecars=sidecars, spec=SPEC)

    build(good)
    with pytest.raises(ShardError, match="train/shard-000000 has no sidecar"):
        build(good[1:])
    with pytest.raises(ShardError, match="made from another plan"):
        build([dataclasses.replace(good[0], plan_hash="0"), *good[1:]])
    with pytest.raises(ShardError, match="4 samples were planned, but 3 encoded and 0 failures"):
        build([dataclasses.replace(good[0], failures=()), *good[1:]])
    with pytest.raises(ShardError, match=r"train/99, which is not in the plan"):
        build([*good, dataclasses.replace(good[0], index=99)])


# -- more keys than fit in memory --------------------------------------------------------------------------


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 16 keys, so that a plan of 100 samples keeps them in files."""
    monkeypatch.setattr(keys, "GROUP", 16)


@pytest.mark.parametrize("samples", [15, 16, 17, 32, 100])
def test_plans_with_keys_in_files_equal_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    expected = make_plan(train=samples, val=samples)
    save_or_match(expected, tmp_path / "memory")
    monkeypatch.setattr(keys, "GROUP", 16)
    plan = make_plan(train=samples, val=samples)
    assert plan.hash == expected.hash
    for shard in expected.shards:
        assert plan.sample_keys(shard) == expected.sample_keys(shard)
    save_or_match(plan, tmp_path / "files")
    loaded = load_plan(tmp_path / "files")
    assert loaded == plan
    assert {split: found.to_pylist() for split, found in loaded.keys.items()} == {
        split: found.to_pylist() for split, found in expected.keys.items()
    }
    assert load_plan(tmp_path / "memory").hash == expected.hash  # row groups of any size are read
    monkeypatch.undo()
    assert load_plan(tmp_path / "files").hash == expected.hash


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({70: "key5"}, "'key5' occurs more than once in split 'train'"),
        ({99: "a.png"}, "'a.png' is not allowed"),
        ({60: "key3-v1"}, "'key3-v1' is named like a view"),
        ({3: "key60-v1"}, "'key60-v1' is named like a view"),
    ],
)
def test_bad_keys_in_any_group_are_refused(changed: dict[int, str], message: str) -> None:
    names = [changed.get(i, f"key{i}") for i in range(100)]
    with pytest.raises(ShardError, match=message):
        make_plan(samples={"train": names, "val": ["v"]}, views=2)


@pytest.mark.usefixtures("small_groups")
def test_files_of_keys_are_deleted_with_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plan = make_plan(train=100)
    assert len(list(tmp_path.iterdir())) == 1
    del plan
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_groups")
def test_a_full_disk_for_temporary_files_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(ShardError, match=r"the keys of 100 samples cannot be sorted in .*set TMPDIR"):
            make_plan(train=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
