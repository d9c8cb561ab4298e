"""Verify: flipped bytes, unexpected files and hostile shards are named, within bounded time and memory."""

import json
import os
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_shards import SPEC, make_dataset, make_rows, reseal

from codeshards.format import GridSpec, ShardError, ShardSpec
from codeshards.format.parquet import parquet_bytes
from codeshards.format.schema import METADATA_KEY
from codeshards.format.tar import read_tar
from codeshards.tools.verify import verify

BOTH = ("parquet", "webdataset")
DEEP = b"[" * 100_000 + b"]" * 100_000


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "d"
    make_dataset(folder, formats=BOTH, fails=["sample1-0003", "sample2-0000"])
    return folder


def test_complete_dataset_has_no_problems(dataset: Path) -> None:
    found = verify(dataset)
    assert found.problems == ()
    assert found.files == len(contents(dataset))
    assert found.rows == 11


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_verify_finds_every_flipped_bit(dataset: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(path for path in dataset.rglob("*") if path.is_file())))
    intact = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(intact) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(intact)
    changed[at] ^= 1 << bit
    try:
        path.write_bytes(changed)
        problems = verify(dataset).problems
    finally:
        path.write_bytes(intact)
    assert any(path.relative_to(dataset).as_posix() in problem for problem in problems), (path, at, bit, problems)


def test_verify_finds_missing_and_foreign_files(dataset: Path, tmp_path: Path) -> None:
    for name in contents(dataset):
        if name != "dataset.json":
            shutil.copytree(dataset, tmp_path / "d")
            (tmp_path / "d" / name).unlink()
            assert any(name in problem for problem in verify(tmp_path / "d").problems), name
            shutil.rmtree(tmp_path / "d")
    shutil.copytree(dataset, tmp_path / "d")
    (tmp_path / "d/train/shard-000099.parquet").write_bytes(b"")
    (problem,) = verify(tmp_path / "d").problems
    assert "train/shard-000099.parquet is not part of the dataset" in problem
    with pytest.raises(ShardError, match=r"dataset.json is missing"):
        verify(tmp_path)


def test_verify_checks_the_contents_of_shards(tmp_path: Path) -> None:
    """Wrong content with valid hashes."""
    make_dataset(tmp_path, formats=BOTH)
    path = tmp_path / "train/shard-000000.parquet"
    table = pq.read_table(path)
    reversed_rows = table.take(list(range(table.num_rows))[::-1])
    reseal(tmp_path, path.name, parquet_bytes(reversed_rows))
    problems = " ".join(verify(tmp_path).problems)
    assert "keys are not those of the plan" in problems
    assert "hold different rows" in problems
    column = table.schema.get_field_index("codes_zcurve")
    swapped = table.set_column(column, table.schema.field(column), table["codes_alternate"])
    reseal(tmp_path, path.name, parquet_bytes(swapped))
    assert "codes_zcurve and codes_row_major show different pictures in 4 rows" in " ".join(verify(tmp_path).problems)
    labels = pc.cast(pc.add(table["label"], 5), "int32")
    reseal(tmp_path, path.name, parquet_bytes(table.set_column(2, table.schema.field(2), labels)))
    assert "beyond the 3 classes" in " ".join(verify(tmp_path).problems)


def test_verify_compares_the_tokenizers_fingerprint(dataset: Path) -> None:
    assert verify(dataset, fingerprint_of=lambda folder, known: "image-tokenizer").problems == ()
    (problem,) = verify(dataset, fingerprint_of=lambda folder, known: "another").problems
    assert "tokenizer has fingerprint another, the codes were made by image-tokenizer" in problem


@pytest.mark.parametrize(
    ("stray", "named"),
    [
        ("test/shard-000000.parquet", "test (1 files)"),
        ("tokenizer-old/config.json", "tokenizer-old (1 files)"),
        (".hidden/x", ".hidden (1 files)"),
        ("notes.txt", "notes.txt"),
        (".README.md.tmp-1-ab", ".README.md.tmp-1-ab"),
        ("train/.hidden/shard-000009.parquet", "train/.hidden/shard-000009.parquet"),
        ("train/report.html", "train/report.html"),
        ("tokenizer/more.bin", "tokenizer/more.bin"),
        ("empty/", "empty (0 files)"),
    ],
)
def test_unexpected_files_are_named(tmp_path: Path, stray: str, named: str) -> None:
    make_dataset(tmp_path)
    path = tmp_path / stray
    if stray.endswith("/"):
        path.mkdir()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert verify(tmp_path).problems == (f"{tmp_path / named} is not part of the dataset",)


def test_unexpected_objects_are_named(s3: object) -> None:
    from codeshards.format import open_store

    place = open_store("s3://bucket/d")
    make_dataset(place)
    (place / "test/shard-000000.parquet").write_bytes(b"x")
    (place / "report.html").write_bytes(b"x")
    found = verify(place)
    assert found.problems == ("s3://bucket/d/test (1 files) is not part of the dataset",)
    assert found.uncovered == ("report.html",)


