"""Conditions, orders and scales added to finished shards equal those of one job, also after kills, and are checked."""

import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image
from tiny_job import CONFIG, MORTAL, hashes, write_images, write_tokenizer

from codeprior.cache import memory_map
from codeprior.config import ModelConfig as PriorModel
from codeprior.config import TrainConfig as PriorConfig
from codeprior.train import train_prior
from codeshards.format import Manifest, ShardDataset, ShardError, Sidecar, load_plan, open_store
from codeshards.format.contents import delete_dataset
from codeshards.format.files import file_record, read_sealed_json, sha256_file, write_sealed_json
from codeshards.format.hub import upload_of
from codeshards.job.add import add_conditions
from codeshards.job.tokenize import tokenize
from codeshards.tools.add_codes import add_codes
from codeshards.tools.convert import convert
from codeshards.tools.inspect import inspect
from codeshards.tools.merge import merge
from codeshards.tools.reencode import reencode
from codeshards.tools.verify import verify
from vqgan.checkpoint import fingerprint

ALL = ("row_major", "spiral_out", "zcurve", "subsample", "alternate")
BASE = replace(CONFIG, orders=("row_major",), views=2, max_failure_rate=0.1)
LABELS = tuple(f"thing {label}" for label in range(9))
SIDE_CAR = "cond_depth/train/shard-000002.parquet"


@pytest.fixture(scope="module")
def world(local_ray_cores, tmp_path_factory) -> Path:
    """Pictures with depth and masks, of which one picture and one depth map are broken; tokenizers; image shards."""
    root = tmp_path_factory.mktemp("world")
    data, rng = write_images(root / "data", train=30), np.random.default_rng(1)
    for split in ("train", "val"):
        for picture in sorted((data / split).rglob("*.png")):
            grey = rng.integers(0, 9, (8, 8), dtype=np.uint8).repeat(5, 0).repeat(6, 1)
            for kind in ("depth", "segmentation"):
                place = data / f"{split}_{kind}" / picture.relative_to(data / split)
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey).save(place)
    (data / "segmentation_labels.txt").write_text("\n".join(LABELS))
    (data / "train/class0/003.png").write_bytes(b"no picture")
    (data / "train_depth/class2/011.png").write_bytes(b"no map")
    write_tokenizer(root / "image")
    write_tokenizer(root / "depth", 1, modality="depth")
    write_tokenizer(root / "segmentation", 2, modality="segmentation", n_labels=9)
    tokenize(BASE, dataset="folder", data=data, tokenizers={"image": root / "image"}, out=root / "base")
    return root


@pytest.fixture(scope="module")
def one_pass(world) -> Path:
    """The shards of one job for all columns."""
    config = replace(BASE, orders=ALL, scales=(1, 2, 4))
    tokenizers = {name: world / name for name in ("image", "depth", "segmentation")}
    tokenize(config, dataset="folder", data=world / "data", tokenizers=tokenizers, out=world / "one")
    return world / "one"


@pytest.fixture
def base(world, tmp_path) -> Path:
    """A copy of the shards of images."""
    return Path(shutil.copytree(world / "base", tmp_path / "shards"))


@pytest.fixture(scope="module")
def added(world) -> Path:
    """A copy of the shards of images, with all columns added one after the other."""
    out = Path(shutil.copytree(world / "base", world / "added"))
    add(world, out, "depth", "segmentation")
    add_codes(out, orders=ALL, scales=(1, 2, 4))
    return out


def add(world: Path, out: Path, *names: str, config=BASE, **options) -> Manifest:
    options = {"data": world / "data", "dataset": "folder", "out": out} | options
    return add_conditions(config, tokenizers={name: world / name for name in names}, **options)


def columns(dataset: Path, split: str, rows: int = 8192) -> dict[str, np.ndarray]:
    shards = ShardDataset.open(dataset)
    batches = list(shards.batches(split, shards.spec.column_names, rows))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in shards.spec.column_names}


