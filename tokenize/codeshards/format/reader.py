"""Reading a finished dataset of shards, column by column, as numpy arrays.

Axes: n rows of a batch, L codes of a column.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from codeshards.format.errors import ShardError
from codeshards.format.files import sha256_file
from codeshards.format.manifest import MANIFEST_FILE, Manifest, ShardEntry, SplitEntry
from codeshards.format.schema import NO_LABEL, ShardSpec

Columns = dict[str, npt.NDArray[Any]]


class ShardDataset:
    """A dataset whose tokenize job has finished. Make one with :meth:`open`; it holds no open files."""

    path: Path
    """The dataset's folder."""
    spec: ShardSpec
    """What every shard holds."""
    class_names: tuple[str, ...]
    """Name of each label; empty where the dataset has no classes."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.spec = manifest.spec
        self.class_names = manifest.class_names

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ShardDataset:
        """Open a dataset's folder. Shard files are looked at when they are read.

        Raises:
            ShardError: There is no ``dataset.json`` (the job did not finish), or it cannot be read here.
        """
        return cls(Path(path), Manifest.load(path))

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over ``dataset.json``, which has every file's hash: a content address for caches."""
        return sha256_file(self.path / MANIFEST_FILE)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in alphabetical order."""
        return tuple(self.manifest.splits)

    def rows(self, split: str) -> int:
        """Rows of a split: encoded samples times views."""
        return self._split(split).rows

    def shards(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of a split with their row counts, in planned order."""
        return self._split(split).shards

    def shard_paths(self, split: str) -> list[Path]:
        """The Parquet files of a split, in planned order.

        Raises:
            ShardError: The split is unknown, or was written as WebDataset only.
        """
        return [self._parquet_path(split, shard) for shard in self._split(split).shards]

    def batches(
        self, split: str, columns: Sequence[str], batch_rows: int = 8192, *, shards: Sequence[int] | None = None
    ) -> Iterator[Columns]:
        """Go through a split once, in planned order, or through some of its shards.

        Batches do not span shards, so that they are views into decoded memory; the last one of a shard may be
        smaller than the rest.

        Args:
            split: One of :attr:`splits`.
            columns: Out of ``spec.column_names``.
            batch_rows: Most rows of a batch.
            shards: Numbers of the shards to read, in this sequence; None for all.

        Yields:
            Column → array. ``codes_*``, ``scale_*``, ``cond_*``: uint16 [n, L]; ``label``: int32 [n], null as
            -1; ``view``: uint8 [n]; ``key``: object [n] of str. Arrays may be read-only.

        Raises:
            ShardError: A name is unknown, or a shard is missing, damaged or not the one of the manifest.
        """
        entries = self._split(split).shards
        if shards is not None:
            entries = tuple(entries[number] for number in shards)
        self._check_columns(columns)
        if batch_rows < 1:
            raise ShardError(f"batch_rows is {batch_rows}: a batch needs at least one row")
        # Checked above on the call, not on the first batch: a generator would delay the message.
        return self._batches([(self._parquet_path(split, e), e.rows) for e in entries], list(columns), batch_rows)

    def _batches(self, files: list[tuple[Path, int]], columns: list[str], batch_rows: int) -> Iterator[Columns]:
        for path, rows in files:
            try:
                with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
                    self._check_shard(path, file, rows)
                    for batch in file.iter_batches(batch_rows, columns=columns):
                        yield {name: _to_numpy(batch.column(name)) for name in columns}
            except FileNotFoundError:
                raise ShardError(f"{path} is missing. Run the tokenize job again") from None
            except (OSError, pa.ArrowException) as error:
                raise ShardError(f"{path} is damaged ({error}). Delete it and run the tokenize job again") from error

    def _check_shard(self, path: Path, file: pq.ParquetFile, rows: int) -> None:
        try:
            found = ShardSpec.from_schema(file.schema_arrow)
        except ShardError as error:
            raise ShardError(f"{path}: {error}") from error
        if found != self.spec:
            raise ShardError(f"{path} belongs to another dataset: it holds {found}, {MANIFEST_FILE} says {self.spec}")
        if file.metadata.num_rows != rows:
            raise ShardError(f"{path} has {file.metadata.num_rows} rows, {MANIFEST_FILE} says {rows}")

    def _check_columns(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in self.spec.column_names:
                raise ShardError(f"{self.path} has no column {name!r}. It has: {', '.join(self.spec.column_names)}")

    def _split(self, split: str) -> SplitEntry:
        if split not in self.manifest.splits:
            raise ShardError(f"{self.path} has no split {split!r}. It has: {', '.join(self.splits)}")
        return self.manifest.splits[split]

    def _parquet_path(self, split: str, shard: ShardEntry) -> Path:
        for name in shard.files:
            if name.endswith(".parquet"):
                return self.path / split / name
        raise ShardError(
            f"{self.path / split / shard.name} has no Parquet file, only {', '.join(shard.files)}. "
            "Run the tokenize job with the Parquet format"
        )


def _to_numpy(column: Any) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        # flatten() respects the slice and copies nothing; neither lists nor codes are ever null.
        return np.asarray(column.flatten().to_numpy(zero_copy_only=True)).reshape(len(column), column.type.list_size)
    if pa.types.is_int32(column.type):
        return np.asarray(column.fill_null(NO_LABEL).to_numpy(zero_copy_only=True))
    return np.asarray(column.to_numpy(zero_copy_only=False))
