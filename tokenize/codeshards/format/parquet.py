"""A shard as Parquet, so that the same rows always give the same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from codeshards.format.errors import ShardError
from runkit.places import Store

MIN_GROUP_ROWS = 1024
MAX_GROUP_ROWS = 8192


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A shard's table as the content of a Parquet file.

    Dictionary encoding and zstd level 1; row groups of 1,024 to 8,192 rows, at least four in a shard of more
    than 3,072 rows, so that a reader can stream, skip and read them in parallel. Pages carry checksums. The
    bytes depend on the rows and on the version of pyarrow alone.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),  # how a table came about must not show in the pages
        sink,
        row_group_size=group_rows(table.num_rows),
        use_dictionary=True,
        compression="zstd",
        compression_level=1,
        write_page_checksum=True,
        # Smallest and largest of codes say nothing; keys, views and labels are worth filtering by.
        write_statistics=["key", "view", "label"],
    )
    return sink.getvalue()


@contextlib.contextmanager
def open_parquet(store: Store, content: bytes | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file: mapped into memory where it is local, its column chunks fetched ahead where it is not.

    Args:
        store: The file.
        content: Its bytes, where they are in memory.

    Raises:
        FileNotFoundError: It is not there.
        OSError, pa.ArrowException: It is damaged.
    """
    if content is not None:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            yield file
    elif store.local is not None:
        with pq.ParquetFile(store.local, memory_map=True, page_checksum_verification=True) as file:
            yield file
    else:
        with store.open() as source, pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True) as file:
            yield file


def parquet_rows(file: pq.ParquetFile) -> int:
    """Rows of a Parquet file, of which its footer and its row groups must say the same.

    Raises:
        ShardError: they differ.
    """
    metadata = file.metadata
    rows: int = sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if rows != metadata.num_rows:
        raise ShardError(f"the file is damaged: its footer says {metadata.num_rows} rows, its row groups {rows}")
    return rows


def group_rows(rows: int) -> int:
    """Rows of a row group in a shard of ``rows`` rows."""
    return min(MAX_GROUP_ROWS, max(MIN_GROUP_ROWS, -(-rows // 4)))