def side_cars(out: Path) -> dict[str, str]:
    return {name: value for name, value in hashes(out).items() if "/train/" in name or "/val/" in name}


# -- equality with one pass ------------------------------------------------------------------------------------


def test_added_columns_equal_those_of_one_job(added, one_pass):
    assert ShardDataset.open(added).spec == ShardDataset.open(one_pass).spec
    for split in ("train", "val"):
        later, together = columns(added, split), columns(one_pass, split, 3)
        assert list(later) == list(together)
        for name, values in together.items():
            assert later[name].dtype == values.dtype
            np.testing.assert_array_equal(later[name], values)
    assert verify(added, fingerprint_of=fingerprint).problems == ()
    plan = load_plan(added)
    assert plan.hash == Manifest.load(added).plan_hash


def test_converted_shards_have_the_bytes_of_one_job(added, one_pass, tmp_path):
    convert(added, tmp_path / "a", ["parquet"])
    assert hashes(tmp_path / "a") == hashes(one_pass)
    assert Manifest.load(tmp_path / "a") == Manifest.load(one_pass)
    index = 0
    for shard in load_plan(one_pass).shards:
        paths = (folder / shard.split / f"{shard.name}.json" for folder in (tmp_path / "a", one_pass))
        mine, theirs = (replace(Sidecar.load(path), durations_s={}) for path in paths)
        assert mine == theirs
        index += len(mine.failures)
    assert index == 2


def test_image_shards_and_plan_stay_as_they_are(world, added):
    for path in world.joinpath("base").rglob("*"):
        name = path.relative_to(world / "base").as_posix()
        if path.is_file() and name not in ("dataset.json", "README.md", ".tokenize.lock"):
            assert path.read_bytes() == (added / name).read_bytes(), name
    assert {**read_sealed_json(added / "dataset.json"), "files": 0, "added": 0} == {
        **read_sealed_json(world / "base/dataset.json"), "files": 0, "added": 0, "label_names": [*LABELS]
    }  # fmt: skip


def test_names_of_labels_come_with_the_masks_and_later_by_the_same_job(world, base, added, one_pass, tmp_path):
    assert ShardDataset.open(base).label_names == ()
    assert ShardDataset.open(added).label_names == ShardDataset.open(one_pass).label_names == LABELS
    older = Path(shutil.copytree(one_pass, tmp_path / "older"))
    value = read_sealed_json(older / "dataset.json")
    write_sealed_json(older / "dataset.json", {**value, "label_names": [], "license": "cc0-1.0"})
    tokenizers = {name: world / name for name in ("image", "depth", "segmentation")}
    config = replace(BASE, orders=ALL, scales=(1, 2, 4))
    made = tokenize(config, dataset="folder", data=world / "data", tokenizers=tokenizers, out=older)
    assert (made.label_names, made.license) == (LABELS, "cc0-1.0")
    assert ShardDataset.open(older).fingerprint == ShardDataset.open(one_pass).fingerprint


def test_failed_map_costs_its_rows_in_all_columns(world, added):
    before, after = ShardDataset.open(world / "base"), ShardDataset.open(added)
    assert before.rows("train") - after.rows("train") == 2
    gone = set(columns(world / "base", "train")["key"]) - set(columns(added, "train")["key"])
    assert gone == {"class2/011", "class2/011-v1"}
    assert after.manifest.splits["train"].failures == 2
    assert sum(found["rows"] for found in inspect(added).to_json()["splits"].values()) == 58 + 12 - 2
    mapped = memory_map(after, "train", "cond_depth"), memory_map(after, "train", "codes_row_major")
    assert len(mapped[0]) == len(mapped[1]) == after.rows("train")


def test_reader_of_the_specification_reads_added_columns(added):
    path = Path(__file__).resolve().parents[2] / "examples/read_shards.py"
    reader = runpy.run_path(str(path))
    for split in ("train", "val"):
        found, expected = list(reader["shards"](added, split)), columns(added, split)
        assert found[0].keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(np.concatenate([rows[name] for rows in found]), values)
    assert reader["fingerprint"](added) == ShardDataset.open(added).fingerprint


