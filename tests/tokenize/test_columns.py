"""Columns carried from the source into shards, and filters by them."""

import importlib.util
import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_job import CONFIG, write_images
from tiny_pictures import png, put_tar

from codeshards.format import GridSpec, ShardDataset, ShardError, ShardSpec
from codeshards.format.tar import read_tar, tar_bytes
from codeshards.job.dry_run import plan_tokenize
from codeshards.job.tokenize import tokenize
from codeshards.tools.convert import convert
from codeshards.tools.merge import merge
from codeshards.tools.reencode import reencode
from codeshards.tools.verify import verify
from vqgan.errors import InputError

COLUMNS = ("caption", "width", "score:float64")


def caption(name: str) -> str:
    return f"Bild {name}: »quoted, with a comma«\nand a second line"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Pictures with texts and JSON objects beside them; one in five has no text."""
    root = write_images(tmp_path_factory.mktemp("captioned"), train=30, val=5)
    for path in root.rglob("*.png"):
        number = int(path.stem)
        if number % 5:
            path.with_suffix(".txt").write_text(caption(path.stem), encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps({"width": 10 * number, "score": number / 8}))
    return root


def job(data: Path, tokenizer: Path, out: Path, **fields):
    config = CONFIG.__class__(**{**{name: getattr(CONFIG, name) for name in CONFIG.__slots__}, **fields})
    arguments = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": out}
    return config, arguments


@pytest.fixture(scope="module")
def shards(local_ray_cores, captioned, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "shards"
    config, arguments = job(captioned, tokenizer, out, columns=COLUMNS, formats=("parquet", "webdataset"), views=2)
    tokenize(config, **arguments)
    return out


def test_captions_come_through_to_duckdb_and_the_card(shards):
    source = f"read_parquet('{shards}/train/*.parquet')"
    found = duckdb.sql(f"select key, view, caption, width, score from {source} order by key, view").fetchall()
    assert len(found) == 60
    for key, _, text, width, score in found:
        name = key.rpartition("/")[2].removesuffix("-v1")
        assert text == (caption(name) if int(name) % 5 else None)
        assert (width, score) == (10 * int(name), int(name) / 8)
    types = {name: kind for name, kind, *_ in duckdb.sql(f"describe select * from {source}").fetchall()}
    assert (types["caption"], types["width"], types["score"]) == ("VARCHAR", "BIGINT", "DOUBLE")
    card = (shards / "README.md").read_text(encoding="utf-8")
    assert "| `caption` | caption of the picture, carried along (string) |" in card
    assert "| `width` | carried along from the source (int64) |" in card


def test_readers_and_tools_keep_columns(shards, tmp_path):
    assert list(verify(shards).problems) == []
    batch = next(ShardDataset.open(shards).batches("train", ["key", "caption", "score"]))
    assert batch["caption"].dtype == object
    assert [text is None for text in batch["caption"]] == [key[-1] in "05" for key in _stems(batch["key"])]
    convert(shards, tmp_path / "tars", formats=("webdataset",))
    columns = ["key", "caption", "width", "score", "codes_zcurve"]
    for first, other in zip(
        ShardDataset.open(shards).batches("val", columns),
        ShardDataset.open(tmp_path / "tars").batches("val", columns),
        strict=True,
    ):
        assert all(np.array_equal(first[name], other[name]) for name in columns)
    tar = next((tmp_path / "tars" / "val").glob("*.tar")).read_bytes()
    assert read_tar(tar).column("caption").to_pylist() == first["caption"].tolist()


@pytest.mark.parametrize("ending", [".parquet", ".tar"])
def test_the_reader_written_from_the_specification_reads_columns(shards, ending):
    path = Path(__file__).parents[2] / "examples" / "read_shards.py"
    spec = importlib.util.spec_from_file_location("read_shards", path)
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    ours = ShardDataset.open(shards)
    batches = ours.batches("train", ours.spec.column_names)
    for rows, batch in zip(reader.shards(shards, "train", ending), batches, strict=True):
        assert set(rows) == set(batch)
        assert all(np.array_equal(rows[name], batch[name]) for name in batch)


def _stems(keys):
    return [key.removesuffix("-v1") for key in keys]


def test_datasets_with_and_without_columns_are_not_merged(shards, undisturbed, tmp_path):
    with pytest.raises(ShardError, match="differ in"):
        merge([shards, undisturbed], tmp_path / "merged")


def test_encoding_again_finds_the_same_codes(shards, captioned):
    rates = reencode(shards, source="folder", data=captioned, samples=4, device="cpu")
    assert set(rates.same.values()) == {1.0}


def test_a_resumed_job_requires_the_same_columns_and_captions(shards, captioned, tokenizer, tmp_path):
    config, arguments = job(
        captioned, tokenizer, shards, columns=("caption",), formats=("parquet", "webdataset"), views=2
    )
    with pytest.raises(ShardError, match=r"settings.spec.carried.score: \"float64\" → null"):
        tokenize(config, **arguments)
    config, arguments = job(captioned, tokenizer, shards, columns=COLUMNS, formats=("parquet", "webdataset"), views=2)
    before = (shards / "dataset.json").read_bytes()
    tokenize(config, **arguments)
    assert (shards / "dataset.json").read_bytes() == before


def test_a_filter_selects_samples_and_is_part_of_the_plan(local_ray_cores, captioned, tokenizer, tmp_path):
    config, arguments = job(
        captioned, tokenizer, tmp_path / "out", columns=("width",), where="width >= 20 and score < 2"
    )
    plan = plan_tokenize(config, **arguments)
    assert plan.figures["splits"] == {"train": 14, "val": 3}
    assert plan.figures["left_out"] == {"train": 16, "val": 2}
    manifest = tokenize(config, **arguments)
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 14, "val": 3}
    widths = np.concatenate(
        [batch["width"] for batch in ShardDataset.open(tmp_path / "out").batches("train", ["width"])]
    )
    assert sorted(widths) == list(range(20, 160, 10))
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]["settings"]["where"] == config.where
    assert set(reencode(tmp_path / "out", source="folder", data=captioned, samples=4, device="cpu").same.values()) == {
        1.0
    }
    other, _ = job(captioned, tokenizer, tmp_path / "out", columns=("width",), where="width >= 30")
    with pytest.raises(ShardError, match="where"):
        tokenize(other, **arguments)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"columns": ("captoin",)}, "column 'captoin' has no value"),
        ({"columns": ("caption:text",)}, "type 'text' of caption"),
        ({"columns": ("label",)}, "column 'label' cannot be carried|has no value"),
        ({"columns": ("codes_row_major:string",)}, "cannot be carried"),
        ({"where": "width >"}, "where is 'width >'"),
        ({"where": "width > 1000"}, "no sample of split 'train' satisfies 'width > 1000'"),
        ({"where": "caption > 3"}, "it cannot be evaluated .*caption is string"),
        ({"where": "hight > 3"}, "column 'hight' has no value"),
    ],
)
def test_bad_columns_and_filters_are_refused_before_the_work(captioned, tokenizer, tmp_path, fields, words):
    config, arguments = job(captioned, tokenizer, tmp_path / "out", **fields)
    with pytest.raises((ShardError, InputError), match=words):
        tokenize(config, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_value_of_another_type_costs_its_sample(local_ray_cores, captioned, tokenizer, tmp_path):
    data = write_images(tmp_path / "data", train=8, val=2)
    for path in data.rglob("*.png"):
        path.with_suffix(".json").write_text(json.dumps({"width": "wide" if path.stem == "003" else 5}))
    config, arguments = job(data, tokenizer, tmp_path / "out", columns=("width:int64",), max_failure_rate=0.2)
    manifest = tokenize(config, **arguments)
    assert manifest.splits["train"].failures == 1
    sidecar = json.loads((tmp_path / "out" / "train" / "shard-000000.json").read_text())
    assert "column width: 'wide' is no int64" in sidecar["failures"][0]["reason"]


def test_specs_with_columns_equal_their_json_and_others_are_as_before():
    grid = GridSpec(height=4, width=4, codebook_size=8, fingerprint="x")
    spec = ShardSpec(image=grid, carried={"width": "int64", "caption": "string"})
    assert ShardSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.column_names[-2:] == ("caption", "width")
    assert "carried" not in ShardSpec(image=grid).to_json()
    for names in ({"key": "string"}, {"scale_4": "int64"}, {"a b": "string"}, {"orders": "string"}, {"": "string"}):
        with pytest.raises(ShardError, match="cannot be carried"):
            ShardSpec(image=grid, carried=names)
    with pytest.raises(ShardError, match="has the type 'list'"):
        ShardSpec(image=grid, carried={"a": "list"})


def test_tars_carry_every_type_and_null():
    grid = GridSpec(height=2, width=2, codebook_size=8, fingerprint="x")
    spec = ShardSpec(image=grid, carried={"a": "string", "b": "int64", "c": "float64", "d": "bool"})
    values = {"a": ["", None, "ü\0\u2028"], "b": [2**62, None, -1], "c": [0.1, 1e300, None], "d": [None, True, False]}
    codes = np.arange(12).reshape(3, 2, 2) % 8
    table = spec.rows_to_table(["x", "y", "z"], [0, 0, 0], None, codes, carried=values)
    again = read_tar(tar_bytes(table))
    assert again.equals(table)
    assert {name: again.column(name).to_pylist() for name in values} == values
    with pytest.raises(ShardError, match="column 'b' of int64 has a value of another type"):
        spec.rows_to_table(["x"], [0], None, codes[:1], carried={"a": [""], "b": ["x"], "c": [1.0], "d": [True]})
    with pytest.raises(ShardError, match="carried columns"):
        spec.rows_to_table(["x"], [0], None, codes[:1])


def as_webdataset(root: Path, pictures: dict[str, bytes]) -> None:
    for split, names in (("train", list(pictures)[:12]), ("val", list(pictures)[12:])):
        members = {f"{name}.png": pictures[name] for name in names}
        members |= {f"{name}.txt": caption(name).encode() for name in names}
        members |= {f"{name}.json": json.dumps({"url": f"https://example.org/{name}"}).encode() for name in names}
        put_tar(root / f"{split}-000000.tar", members)


def as_huggingface(root: Path, pictures: dict[str, bytes]) -> None:
    for split, names in (("train", list(pictures)[:12]), ("validation", list(pictures)[12:])):
        columns = {"image": [{"bytes": pictures[name], "path": None} for name in names]}
        columns |= {"caption": list(map(caption, names)), "url": [f"https://example.org/{name}" for name in names]}
        pq.write_table(pa.table(columns), root / f"{split}-00000-of-00001.parquet", row_group_size=4)


@pytest.mark.parametrize("write", [as_webdataset, as_huggingface])
def test_captions_of_tars_and_tables_come_through_to_duckdb_and_the_card(local_ray_cores, tokenizer, tmp_path, write):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", {f"{n:03d}": png(n) for n in range(16)})
    config, arguments = job(tmp_path / "data", tokenizer, tmp_path / "out", columns=("caption", "url"))
    tokenize(config, **{**arguments, "dataset": "auto"})
    query = f"select url, caption from read_parquet('{tmp_path}/out/*/*.parquet') order by url"
    expected = [(f"https://example.org/{n:03d}", caption(f"{n:03d}")) for n in range(16)]
    assert duckdb.sql(query).fetchall() == expected
    assert "| `caption` | caption of the picture, carried along (string) |" in (tmp_path / "out/README.md").read_text()
