"""Reading of Parquet files that may be damaged or malicious, with memory in proportion to their size.

A repeated value takes a few bits in a Parquet file, but its full size in memory. Texts and bytes are therefore read as
dictionaries, which hold a repeated value once, and their size is computed before they are decoded.
"""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from runkit.errors import UserError

_UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""Errors of pyarrow for damaged files; column names that are not UTF-8 raise a plain ValueError."""
_FREE_BYTES = 256 * 2**20
_FACTOR = 16
"""A table, and each column of a row group, may take this many times the file's size in memory, or `_FREE_BYTES`."""
_FREE_ROWS = 100_000
"""Number of rows that a table may have in addition to one per byte of its file."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Parquet's physical type → bytes of a value."""


def check_table(path: Path, error: type[UserError] = UserError) -> Any:
    """Return the metadata of a Parquet file after checking that its columns fit the memory.

    Args:
        path: The file.
        error: Class of the error.

    Raises:
        UserError: It is not a regular Parquet file, or its announced content is out of proportion to its size.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is no regular file: pass a Parquet file")
        metadata = parquet.read_metadata(path)
        _check_columns(metadata, status.st_size)
    except _UNREADABLE as problem:
        raise error(f"{path} cannot be read: {problem}") from problem
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    check_rows(path, max(metadata.num_rows, sum(group.num_rows for group in groups)), error)
    leaves = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    for group in groups:
        for column, leaf in enumerate(leaves):
            chunk = group.column(column)
            width = leaf.length or _WIDTHS.get(leaf.physical_type, 0)
            nbytes = max(chunk.total_uncompressed_size, chunk.num_values * width)
            _check_bytes(path, nbytes, f"column {leaf.path}", status.st_size, error)
    return metadata


def open_table(path: Path, metadata: Any) -> parquet.ParquetFile:
    """Open a Parquet file so that texts and bytes, also in structs and lists, are read as dictionaries.

    Any of its row groups can be read safely, as long as its dictionaries are not decoded as a whole.

    Args:
        path: The file.
        metadata: The result of :func:`check_table`.
    """
    leaves = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts)


def read_table(path: Path, columns: Sequence[str] | None = None, error: type[UserError] = UserError) -> pa.Table:
    """Read columns of a Parquet file, None for all; the result has no dictionaries.

    Raises:
        UserError: As :func:`check_table`, or the table would exceed 16 times the file's size and 256 MiB.
    """
    metadata = check_table(path, error)
    try:
        file = open_table(path, metadata)
        # Group by group, because Arrow does not merge dictionaries in structs.
        groups = [file.read_row_group(group, columns) for group in range(file.num_row_groups)]
        table = pa.concat_tables(groups) if groups else file.read(columns)
        _check_bytes(path, sum(map(decoded_bytes, table.itercolumns())), "the table", path.stat().st_size, error)
        plain = [pa.field(field.name, _plain(field.type), field.nullable, field.metadata) for field in table.schema]
        return table.cast(pa.schema(plain, table.schema.metadata))
    except _UNREADABLE as problem:
        raise error(f"{path} cannot be read: {problem}") from problem


class _DataReachedError(Exception):
    """The reader requested data, so their description is valid."""


class _NoData(io.RawIOBase):
    """A file of a given size whose data cannot be read."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        raise _DataReachedError


def _check_columns(metadata: Any, size: int) -> None:
    """Raise pyarrow's error if the description of a column of a row group is invalid.

    `RowGroupMetaData.column` aborts the process in that case. A read raises an error instead, and a buffered one checks
    all descriptions before it requests data.
    """
    file = parquet.ParquetFile(pa.PythonFile(_NoData(size), mode="r"), metadata=metadata, pre_buffer=True)
    with contextlib.suppress(_DataReachedError):
        file.read_row_groups(range(metadata.num_row_groups), use_threads=False)


def check_rows(path: Path, rows: int, error: type[UserError] = UserError) -> None:
    """Refuse a table with more rows than is plausible for its size, because lists of them would fill the memory."""
    size = path.stat().st_size
    if rows > _FREE_ROWS + size:
        raise error(
            f"{path} has {rows:,} rows in {size:,} bytes, more than a row for each byte: it is damaged, or was made to "
            "fill the memory"
        )


def _check_bytes(path: Path, nbytes: int, what: str, size: int, error: type[UserError]) -> None:
    if nbytes > max(_FREE_BYTES, _FACTOR * size):
        raise error(
            f"{path}: {what} would become {nbytes:,} bytes, more than {_FACTOR} times the file's {size:,}: it is "
            "damaged, or was made to fill the memory"
        )


def decoded_bytes(values: Any) -> int:
    """Return the bytes of a column after decoding its dictionaries."""
    if isinstance(values, pa.ChunkedArray):
        return sum(map(decoded_bytes, values.chunks))
    if pa.types.is_dictionary(values.type):
        lengths = pc.binary_length(values.dictionary).take(values.indices)
        return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if pa.types.is_struct(values.type):
        return sum(decoded_bytes(values.field(index)) for index in range(values.type.num_fields))
    if _is_list(values.type):
        return decoded_bytes(values.flatten())
    return int(values.nbytes)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _plain(kind: Any) -> Any:
    """Return a type without dictionaries."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(part.name, _plain(part.type), part.nullable) for part in kind])
    if _is_list(kind):
        part = pa.field(kind.value_field.name, _plain(kind.value_type), kind.value_field.nullable)
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(part, kind.list_size)
        return pa.large_list(part) if pa.types.is_large_list(kind) else pa.list_(part)
    return kind