@pytest.mark.slow
def test_columns_are_added_in_an_object_store(world, added, base, s3):
    out = open_store("s3://bucket/o")
    for path in (path for path in base.rglob("*") if path.is_file() and path.name[0] != "."):
        (out / path.relative_to(base).as_posix()).write_bytes(path.read_bytes())
    add(world, "s3://bucket/o", "depth", "segmentation")
    add_codes(out, orders=ALL, scales=(1, 2, 4))
    assert {name: sha256_file(out / name) for name in hashes(added)} == hashes(added)
    assert verify(out).problems == ()
    delete_dataset(out)
    assert [name for name in out.files() if name != "events.jsonl"] == []


def test_upload_and_card_have_the_side_car_shards(added):
    dataset = ShardDataset.open(added)
    names = set(upload_of(dataset).files)
    side_cars = {path.relative_to(added).as_posix() for path in added.glob("*_*/*/shard-*")}
    assert len(side_cars) == 9 * 10 * 2
    assert side_cars | {"train/shard-000000.parquet", "tokenizer-depth/config.json"} <= names
    text = (added / "README.md").read_text()
    query = text.partition('duckdb.sql("')[2].partition('")')[0].replace("PATH", str(added))
    assert len(duckdb.sql(query).fetchall()) == dataset.rows("train")


# -- priors ----------------------------------------------------------------------------------------------------

