"""A shard as Parquet; equal rows always give equal bytes."""

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
    """The content of a Parquet file with a shard's table.

    Dictionary encoding and zstd level 1; row groups of 1,024 to 8,192 rows, at least four in a shard of more
    than 3,072 rows, so that they can be streamed, skipped and read in parallel. Pages have checksums. The bytes depend
    only on the rows and on the version of pyarrow.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),  # the chunks of the table must not influence the pages
        sink,
        row_group_size=group_rows(table.num_rows),
        use_dictionary=True,
        compression="zstd",
        compression_level=1,
        write_page_checksum=True,
        # Useful for filtering by key, view and label; minimum and maximum of codes are meaningless.
        write_statistics=["key", "view", "label"],
    )
    return sink.getvalue()


@contextlib.contextmanager
def open_parquet(store: Store, content: bytes | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file: a local one is memory-mapped, the column chunks of a remote one are prefetched.

    Args:
        store: The file.
        content: Its bytes, if they are in memory.

    Raises:
        FileNotFoundError: It does not exist.
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
    """Number of rows of a Parquet file, in which footer and row groups must agree.

    Raises:
        ShardError: They differ.
    """
    metadata = file.metadata
    rows: int = sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if rows != metadata.num_rows:
        raise ShardError(f"the file is damaged: its footer says {metadata.num_rows} rows, its row groups {rows}")
    return rows


def group_rows(rows: int) -> int:
    """Rows of a row group in a shard of ``rows`` rows."""
    return min(MAX_GROUP_ROWS, max(MIN_GROUP_ROWS, -(-rows // 4)))