def test_files_without_a_hash_are_reported_and_caches_and_locks_ignored(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    assert verify(tmp_path).uncovered == ()
    (tmp_path / ".cache").mkdir()
    for name in (".cache/train.npy", ".tokenize.lock", "events.jsonl", "report.html"):
        (tmp_path / name).write_text("x")
    found = verify(tmp_path)
    assert found.problems == ()
    assert found.uncovered == ("report.html", "events.jsonl")


@pytest.mark.parametrize(
    "name",
    [
        "dataset.json",
        "plan.json",
        "samples.parquet",
        "README.md",
        "tokenizer/config.json",
        "train/shard-000000.json",
        "train/shard-000000.parquet",
        "train/shard-000001.tar",
        "train/more",
    ],
)
def test_pipe_among_the_files_is_named_without_blocking(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path, formats=BOTH)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    reports: list[object] = []

    def look() -> None:
        try:
            found = verify(tmp_path, fingerprint_of=lambda folder, known: (folder / "config.json").read_text())
            reports.extend(found.problems)
        except ShardError as error:
            reports.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert any(str(tmp_path / name) in str(one) for one in reports), reports


@pytest.mark.parametrize("name", ["train/shard-000000.json", "dataset.json", "plan.json"])
def test_json_nested_too_deep_is_a_named_problem(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path)
    (tmp_path / name).write_bytes(DEEP)
    assert any(str(tmp_path / name) in problem for problem in verify(tmp_path).problems)


def _deep_schema(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: DEEP}), sink)
    return sink.getvalue().to_pybytes()


def _tar(spec: bytes, *members: tuple[str, bytes]) -> bytes:
    import io

    from codeshards.format.tar import SPEC_MEMBER, add_member

    out = io.BytesIO()
    for name, content in ((SPEC_MEMBER, spec), *members):
        add_member(out, name, content)
    out.write(bytes(-out.tell() % 512 + 1024))
    return out.getvalue()


def _header(rows: object) -> bytes:
    return json.dumps({**SPEC.to_json(), "rows": rows}).encode()


def _about(**changed: object) -> bytes:
    return json.dumps({"key": "a", "label": 1, "orders": list(SPEC.orders), "view": 0, **changed}).encode()


@pytest.mark.parametrize(
    "content",
    [
        _tar(DEEP),
        _tar(b"[]"),
        _tar(_header(10**9)),
        _tar(_header(-1)),
        _tar(_header("4")),
        _tar(_header(True)),
        _tar(_header(1), ("a.json", DEEP), *[("x", b"")] * 9),
        _tar(_header(1), ("a.json", _about(view=300)), *[("x", b"")] * 9),
        _tar(_header(1), ("a.json", _about(label=2**70)), *[("x", b"")] * 9),
        _tar(_header(1), ("a.json", _about(key=[])), *[("x", b"")] * 9),
    ],
)
def test_hostile_tars_are_refused_before_memory_is_allocated(content: bytes) -> None:
    with pytest.raises(ShardError):
        read_tar(content)


def test_tar_with_nested_long_names_is_refused() -> None:
    import tarfile

    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 1
    with pytest.raises(ShardError, match="damaged"):
        read_tar((link.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000 + bytes(1024))


def test_metadata_nested_too_deep_is_a_named_problem(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    path = tmp_path / "train/shard-000000.parquet"
    reseal(tmp_path, path.name, _deep_schema(pq.read_table(path)))
    (problem,) = verify(tmp_path).problems
    assert str(path) in problem
    assert "nested too deep" in problem


@pytest.mark.parametrize("rows", [10**9, -1, 1.5, True, "4"])
def test_absurd_row_counts_are_refused_before_memory_is_allocated(tmp_path: Path, rows: object) -> None:
    """Also where the manifest has the same number: 400 kB of Parquet can hold 10⁹ equal rows."""
    with pytest.raises(ShardError, match=r"rows: with these columns it has 0 to [\d,]+\. Make smaller shards"):
        SPEC.check_rows(rows)  # type: ignore[arg-type]
    if rows == 10**9:
        make_dataset(tmp_path)
        reseal(tmp_path, "shard-000000.parquet", (tmp_path / "train/shard-000000.parquet").read_bytes(), rows=rows)
        assert any("rows: with these columns" in problem for problem in verify(tmp_path).problems)


def test_rows_beyond_the_manifest_are_not_decoded(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    table = SPEC.rows_to_table(**make_rows(1))
    many = pa.concat_tables([table] * 50_000)
    reseal(tmp_path, "shard-000000.parquet", parquet_bytes(many).to_pybytes())
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    assert any("has 50000 rows, dataset.json says 4" in problem for problem in verify(tmp_path).problems)
    assert pa.default_memory_pool().max_memory() <= max(peak, before + 2**22)


def test_absurd_grids_are_refused() -> None:
    with pytest.raises(ShardError, match="at most 1,048,576 codes"):
        GridSpec(height=10**6, width=10**6, codebook_size=2, fingerprint="f")
    with pytest.raises(ShardError, match="fingerprint"):
        GridSpec(height=1, width=1, codebook_size=2, fingerprint=3)  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="order tables"):
        ShardSpec.from_json({**SPEC.to_json(), "orders_hash": 7})
