"""Writing a shard as Parquet so that the same rows always give the same bytes."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq

from codeshards.format.files import FileRecord, atomic_write, file_record
from codeshards.format.schema import ShardSpec

MIN_GROUP_ROWS = 1024
MAX_GROUP_ROWS = 8192


def write_shard(path: str | os.PathLike[str], table: pa.Table) -> FileRecord:
    """Write a table made by :meth:`ShardSpec.rows_to_table` to ``path``, atomically.

    Dictionary encoding and zstd level 1; row groups of 1,024 to 8,192 rows, at least four in a shard of more
    than 3,072 rows, so that a reader can stream, skip and read them in parallel. Pages carry checksums. The
    bytes depend on the rows and on the version of pyarrow alone.

    Returns:
        sha256 and size of the file.

    Raises:
        ShardError: The table's schema is not a shard's.
    """
    ShardSpec.from_schema(table.schema)
    with atomic_write(path) as file:
        pq.write_table(
            table,
            file,
            row_group_size=group_rows(table.num_rows),
            use_dictionary=True,
            compression="zstd",
            compression_level=1,
            write_page_checksum=True,
            # Smallest and largest of codes say nothing; keys, views and labels are worth filtering by.
            write_statistics=["key", "view", "label"],
        )
    return file_record(path)


def group_rows(rows: int) -> int:
    """Rows of a row group in a shard of ``rows`` rows."""
    return min(MAX_GROUP_ROWS, max(MIN_GROUP_ROWS, -(-rows // 4)))
