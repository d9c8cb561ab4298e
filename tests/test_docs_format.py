"""The specification of the shard format: a reader that was written from it alone reads what the packages write."""

import hashlib
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_shards import SPEC, make_dataset, make_rows

from codeshards.format import ORDER_NAMES, ShardDataset, defined_orders, load_plan, order
from codeshards.tools.add_codes import add_codes

ROOT = Path(__file__).resolve().parents[1]
EARLIER = sorted((ROOT / "tests/data/earlier").glob("*/shards"))
_spec = importlib.util.spec_from_file_location("read_shards", ROOT / "examples/read_shards.py")
assert _spec is not None
assert _spec.loader is not None
reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reader)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spec") / "d"
    make_dataset(folder, formats=("parquet", "webdataset"), fails=["sample1-0003"])
    return folder


def test_the_reader_imports_nothing_of_the_packages():
    imported = re.findall(r"^(?:import|from) (\w+)", Path(reader.__file__).read_text(), re.MULTILINE)
    assert set(imported) <= {
        "collections",
        "hashlib",
        "io",
        "json",
        "sys",
        "tarfile",
        "pathlib",
        "typing",
        "numpy",
        "pyarrow",
    }


@pytest.mark.parametrize("ending", [".parquet", ".tar"])
def test_rows_equal_those_of_the_package(dataset, ending):
    ours = ShardDataset.open(dataset)
    for split in ours.splits:
        entries = ours.shards(split)
        found = list(reader.shards(dataset, split, ending))
        assert [len(rows["key"]) for rows in found] == [entry.rows for entry in entries]
        for index, rows in enumerate(found):
            (batch,) = ours.batches(split, ours.spec.column_names, shards=[index])
            assert set(rows) == set(batch)
            for name, values in batch.items():
                assert np.array_equal(rows[name], values), name


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.parent.name)
def test_shards_of_earlier_versions_are_read(path):
    ours = ShardDataset.open(path)
    for split in ours.splits:
        found = np.concatenate([rows["codes_zcurve"] for rows in reader.shards(path, split)])
        expected = np.concatenate([rows["codes_zcurve"] for rows in ours.batches(split, ["codes_zcurve"])])
        assert np.array_equal(found, expected)
    assert reader.fingerprint(path) == ours.fingerprint


def test_every_order_decodes_to_one_raster(dataset):
    """Sequence and raster, as the page defines them; the pictures are those that were written."""
    written = make_rows(10, seed=1)
    raster_of = dict(zip(written["keys"], written["codes_NHW"].reshape(10, 16), strict=True))
    rows = next(reader.shards(dataset, "train"))
    for name in ORDER_NAMES:
        inverse = np.argsort(reader.order(name, 4, 4))
        for key, sequence in zip(rows["key"], rows[f"codes_{name}"], strict=True):
            assert np.array_equal(sequence[inverse], raster_of[key])


def test_order_tables_of_the_page():
    tables = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| ((?:\d+ ){15}\d+) \|", (ROOT / "docs/format.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in tables] == list(ORDER_NAMES)
    for name, numbers in tables:
        assert reader.order(name, 4, 4).tolist() == [int(number) for number in numbers.split()]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 5), (6, 6), (8, 8), (16, 16), (4, 7)])
def test_orders_equal_those_of_the_package(height, width):
    for name in defined_orders(height, width):
        assert np.array_equal(reader.order(name, height, width), order(name, height, width)), name


def test_plan_keys_and_fingerprint(dataset):
    plan = load_plan(dataset)
    for split in plan.splits:
        assert reader.planned_keys(dataset, split) == plan.keys[split].to_pylist()
    names = make_rows(10, seed=1)["keys"]
    order_N = reader.planned_order(10, json.loads((dataset / "plan.json").read_text())["plan"]["shuffle_seed"])
    assert [names[index] for index in order_N] == reader.planned_keys(dataset, "train")
    left = [key for rows in reader.shards(dataset, "train") for key in rows["key"]]
    assert left == [key for key in reader.planned_keys(dataset, "train") if key != "sample1-0003"]
    sidecars = [reader.sealed(path) for path in sorted((dataset / "train").glob("*.json"))]
    assert [one for sidecar in sidecars for one in sidecar["failures"]] == [
        {"key": "sample1-0003", "reason": "a broken file"}
    ]
    assert reader.fingerprint(dataset) == ShardDataset.open(dataset).fingerprint


def test_parquet_columns_are_those_of_the_page(dataset):
    def codes(length):
        return pa.list_(pa.field("element", pa.uint16(), nullable=False), length)

    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("view", pa.uint8(), nullable=False),
        pa.field("label", pa.int32()),
        *(pa.field(f"codes_{name}", codes(16), nullable=False) for name in ORDER_NAMES),
        pa.field("scale_1", codes(1), nullable=False),
        pa.field("scale_2", codes(4), nullable=False),
        pa.field("cond_segmentation", codes(6), nullable=False),
    ]
    schema = pq.read_schema(dataset / "train/shard-000000.parquet")
    assert schema.equals(pa.schema(fields))
    assert set(schema.metadata) == {b"imagepriors"}
    assert schema.metadata[b"imagepriors"] == reader.compact(reader.sealed(dataset / "dataset.json")["spec"])


def test_json_fields_are_those_of_the_page(dataset, tmp_path):
    """Every key of the three JSON files is in the page, and in no file is there another.

    Names of labels and carried columns are only where there are any.
    """
    text = (ROOT / "docs/format.md").read_text()
    manifest, plan = (json.loads((dataset / name).read_text()) for name in ("dataset.json", "plan.json"))
    sidecar = json.loads((dataset / "train/shard-000000.json").read_text())
    make_dataset(tmp_path / "d", spec=replace(SPEC, orders=("row_major",)))
    add_codes(tmp_path / "d", orders=["zcurve"])
    added = json.loads((tmp_path / "d/dataset.json").read_text())
    for section, value in (
        ("## dataset.json", {*(key if key != "splits" else "splits.SPLIT" for key in added), "label_names"}),
        ("## Added columns", set(added["added"][0])),
        ("## Sidecars", set(sidecar)),
        ("## The spec", {*manifest["spec"], *manifest["spec"]["image"], "carried"}),
        ("## plan.json", {"hash", "shards.SPLIT", *(f"plan.{key}" for key in plan["plan"] if key != "splits")}),
    ):
        table = text.partition(f"\n{section}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
        found = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
        assert {name for name in found if not name.startswith("plan.splits.")} == value, section
    assert all(f"`plan.splits.SPLIT.{key}`" in text for key in plan["plan"]["splits"]["train"])


@pytest.mark.parametrize(
    "name",
    ["dataset.json", "plan.json", "samples.parquet", "train/shard-000000.json", "train/shard-000000.parquet"],
)
def test_the_reader_refuses_changed_files(dataset, tmp_path, name):
    copy = shutil.copytree(dataset, tmp_path / "d")
    content = bytearray((copy / name).read_bytes())
    target = content.find(b"sample1-0001") + 11 if b"sample1-0001" in content else len(content) // 2
    content[target] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises((ValueError, OSError, KeyError)):  # noqa: PT012 - whichever reads the file
        reader.planned_keys(copy, "train")
        list(reader.shards(copy, "train"))
        [reader.sealed(path) for path in (copy / "train").glob("*.json")]


def test_hash_of_the_orders_of_four_by_four():
    """The bytes that the page lists, written out for one order."""
    table = b"".join(number.to_bytes(8, "little") for number in range(16))
    assert reader.orders_hash(["row_major"], 4, 4) == hashlib.sha256(b"row_major 4 4\n" + table).hexdigest()
