"""Reading a finished dataset of shards, column by column, as numpy arrays.

Axes: n rows of a batch, L codes of a column.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from codeshards.format.errors import ShardError
from codeshards.format.files import sha256_file
from codeshards.format.manifest import MANIFEST_FILE, Manifest, ShardEntry, SplitEntry, is_intact
from codeshards.format.schema import ShardSpec, column_to_numpy
from codeshards.format.shardfile import data_file, read_batches
from codeshards.format.store import Store, Where, open_store

Columns = dict[str, npt.NDArray[Any]]


class ShardDataset:
    """A dataset whose tokenize job has finished. Make one with :meth:`open`; it holds no open files."""

    path: Store
    """Where the dataset lies."""
    spec: ShardSpec
    """What every shard holds."""
    class_names: tuple[str, ...]
    """Name of each label; empty where the dataset has no classes."""

    def __init__(self, path: Store, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.spec = manifest.spec
        self.class_names = manifest.class_names

    @classmethod
    def open(cls, path: Where) -> ShardDataset:
        """Open a dataset at a path or URL, see :func:`open_store`. Shard files are looked at when they are read.

        Raises:
            ShardError: There is no ``dataset.json`` (the job did not finish), or it cannot be read here.
        """
        return cls(open_store(path), Manifest.load(path))

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

    def shard_files(self, split: str) -> list[Store]:
        """The file to read of each shard of a split, in planned order: Parquet where it is there, else the tar.

        Raises:
            ShardError: The split is unknown.
        """
        return [self.file_of(split, shard) for shard in self._split(split).shards]

    def file_of(self, split: str, shard: ShardEntry) -> Store:
        """The file to read of one of the manifest's shards."""
        return data_file(self.path / split, shard.files)

    def check(self, split: str) -> None:
        """Compare the sha256 of every file that is read of a split with the manifest's.

        Raises:
            ShardError: The split is unknown, or a file is missing or has other bytes.
        """
        for shard in self._split(split).shards:
            file = self.file_of(split, shard)
            if not is_intact(file, shard.files[file.name]):
                raise ShardError(f"{file} is missing or damaged: its sha256 is not the one of {MANIFEST_FILE}")

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
        files = [(self.file_of(split, entry), entry.rows) for entry in entries]
        return self._batches(files, list(columns), batch_rows)

    def _batches(self, files: list[tuple[Store, int]], columns: list[str], batch_rows: int) -> Iterator[Columns]:
        for store, rows in files:
            for batch in read_batches(store, self.spec, rows, columns, batch_rows):
                yield {name: column_to_numpy(batch.column(name)) for name in columns}

    def _check_columns(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in self.spec.column_names:
                raise ShardError(f"{self.path} has no column {name!r}. It has: {', '.join(self.spec.column_names)}")

    def _split(self, split: str) -> SplitEntry:
        if split not in self.manifest.splits:
            raise ShardError(f"{self.path} has no split {split!r}. It has: {', '.join(self.splits)}")
        return self.manifest.splits[split]