TINY = PriorConfig(
    model=PriorModel(n_layer=1, n_head=2, n_embd=32), order="zcurve", condition="depth", batch_size=8, steps=4,
    warmup_steps=1, precision="float32", device="cpu", eval_every=4, checkpoint_every=2,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{}, {"loader": "stream"}, {"condition": "segmentation+depth"}, {"multiscale": True}]
)
def test_prior_of_added_columns_equals_that_of_one_job(added, one_pass, tmp_path, changes):
    weights = []
    for shards in (added, one_pass):
        train_prior(replace(TINY, **changes), shards, tmp_path / shards.name)
        weights.append((tmp_path / shards.name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("loader", ["memory_map", "stream"])
def test_prior_from_before_resumes_as_if_nothing_had_been_added(world, added, tmp_path, loader):
    config = replace(TINY, order="row_major", condition="none", loader=loader, steps=2)
    train_prior(config, world / "base", tmp_path / "run")
    train_prior(replace(config, steps=4), added, tmp_path / "run")
    train_prior(config, world / "base", tmp_path / "whole")
    train_prior(replace(config, steps=4), world / "base", tmp_path / "whole")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_blend_from_before_resumes_as_if_nothing_had_been_added(world, added, one_pass, tmp_path):
    config = replace(TINY, order="row_major", condition="none", steps=2)
    for name, later in (("run", added), ("whole", world / "base")):
        train_prior(config, {world / "base": 0.75, one_pass: 0.25}, tmp_path / name)
        train_prior(replace(config, steps=4), {later: 0.75, one_pass: 0.25}, tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == other


# -- workers, kills, resuming ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_and_a_killed_worker_give_the_same_bytes(world, added, base, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, pathlib\nimport codeshards.job.tokenize as job\nfrom codeshards.job.add import add_conditions\n"
        "from codeshards.config import TokenizeConfig\n"
        f"marker = pathlib.Path({str(tmp_path / 'died')!r})\n"
        f"{MORTAL}"
        f"add_conditions(TokenizeConfig(workers=2, max_failure_rate=0.1), dataset='folder', "
        f"data=pathlib.Path({str(world / 'data')!r}), tokenizers={{'depth': pathlib.Path({str(world / 'depth')!r})}}, "
        f"out=pathlib.Path({str(base)!r}))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "died").exists()
    found, expected = hashes(base), hashes(added)
    assert {name: value for name, value in found.items() if name != "dataset.json"}.items() <= expected.items()
    assert verify(base).problems == ()


def test_killed_addition_resumes_with_finished_side_cars(world, added, base):
    add(world, base, "depth")
    whole = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    manifest = read_sealed_json(base / "dataset.json")
    del manifest["added"]
    write_sealed_json(base / "dataset.json", manifest)
    (base / SIDE_CAR).with_suffix(".json").unlink()
    (base / "cond_depth/train/.shard-000001.parquet.tmp-1-dead").write_bytes(b"half")
    kept = (base / "cond_depth/train/shard-000001.parquet").stat().st_mtime_ns
    assert "depth" not in ShardDataset.open(base).spec.conditions
    add(world, base, "depth")
    assert {path.name for path in base.rglob("*.tmp-*")} == set()
    assert (base / "cond_depth/train/shard-000001.parquet").stat().st_mtime_ns == kept
    for path, content in whole.items():
        assert (path.suffix == ".json" and "cond_depth" in path.parts) or path.read_bytes() == content, path
    add(world, base, "depth")  # is there already
    assert {path for path in base.rglob("*") if path.is_file()} == whole.keys()


def test_mended_map_is_encoded_when_failures_are_retried(world, base, tmp_path):
    data = Path(shutil.copytree(world / "data", tmp_path / "data"))
    mask = data / "train_segmentation/class2/011.png"
    whole = mask.read_bytes()
    mask.write_bytes(b"no map")
    add(world, base, "segmentation", data=data)
    mask.write_bytes(whole)
    (data / "segmentation_labels.txt").unlink()
    kept = {path: path.stat().st_mtime_ns for path in base.rglob("cond_segmentation/*/*.parquet")}
    add(world, base, "segmentation", data=data, retry_failed=True)
    assert ShardDataset.open(base).rows("train") == ShardDataset.open(world / "base").rows("train")
    assert ShardDataset.open(base).label_names == LABELS
    assert sum(path.stat().st_mtime_ns != time for path, time in kept.items()) == 1
    add(world, base, "depth")
    assert verify(base).problems == ()


def test_shards_that_are_made_again_drop_the_column_until_it_is_added_again(world, base, caplog):
    add(world, base, "depth")
    again = {"dataset": "folder", "data": world / "data", "tokenizers": {"image": world / "image"}, "out": base}
    whole = hashes(base)
    tokenize(replace(BASE, license="cc0-1.0"), **again)
    assert "depth" in ShardDataset.open(base).spec.conditions
    (base / "train/shard-000001.parquet").unlink()
    tokenize(BASE, **again)
    assert "add cond_depth again" in caplog.text
    assert "depth" not in ShardDataset.open(base).spec.conditions
    kept = (base / SIDE_CAR).stat().st_mtime_ns
    add(world, base, "depth")
    assert (base / SIDE_CAR).stat().st_mtime_ns == kept
    assert hashes(base) == whole
    delete_dataset(base)
    assert not base.exists() or not list(base.rglob("*"))


# -- what is refused -------------------------------------------------------------------------------------------


def test_wrong_input_is_refused(world, base, added, tmp_path):
    other = Path(shutil.copytree(world / "data", tmp_path / "other"))
    (other / "train/class0/000.png").unlink()
    write_tokenizer(tmp_path / "depth", modality="depth", geometry="pad")
    write_tokenizer(tmp_path / "new/depth", seed=9, modality="depth")
    with pytest.raises(ShardError, match="is not what split 'train' was made from"):
        add(world, base, "depth", data=other)
    with pytest.raises(ShardError, match="differ in geometry"):
        add(tmp_path, base, "depth", data=world / "data")
    with pytest.raises(ShardError, match="has depth of another tokenizer"):
        add(tmp_path / "new", added, "depth", data=world / "data")
    with pytest.raises(ShardError, match="was added after depth"):
        add(world, added, "depth", retry_failed=True)
    with pytest.raises(ShardError, match="more than max_failure_rate"):
        add(world, base, "depth", config=replace(BASE, max_failure_rate=0.0))
    assert not ShardDataset.open(base).spec.conditions
    with pytest.raises(ShardError, match=r"ShardSpec.scales is \(1, 8\)"):
        add_codes(base, scales=(1, 8))
    (base / "dataset.json").unlink()
    with pytest.raises(ShardError, match="did not finish"):
        add(world, base, "depth")


def test_merged_and_imported_shards_take_codes_and_no_maps(world, base, tmp_path):
    second = Path(shutil.copytree(world / "data", tmp_path / "data"))
    for split in ("train", "val"):
        for path in (second / split).rglob("*.png"):
            path.rename(path.with_name(f"b{path.name}"))
    tokenize(BASE, dataset="folder", data=second, tokenizers={"image": world / "image"}, out=tmp_path / "second")
    merge([base, tmp_path / "second"], tmp_path / "both")
    with pytest.raises(ShardError, match="no single source"):
        add(world, tmp_path / "both", "depth")
    add_codes(tmp_path / "both", scales=(2,))
    for part in (base, tmp_path / "second"):
        add_codes(part, scales=(2,))
    merge([base, tmp_path / "second"], tmp_path / "again")
    later, together = columns(tmp_path / "both", "train"), columns(tmp_path / "again", "train")
    np.testing.assert_array_equal(later["scale_2"], together["scale_2"])
    assert verify(tmp_path / "both").problems == verify(tmp_path / "again").problems == ()


def test_verify_finds_swapped_side_cars(world, base):
    manifest = add(world, base, "depth")
    whole = [number for number, shard in enumerate(manifest.added[0].splits["train"].shards) if shard.rows == 8]
    paths = {number: base / f"cond_depth/train/shard-{number:06d}.parquet" for number in whole[:2]}
    for path, content in zip(paths.values(), [path.read_bytes() for path in reversed(paths.values())], strict=True):
        path.write_bytes(content)
    assert len(verify(base).problems) == 2
    with pytest.raises(ShardError, match=r"cond_depth/train/shard-00000\d.parquet is missing or damaged"):
        columns(base, "train")
    value = read_sealed_json(base / "dataset.json")  # somebody also mends every hash
    for number, path in paths.items():
        sidecar = read_sealed_json(path.with_suffix(".json"))
        record = {path.name: file_record(path)._asdict()}
        sidecar["files"] = value["added"][0]["splits"]["train"]["shards"][number]["files"] = record
        write_sealed_json(path.with_suffix(".json"), sidecar)
    write_sealed_json(base / "dataset.json", value)
    assert list(verify(base).problems) == [
        f"{path}: its keys and views are not those of train/{path.stem}" for path in paths.values()
    ]


def test_encoding_again_covers_added_columns(world, added):
    found = reencode(added, source="folder", data=world / "data", samples=8)
    assert {"cond_depth", "scale_2"} <= found.same.keys()
    assert set(found.same.values()) == {1.0}


def test_fingerprint_of_a_dataset_from_before_is_kept(world, base):
    old = ShardDataset.open(base).fingerprint
    add_codes(base, orders=("zcurve",))
    new = ShardDataset.open(base)
    assert new.fingerprint != old == ShardDataset.open(base, known=old).fingerprint
    assert new.fingerprint_of("codes_row_major") == old != new.fingerprint_of("codes_zcurve")
    assert "zcurve" in ShardDataset.open(base, known=old).spec.orders
    add(world, base, "depth")  # leaves rows out: a prior of before sees the rows of before
    assert ShardDataset.open(base, known=old).rows("train") == ShardDataset.open(world / "base").rows("train")
    assert ShardDataset.open(base, known=old).fingerprint == old
    assert ShardDataset.open(base).rows("train") < ShardDataset.open(base, known=new.fingerprint).rows("train")
