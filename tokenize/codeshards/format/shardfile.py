"""The data files of one planned shard: written in the requested formats, read from the one that exists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa

from codeshards.format.column import ColumnSpec
from codeshards.format.errors import ShardError
from codeshards.format.files import FileRecord
from codeshards.format.parquet import open_parquet, parquet_bytes, parquet_rows
from codeshards.format.plan import PlannedShard
from codeshards.format.schema import ShardSpec
from codeshards.format.tar import read_tar, tar_bytes
from runkit.places import Store, Where, open_store
from runkit.retries import is_passing, resumed

ShardFormat = Literal["parquet", "webdataset"]
SHARD_FORMATS: tuple[ShardFormat, ...] = get_args(ShardFormat)
"""The file formats of a shard; where both exist, the first is read."""

SUFFIXES: dict[ShardFormat, str] = {"parquet": ".parquet", "webdataset": ".tar"}
_WRITERS: dict[ShardFormat, Callable[[pa.Table], Any]] = {"parquet": parquet_bytes, "webdataset": tar_bytes}


def write_shard(
    dataset: Where, shard: PlannedShard, table: pa.Table, formats: Sequence[ShardFormat] = ("parquet",)
) -> dict[str, FileRecord]:
    """Write a table made by :meth:`ShardSpec.rows_to_table` as the data files of a shard; each write is atomic.

    Args:
        dataset: Folder of the dataset; the folder of the split is made.
        shard: Which shard the rows belong to.
        table: Its rows.
        formats: Out of ``parquet`` and ``webdataset``; the result does not depend on their sequence.

    Returns:
        File name → sha256 and size, as a sidecar takes it.

    Raises:
        ShardError: The table is not a shard, it has too many rows, or a format is unknown, or none is given.
        WriteError: A file cannot be written.
    """
    ShardSpec.from_schema(table.schema).check_rows(table.num_rows)
    return _write(dataset, shard, table, check_formats(formats))


def write_column(folder: Where, shard: PlannedShard, table: pa.Table) -> dict[str, FileRecord]:
    """Write a table made by :meth:`ColumnSpec.to_table` as a side-car shard; the write is atomic.

    Args:
        folder: Folder of the column.
        shard: The shard that it belongs to.
        table: Its rows.

    Raises:
        ShardError: The table is not that of a side-car shard, or it has too many rows.
        WriteError: The file cannot be written.
    """
    ColumnSpec.from_schema(table.schema).check_rows(table.num_rows)
    return _write(folder, shard, table, ("parquet",))


def _write(
    folder: Where, shard: PlannedShard, table: pa.Table, formats: Sequence[ShardFormat]
) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    for name in formats:
        store = shard.path(folder, SUFFIXES[name])
        content = memoryview(_WRITERS[name](table))
        store.write_bytes(content)
        records[store.name] = FileRecord(hashlib.sha256(content).hexdigest(), content.nbytes)
    return records


def check_formats(formats: Sequence[str]) -> tuple[ShardFormat, ...]:
    """The formats without repeats, in the sequence of :data:`SHARD_FORMATS`.

    Raises:
        ShardError: One is unknown, or none is given.
    """
    if not formats or not set(formats) <= set(SHARD_FORMATS):
        raise ShardError(f"formats is {tuple(formats)}: choose one or more of {', '.join(SHARD_FORMATS)}")
    return tuple(name for name in SHARD_FORMATS if name in formats)


def format_of(file_name: str) -> ShardFormat:
    """The format of a shard's data file."""
    for name, suffix in SUFFIXES.items():
        if file_name.endswith(suffix):
            return name
    raise ShardError(f"{file_name} is not a data file of a shard: the endings are {', '.join(SUFFIXES.values())}")


def data_file(folder: Where, files: Mapping[str, Any]) -> Store:
    """The file to read of a shard's data files: Parquet where it exists.

    Args:
        folder: The split's folder.
        files: Names of the shard's files.
    """
    names = {format_of(name): name for name in files}
    for name in SHARD_FORMATS:
        if name in names:
            return open_store(folder) / names[name]
    raise ShardError(f"{folder}: a shard has no data files. Run the tokenize job again")


def read_batches(
    store: Store,
    spec: ShardSpec | ColumnSpec,
    rows: int,
    columns: Sequence[str],
    batch_rows: int,
    content: bytes | None = None,
) -> Iterator[Any]:
    """The record batches of one data file, which must have this spec and number of rows.

    Args:
        store: The file.
        spec: Its columns.
        rows: Its number of rows.
        columns: Columns to read.
        batch_rows: Most rows of a batch.
        content: Bytes of the file, if they are in memory; None reads it.

    Raises:
        ShardError: The file is missing, damaged, belongs to another dataset, or has too many rows.
    """
    return resumed(lambda: _read_once(store, spec, rows, columns, batch_rows, content))


def _read_once(
    store: Store,
    spec: ShardSpec | ColumnSpec,
    rows: int,
    columns: Sequence[str],
    batch_rows: int,
    content: bytes | None,
) -> Iterator[Any]:
    try:
        spec.check_rows(rows)
        if format_of(store.name) == "parquet":
            with open_parquet(store, content) as file:
                _check_shard(store, type(spec).from_schema(file.schema_arrow), spec, parquet_rows(file), rows)
                yield from file.iter_batches(batch_rows, columns=list(columns))
        else:
            table = read_tar(store.read_bytes() if content is None else content)
            _check_shard(store, ShardSpec.from_schema(table.schema), spec, table.num_rows, rows)
            yield from table.select(list(columns)).to_batches(max_chunksize=batch_rows)
    except FileNotFoundError:
        raise ShardError(f"{store} is missing. Run the tokenize job again") from None
    except ShardError as error:
        if str(store) in str(error):
            raise
        raise ShardError(f"{store}: {error}") from error
    except (OSError, pa.ArrowException) as error:
        if is_passing(error):
            raise ShardError(f"{store} cannot be read ({error}). Try again when the storage is back") from error
        raise ShardError(f"{store} is damaged ({error}). Delete it and run the tokenize job again") from error


def read_table(store: Store, spec: ShardSpec | ColumnSpec, rows: int, content: bytes | None = None) -> pa.Table:
    """All rows of one data file; arguments and errors as :func:`read_batches`."""
    batches = read_batches(store, spec, rows, spec.column_names, max(rows, 1), content)
    return pa.Table.from_batches(batches, schema=spec.schema())


def _check_shard(
    store: Store, found: ShardSpec | ColumnSpec, spec: ShardSpec | ColumnSpec, found_rows: int, rows: int
) -> None:
    if found != spec:
        raise ShardError(f"{store} belongs to another dataset: it holds {found}, dataset.json says {spec}")
    if found_rows != rows:
        raise ShardError(f"{store} has {found_rows} rows, dataset.json says {rows}")
