"""Tools for finished datasets: conversions lose nothing, merges keep every row and failure."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import SPEC, make_dataset

from codeshards.format import Manifest, ShardDataset, ShardError, Sidecar, load_plan
from codeshards.format.files import read_sealed_json, write_sealed_json
from codeshards.format.tar import read_tar, tar_bytes
from codeshards.tools.convert import convert
from codeshards.tools.inspect import inspect
from codeshards.tools.merge import merge
from codeshards.tools.verify import verify
from runkit.errors import UserError

BOTH = ("parquet", "webdataset")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path, split: str) -> dict[str, np.ndarray]:
    batches = list(ShardDataset.open(folder).batches(split, SPEC.column_names))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in SPEC.column_names}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "d"
    make_dataset(folder, formats=BOTH, fails=["sample1-0003", "sample2-0000"])
    return folder


# -- convert and merge -------------------------------------------------------------------------------------


def test_converting_back_gives_the_same_bytes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", fails=["sample1-0003"])
    convert(tmp_path / "a", tmp_path / "b", ["webdataset"])
    convert(tmp_path / "b", tmp_path / "c", ["webdataset", "parquet"])
    convert(tmp_path / "c", tmp_path / "d", ["parquet"])
    assert contents(tmp_path / "d") == contents(tmp_path / "a")
    assert list((tmp_path / "b").rglob("*.parquet")) == [tmp_path / "b/samples.parquet"]
    for name in "bc":
        assert verify(tmp_path / name).problems == ()
        for split in ("train", "val"):
            for column, values in rows_of(tmp_path / "a", split).items():
                assert np.array_equal(rows_of(tmp_path / name, split)[column], values)
    assert ShardDataset.open(tmp_path / "b").manifest.formats == ("webdataset",)
    assert ShardDataset.open(tmp_path / "c").manifest.formats == BOTH


def test_convert_resumes_and_refuses_other_folders(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", ["webdataset"])
    whole = contents(tmp_path / "b")
    for name in ("dataset.json", "train/shard-000001.json", "train/shard-000002.tar"):
        (tmp_path / "b" / name).unlink()
    kept = (tmp_path / "b/train/shard-000000.tar").stat().st_mtime_ns
    convert(tmp_path / "a", tmp_path / "b", ["webdataset"])
    assert contents(tmp_path / "b") == whole
    assert (tmp_path / "b/train/shard-000000.tar").stat().st_mtime_ns == kept
    with pytest.raises(ShardError, match="holds shards of another plan"):
        convert(tmp_path / "a", tmp_path / "b", ["parquet", "webdataset"])
    with pytest.raises(UserError, match="is the input source"):
        convert(tmp_path / "a", tmp_path / "a", ["parquet"])


def test_flipped_bit_gets_no_valid_hash(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", formats=["webdataset"])
    make_dataset(tmp_path / "b", seed=5, formats=["webdataset"])
    tar = tmp_path / "a/train/shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b".cond_segmentation.npy") + 512 + 128] ^= 1
    tar.write_bytes(content)
    read_tar(bytes(content))  # a code as good as any: its structure tells nothing
    for work in (lambda: convert(tmp_path / "a", tmp_path / "c", ["parquet"]),
                 lambda: merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")):  # fmt: skip
        with pytest.raises(ShardError, match=r"shard-000001\.tar is missing or damaged"):
            work()


@pytest.mark.parametrize("harm", [b"", b"x" * 1536, b"PAR1"])
def test_invalid_tars_are_refused(harm: bytes) -> None:
    with pytest.raises(ShardError, match=r"not a shard of codes|is damaged"):
        read_tar(harm)


@given(st.integers(0, 100_000))
@settings(deadline=None)
def test_a_tar_that_was_cut_short_is_refused(dataset: Path, at: int) -> None:
    whole = (dataset / "val/shard-000000.tar").read_bytes()
    assert tar_bytes(read_tar(whole)) == whole
    for other in (whole[: at % (len(whole) - 1024)], whole + b"more"):
        with pytest.raises(ShardError):
            read_tar(other)


def test_merge_keeps_rows_keys_and_failures(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", rows=10, fails=["sample1-0003", "sample2-0000"])
    make_dataset(tmp_path / "b", rows=7, seed=11, formats=["webdataset"], fails=["sample11-0005"])
    manifest = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m", formats=BOTH)
    assert verify(tmp_path / "m").problems == ()
    assert [entry.name for entry in manifest.splits["train"].shards] == [f"shard-{i:06d}" for i in range(5)]
    assert (manifest.splits["train"].samples, manifest.splits["train"].failures) == (15, 2)
    for split in ("train", "val"):
        a, b, merged = (rows_of(tmp_path / name, split) for name in "abm")
        for column in SPEC.column_names:
            assert np.array_equal(merged[column], np.concatenate([a[column], b[column]]))
    failed = [f.key for path in sorted((tmp_path / "m/train").glob("*.json")) for f in Sidecar.load(path).failures]
    assert sorted(failed) == ["sample1-0003", "sample11-0005"]
    assert load_plan(tmp_path / "m").settings["merged"] == [load_plan(tmp_path / name).hash for name in "ab"]


@pytest.mark.parametrize("sources", ["abc", "bca"])
def test_merge_takes_the_names_of_labels_from_those_that_have_them(tmp_path: Path, sources: str) -> None:
    for seed, name in enumerate("abc"):
        make_dataset(tmp_path / name, seed=10 * seed)
    value = read_sealed_json(tmp_path / "b/dataset.json")
    write_sealed_json(tmp_path / "b/dataset.json", {**value, "label_names": ["sky", "wall"]})
    made = merge([tmp_path / name for name in sources], tmp_path / "m")
    assert made.label_names == ShardDataset.open(tmp_path / "m").label_names == ("sky", "wall")


def test_merge_refuses_different_datasets(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", rows=7)
    with pytest.raises(ShardError, match=r"cannot be merged: key 'sample1-000\d' occurs more than once"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with pytest.raises(ShardError, match="two datasets or more, found 1"):
        merge([tmp_path / "a"], tmp_path / "m")
    many = [f"class {number}" for number in range(1000)]
    equal = {"class_names": [], "label_names": [], "license": "mit"}
    for field, one, other, words in (
        ("class_names", many, [*many[:700], "x", *many[701:]], "classes:\n  700: class 700\n  700: x\n"),
        ("class_names", many, many[:-1], "classes:\n  999: class 999\n  999: none\n"),
        ("label_names", ["sky"], ["wall"], "names of labels:\n  0: sky\n  0: wall\n"),
        ("license", "mit", "cc0-1.0", "licence:\n  mit\n  cc0-1.0\nRepeat the job"),
    ):
        for name, changed in (("a", one), ("b", other)):
            value = read_sealed_json(tmp_path / name / "dataset.json")
            write_sealed_json(tmp_path / name / "dataset.json", {**value, **equal, field: changed})
        with pytest.raises(ShardError, match=f"cannot be merged, because they differ in {words}") as caught:
            merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
        assert len(str(caught.value)) < 600
    assert not (tmp_path / "m").exists()


# -- inspect and the card ----------------------------------------------------------------------------------


def test_inspect_counts_codes_and_labels(dataset: Path) -> None:
    found = inspect(dataset)
    codes_NL = np.concatenate([rows_of(dataset, split)["codes_row_major"] for split in ("train", "val")])
    assert np.array_equal(found.codes["image"].counts_K, np.bincount(codes_NL.ravel(), minlength=50))
    for position in (0, 7, 15):
        p = np.unique(codes_NL[:, position], return_counts=True)[1] / len(codes_NL)
        assert found.codes["image"].entropy_bits_L[position] == pytest.approx(-(p * np.log2(p)).sum())
    assert found.labels["train"] == Counter(rows_of(dataset, "train")["label"].tolist())
    value = json.loads(json.dumps(found.to_json()))
    assert set(value["codes"]) == {"image", "scale_1", "scale_2", "cond_segmentation"}
    assert value["splits"]["train"]["rows"] == 9
    assert value["schema"]["codes_zcurve"].startswith("fixed_size_list")


@pytest.mark.parametrize("formats", [("parquet",), ("webdataset",), BOTH])
def test_card_is_valid_on_the_hub(tmp_path: Path, formats: tuple[str, ...]) -> None:
    make_dataset(tmp_path, formats=formats)
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    suffix = "parquet" if "parquet" in formats else "tar"
    assert meta["license"] == "unknown"
    assert meta["size_categories"] == ["n<1K"]
    assert meta["configs"][0]["data_files"] == [
        {"split": "train", "path": f"train/*.{suffix}"},
        {"split": "validation", "path": f"val/*.{suffix}"},
    ]
    assert "| train | 10 | 10 | 0 | 3 |" in body
    for format_name, reader in (("parquet", "duckdb"), ("webdataset", "import webdataset")):
        assert (reader in body) == (format_name in formats)
    assert str(tmp_path) not in text
    assert Manifest.load(tmp_path).files["README.md"].bytes == len(text.encode())
