"""Schema, Parquet shards, files and reader, also read by tools outside this package."""

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_shards import SPEC, make_dataset, make_rows, pick, reseal

from codeshards.format import ORDER_NAMES, GridSpec, OrderName, ShardDataset, ShardError, ShardSpec, inverse, order
from codeshards.format.files import (
    FileRecord,
    atomic_write,
    atomic_write_json,
    read_json,
    remove_stale_temps,
    sha256_file,
)
from codeshards.format.keys import check_key
from codeshards.format.parquet import group_rows, parquet_bytes
from codeshards.format.plan import PlannedShard
from codeshards.format.schema import METADATA_KEY
from codeshards.format.shardfile import ShardFormat, write_shard

SHARD = PlannedShard(split="train", index=0, start=0, stop=50)


@pytest.fixture
def shard_path(tmp_path: Path) -> Path:
    path = tmp_path / "shard-000000.parquet"
    path.write_bytes(parquet_bytes(SPEC.rows_to_table(**make_rows(20))))
    return path


def test_the_package_loads_its_public_names_on_use() -> None:
    script = """
import sys
import codeshards
assert not {"numpy", "pyarrow", "ray", "torch"} & set(sys.modules)
assert dir(codeshards) == codeshards.__all__
for name in codeshards.__all__:
    print(name, getattr(codeshards, name).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 9
    assert all(name == loaded for name, loaded in found)
    with pytest.raises(ImportError, match="cannot import name 'shards'"):
        from codeshards import shards  # noqa: F401


# -- the schema --------------------------------------------------------------------------------------------


def test_columns_are_the_contract() -> None:
    element = pa.field("element", pa.uint16(), nullable=False)
    expected = [("key", pa.string()), ("view", pa.uint8()), ("label", pa.int32())]
    expected += [(f"codes_{name}", pa.list_(element, 16)) for name in ORDER_NAMES]
    expected += [("scale_1", pa.list_(element, 1)), ("scale_2", pa.list_(element, 4))]
    expected += [("cond_segmentation", pa.list_(element, 6))]
    schema = SPEC.schema()
    assert [(column.name, column.type) for column in schema] == expected
    assert [column.name for column in schema if column.nullable] == ["label"]
    assert tuple(schema.names) == SPEC.column_names


def test_metadata_describes_the_shard(shard_path: Path) -> None:
    metadata = json.loads(pq.read_schema(shard_path).metadata[METADATA_KEY])
    assert metadata["format_version"] == 1
    assert metadata["image"] == {
        "height": 4,
        "width": 4,
        "codebook_size": 50,
        "fingerprint": "image-tokenizer",
    }
    assert metadata["orders"] == list(ORDER_NAMES)
    assert len(metadata["orders_hash"]) == 64
    assert metadata["scales"] == [1, 2]
    assert metadata["conditions"]["segmentation"]["fingerprint"] == "mask-tokenizer"
    assert ShardSpec.from_schema(pq.read_schema(shard_path)) == SPEC


def test_spec_equals_its_json_round_trip() -> None:
    text = json.dumps(SPEC.to_json())
    assert ShardSpec.from_json(json.loads(text)) == SPEC


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.sampled_from(["row_major", "zcurve", "alternate"]), min_size=1, unique=True),
    st.integers(0, 12),
)
def test_every_order_column_holds_the_same_picture(
    height: int, width: int, orders: list[OrderName], count: int
) -> None:
    grid = GridSpec(height=height, width=width, codebook_size=1 << 16, fingerprint="f")
    spec = ShardSpec(image=grid, orders=tuple(orders))
    codes_NHW = np.random.default_rng(count).integers(0, 1 << 16, (count, height, width), dtype=np.uint16)
    table = spec.rows_to_table([f"k{i}" for i in range(count)], np.zeros(count), None, codes_NHW)
    raster_NL = codes_NHW.reshape(count, height * width)
    for name in orders:
        codes_NT = np.array(table[f"codes_{name}"].to_pylist(), dtype=np.uint16).reshape(count, height * width)
        assert np.array_equal(codes_NT, raster_NL[:, order(name, height, width)])
        assert np.array_equal(codes_NT[:, inverse(name, height, width)], raster_NL)
    assert table["label"].null_count == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["codes_NHW"].__setitem__((3, 1, 1), 50), "codes: codes .*50 do not fit a codebook of 50"),
        (lambda r: r["scales"][2].__setitem__((0, 0, 0), 51), "scale_2: codes .*51 do not fit"),
        (lambda r: r["conditions"]["segmentation"].__setitem__((0, 0, 0), 7), "cond_segmentation: .*book of 7"),
        (lambda r: r.update(codes_NHW=r["codes_NHW"].astype(np.int64) - 10), "codes: codes -"),
        (lambda r: r.update(codes_NHW=r["codes_NHW"].astype(np.int64) + 70000), "codes: codes 7"),
        (lambda r: r.update(codes_NHW=r["codes_NHW"].astype(np.float32)), "expected integers"),
        (lambda r: r.update(codes_NHW=r["codes_NHW"].reshape(-1, 2, 8)), r"shape \(20, 4, 4\), found"),
        (lambda r: r.update(codes_NHW=r["codes_NHW"][1:]), r"shape \(20, 4, 4\), found"),
        (lambda r: r["keys"].__setitem__(7, r["keys"][2]), "'sample0-0002' occurs more than once"),
        (lambda r: r["keys"].__setitem__(7, "n01440764.JPEG"), "'n01440764.JPEG' is not allowed.*no dots"),
        (lambda r: r["keys"].__setitem__(7, ""), "'' is not allowed"),
        (lambda r: r["keys"].__setitem__(7, "/root"), "'/root' is not allowed"),
        (lambda r: r["scales"].pop(2), r"scales: the spec asks for \[1, 2\], found \[1\]"),
        (lambda r: r.update(conditions={}), r"conditions: the spec asks for \['segmentation'\], found \[\]"),
        (lambda r: r.update(views=np.full(20, 256)), "views: expected 20 numbers in 0..255"),
        (lambda r: r.update(labels=np.zeros(19)), "labels: expected 20 class indices"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    rows = make_rows(20)
    change(rows)
    with pytest.raises(ShardError, match=message):
        SPEC.rows_to_table(**rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: GridSpec(height=4, width=4, codebook_size=(1 << 24) + 1, fingerprint="f"), "at most 16777216"),
        (lambda g: GridSpec(height=0, width=4, codebook_size=5, fingerprint="f"), "height must be a positive"),
        (lambda g: GridSpec(height=4, width=4, codebook_size=5, fingerprint=""), "fingerprint is empty"),
        (lambda g: ShardSpec(image=g, orders=()), "at least one"),
        (lambda g: ShardSpec(image=g, orders=("zcurve", "zcurve")), "each order once"),
        (lambda g: ShardSpec(image=g, orders=("hilbert",)), "unknown order 'hilbert'"),
        (lambda g: ShardSpec(image=g, scales=(2, 1)), "ascending"),
        (lambda g: ShardSpec(image=g, scales=(1, 4)), r"out of \(1, 2\)"),
        (lambda g: ShardSpec(image=g, conditions={"sound": g}), "unknown condition 'sound'.*segmentation"),
    ],
)
def test_invalid_specs_are_refused(make: Callable[[GridSpec], Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        make(SPEC.image)


def test_undefined_order_is_refused_with_the_defined_orders() -> None:
    grid = GridSpec(height=6, width=6, codebook_size=5, fingerprint="f")
    with pytest.raises(ShardError, match=r"'subsample' is undefined.*row_major, spiral_out, zcurve, alternate"):
        ShardSpec(image=grid)


def replaced(schema: pa.Schema, **changes: Any) -> pa.Schema:
    text = json.loads(schema.metadata[METADATA_KEY])
    return schema.with_metadata({METADATA_KEY: json.dumps(text | changes).encode()})


def test_foreign_and_changed_schemas_are_refused() -> None:
    schema = SPEC.schema()
    with pytest.raises(ShardError, match=r"no 'imagepriors' metadata. Columns found: a, b"):
        ShardSpec.from_schema(pa.schema([("a", pa.int8()), ("b", pa.int8())]))
    with pytest.raises(ShardError, match="version 99 cannot be read"):
        ShardSpec.from_schema(replaced(schema, format_version=99))
    with pytest.raises(ShardError, match=r"order tables .* are not the ones"):
        ShardSpec.from_schema(replaced(schema, orders_hash="0" * 64))
    with pytest.raises(ShardError, match="incomplete"):
        ShardSpec.from_schema(replaced(schema, image={"height": 4}))
    with pytest.raises(ShardError, match="cannot be read as JSON"):
        ShardSpec.from_schema(schema.with_metadata({METADATA_KEY: b"{"}))
    with pytest.raises(ShardError, match=r"scale_1: expected .*, found none"):
        ShardSpec.from_schema(schema.remove(schema.get_field_index("scale_1")))


@given(st.text(max_size=6))
def test_webdataset_recovers_allowed_keys(key: str) -> None:
    try:
        check_key(key)
    except ShardError:
        assert not key or "." in key or key.startswith("/") or any(ord(c) < 32 for c in key)
    else:
        assert f"{key}.codes.npy".split(".", 1) == [key, "codes.npy"]


# -- shards seen from outside ------------------------------------------------------------------------------


def test_duckdb_reads_a_shard(shard_path: Path) -> None:
    rows, source = make_rows(20), f"read_parquet('{shard_path}')"
    described = {name: kind for name, kind, *_ in duckdb.sql(f"describe select * from {source}").fetchall()}
    assert described["key"] == "VARCHAR"
    assert described["label"] == "INTEGER"
    assert described["codes_zcurve"].startswith("USMALLINT[")
    # SQL lists count from 1; the third cell of the z-curve is cell (1, 0).
    query = f"select key, view, label, codes_zcurve[3], len(codes_alternate) from {source} where key like '%7'"
    assert duckdb.sql(query).fetchall() == [
        (rows["keys"][i], i % 2, i % 3, int(rows["codes_NHW"][i, 1, 0]), 16) for i in (7, 17)
    ]
    assert duckdb.sql(f"select count(*) from {source} where label is null").fetchall() == [(4,)]
    used = duckdb.sql(f"select max(code) from (select unnest(codes_row_major) as code from {source})").fetchall()
    assert used == [(int(rows["codes_NHW"].max()),)]
    metadata = duckdb.sql(f"select value from parquet_kv_metadata('{shard_path}') where key = 'imagepriors'")
    assert json.loads(metadata.fetchall()[0][0])["image"]["codebook_size"] == 50


def test_plain_pyarrow_reads_a_shard(shard_path: Path) -> None:
    rows, table = make_rows(20), pq.read_table(shard_path)
    assert table["key"].to_pylist() == rows["keys"]
    assert table["codes_row_major"].to_pylist() == rows["codes_NHW"].reshape(20, 16).tolist()
    assert table["scale_2"].to_pylist() == rows["scales"][2].reshape(20, 4).tolist()
    assert table["cond_segmentation"].to_pylist() == rows["conditions"]["segmentation"].reshape(20, 6).tolist()
    assert table["label"].to_pylist() == [None if i % 5 == 4 else i % 3 for i in range(20)]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    table, both = SPEC.rows_to_table(**make_rows(50)), ("parquet", "webdataset")
    records = [
        write_shard(tmp_path / name, SHARD, table, formats) for name, formats in (("a", both), ("b", both[::-1]))
    ]
    assert records[0] == records[1]
    for name, record in records[0].items():
        a, b = tmp_path / "a" / "train" / name, tmp_path / "b" / "train" / name
        assert record == FileRecord(sha256_file(a), a.stat().st_size)
        assert a.read_bytes() == b.read_bytes()
    in_pieces = pa.concat_tables([table[:7], table[7:]])
    assert write_shard(tmp_path / "c", SHARD, in_pieces, both) == records[0]
    other = write_shard(tmp_path / "d", SHARD, SPEC.rows_to_table(**make_rows(50, seed=1)), both)
    assert all(other[name].sha256 != record.sha256 for name, record in records[0].items())


def test_shards_are_dictionary_encoded_zstd_in_several_row_groups(tmp_path: Path) -> None:
    grid = GridSpec(height=1, width=2, codebook_size=9, fingerprint="f")
    spec = ShardSpec(image=grid, orders=("row_major",))
    count = 5000
    codes = np.random.default_rng(0).integers(0, 9, (count, 1, 2), dtype=np.uint16)
    table = spec.rows_to_table(list(map(str, range(count))), [0] * count, None, codes)
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(table))
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1250] * 4
    codes_column = metadata.row_group(0).column(3)
    assert codes_column.path_in_schema.startswith("codes_row_major")
    assert codes_column.compression == "ZSTD"
    assert "RLE_DICTIONARY" in codes_column.encodings
    assert [group_rows(n) for n in (0, 100, 8192, 100_000)] == [1024, 1024, 2048, 8192]


def test_only_shard_tables_are_written(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="not a shard of codes"):
        write_shard(tmp_path, SHARD, pa.table({"a": [1]}))
    with pytest.raises(ShardError, match=r"formats is \('csv',\): choose one or more of parquet, webdataset"):
        write_shard(tmp_path, SHARD, SPEC.rows_to_table(**make_rows(2)), ("csv",))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# -- files -------------------------------------------------------------------------------------------------


def write_half(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_atomic_write_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with atomic_write(path) as file:
        file.write(b"old")
        temps = [p.name for p in tmp_path.iterdir()]
        assert len(temps) == 1
        assert temps[0].startswith(".file.bin.tmp-")
    assert path.read_bytes() == b"old"
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    assert path.read_bytes() == b"old"


def test_stale_temps_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    stale = tmp_path / "train" / ".shard-000000.parquet.tmp-123-abcd"
    train = tmp_path / "train"
    # Somebody may be writing in another folder of the dataset, such as a cache: that is not ours to remove.
    kept = [train / "shard-000000.parquet", train / ".hidden", train / "notes.tmp-1", tmp_path / ".x.tmp-1-a"]
    for path in [stale, *kept]:
        path.touch()
    assert remove_stale_temps(train) == [stale]
    assert remove_stale_temps(tmp_path) == [tmp_path / ".x.tmp-1-a"]
    kept.pop()
    assert all(path.exists() for path in kept)
    assert not stale.exists()


def test_json_is_sorted_and_equals_its_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert read_json(path) == {"a": "é", "b": 1}
    with pytest.raises(ValueError, match="Out of range"):
        atomic_write_json(path, {"a": float("nan")})
    with pytest.raises(ShardError, match=r"none.json is missing"):
        read_json(tmp_path / "none.json")
    for text in ("{", "[1]"):
        path.write_text(text)
        with pytest.raises(ShardError, match=r"a.json"):
            read_json(path)


# -- the reader --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [("parquet",), ("webdataset",), ("parquet", "webdataset")])
@pytest.mark.parametrize("batch_rows", [1, 3, 8192])
def test_dataset_reads_what_was_written(tmp_path: Path, batch_rows: int, formats: tuple[ShardFormat, ...]) -> None:
    content = make_dataset(tmp_path, formats=formats)
    dataset = ShardDataset.open(tmp_path)
    assert dataset.spec == SPEC
    assert dataset.splits == ("train", "val")
    assert dataset.class_names == ("cat", "dog", "owl")
    for split, rows in content.items():
        count = len(rows["keys"])
        assert dataset.rows(split) == count
        batches = list(dataset.batches(split, SPEC.column_names, batch_rows))
        assert max(len(batch["key"]) for batch in batches) <= batch_rows
        read = {name: np.concatenate([batch[name] for batch in batches]) for name in SPEC.column_names}
        assert read["key"].tolist() == rows["keys"]
        assert read["view"].dtype == np.uint8
        assert read["label"].dtype == np.int32
        assert np.array_equal(read["view"], rows["views"])
        assert np.array_equal(read["label"], rows["labels"])
        for name in ORDER_NAMES:
            raster_NL = read[f"codes_{name}"][:, inverse(name, 4, 4)]
            assert raster_NL.dtype == np.uint16
            assert np.array_equal(raster_NL, rows["codes_NHW"].reshape(count, 16))
        assert np.array_equal(read["scale_2"], rows["scales"][2].reshape(count, 4))
        assert np.array_equal(read["cond_segmentation"], rows["conditions"]["segmentation"].reshape(count, 6))


def test_codes_are_read_without_a_copy(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    batch = next(ShardDataset.open(tmp_path).batches("train", ["codes_zcurve"]))
    assert not batch["codes_zcurve"].flags.owndata
    assert not batch["codes_zcurve"].flags.writeable  # it is Arrow's memory


def test_shards_without_rows_are_read(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    empty = parquet_bytes(SPEC.rows_to_table(**pick(make_rows(1), np.arange(0))))
    for number in range(3):
        reseal(tmp_path, f"shard-{number:06d}.parquet", empty, rows=0, number=number)
    assert sum(len(b["key"]) for b in ShardDataset.open(tmp_path).batches("train", ["key"])) == 0


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b")
    make_dataset(tmp_path / "c", rows=11)
    a, b, c = (ShardDataset.open(tmp_path / name).fingerprint for name in "abc")
    assert a == b
    assert a != c


def test_fingerprint_ignores_licence_card_and_names(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    before, earlier = ShardDataset.open(tmp_path), sha256_file(tmp_path / "dataset.json")
    (tmp_path / "README.md").write_text("my own words")
    assert "label_names" not in read_json(tmp_path / "dataset.json")
    names = {"class_names": ("a", "b", "c"), "label_names": ("sky", "wall")}
    dataclasses.replace(before.manifest, license="cc-by-4.0", **names).save(tmp_path)
    after = ShardDataset.open(tmp_path)
    assert (before.label_names, after.label_names) == ((), ("sky", "wall"))
    assert after.fingerprint == before.fingerprint
    assert sha256_file(tmp_path / "dataset.json") != earlier


def test_stored_fingerprint_of_the_earlier_rule_is_kept(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    current, earlier = ShardDataset.open(tmp_path).fingerprint, sha256_file(tmp_path / "dataset.json")
    known = ShardDataset.open(tmp_path, known=earlier)
    assert known.fingerprint == pickle.loads(pickle.dumps(known)).fingerprint == earlier != current
    for other in ("", current, "0" * 64):
        assert ShardDataset.open(tmp_path, known=other).fingerprint == current


def test_unfinished_datasets_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no shards in .*none: the folder does not exist"):
        ShardDataset.open(tmp_path / "none")
    with pytest.raises(ShardError, match=r"dataset.json is missing: the tokenize job did not finish"):
        ShardDataset.open(tmp_path)
    make_dataset(tmp_path)
    dataset = ShardDataset.open(tmp_path)
    with pytest.raises(ShardError, match=r"no split 'test'. It has: train, val"):
        dataset.rows("test")
    with pytest.raises(ShardError, match=r"no column 'codes_hilbert'. It has: key, view, label, codes_row_major"):
        dataset.batches("train", ["codes_hilbert"])
    with pytest.raises(ShardError, match="batch_rows is 0"):
        dataset.batches("train", ["key"], batch_rows=0)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 not really"), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is damaged"),
        (flip_a_byte, "is damaged"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "not a shard of codes"),
        (
            lambda path: path.write_bytes(parquet_bytes(SPEC.rows_to_table(**make_rows(3)))),
            "has 3 rows, dataset.json says 4",
        ),
    ],
)
def test_bad_shards_are_named(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    """By their hash, or where the hash was replaced too, by their content."""
    make_dataset(tmp_path)
    path = tmp_path / "train" / "shard-000001.parquet"
    harm(path)
    with pytest.raises(ShardError, match=r"train/shard-000001\.parquet is missing or damaged: its sha256"):
        list(ShardDataset.open(tmp_path).batches("train", ["key"]))
    reseal(tmp_path, path.name, path.read_bytes(), number=1)
    dataset = ShardDataset.open(tmp_path)
    assert dataset.file_of("train", dataset.shards("train")[1]).local == path
    batches = dataset.batches("train", list(SPEC.column_names))
    assert len(next(batches)["key"]) == 4  # the first shard is fine: each is looked at when its turn comes
    with pytest.raises(ShardError, match=f"train/shard-000001.parquet.*{message}"):
        next(batches)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    other = ShardSpec(
        image=GridSpec(height=4, width=4, codebook_size=50, fingerprint="another"),
        scales=SPEC.scales,
        conditions=SPEC.conditions,
    )
    reseal(tmp_path, "shard-000000.parquet", parquet_bytes(other.rows_to_table(**make_rows(4))))
    with pytest.raises(ShardError, match=r"shard-000000.parquet belongs to another dataset"):
        next(ShardDataset.open(tmp_path).batches("train", ["key"]))
