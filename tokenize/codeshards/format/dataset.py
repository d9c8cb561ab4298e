"""Read a finished dataset of shards, column by column, as numpy arrays.

Axes: n rows of a batch, L codes of a column.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from codeshards.format.errors import ShardError
from codeshards.format.files import compact_json, sha256_file
from codeshards.format.manifest import MANIFEST_FILE, Manifest, ShardEntry, SplitEntry, is_intact
from codeshards.format.schema import ShardSpec, column_to_numpy
from codeshards.format.shardfile import data_file, read_batches, read_table
from runkit.hub import HubAddress, pinned
from runkit.places import Store, Where, open_store
from runkit.uploads import upload

Columns = dict[str, npt.NDArray[Any]]


class ShardDataset:
    """A dataset whose tokenize job has finished. Make one with :meth:`open`; it keeps no files open.

    The first read of each shard file compares its sha256 with the manifest, so that damaged or replaced files are
    detected; later reads do not. Threads may share one dataset. A copy, for example in another process, checks again.
    """

    path: Store
    """Folder or URL of the dataset."""
    spec: ShardSpec
    """Columns of every shard."""
    class_names: tuple[str, ...]
    """Name of each label; empty where the dataset has no classes."""

    def __init__(self, path: Store, manifest: Manifest, known: str = "") -> None:
        self.path = path
        self.manifest = manifest
        self._known = known
        self.spec = manifest.spec
        self.class_names = manifest.class_names
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._intact: set[str] = set()

    def __reduce__(self) -> tuple[Callable[[Store, Manifest, str], ShardDataset], tuple[Store, Manifest, str]]:
        return ShardDataset, (self.path, self.manifest, self._known)  # locks cannot be pickled

    def __repr__(self) -> str:
        rows = " and ".join(f"{self.rows(split):,} {split}" for split in self.splits)
        grid = self.spec.image
        return f"ShardDataset({str(self.path)!r}: {rows} rows of {grid.height}×{grid.width} codes)"

    @classmethod
    def open(cls, path: Where, *, known: str = "") -> ShardDataset:
        """Open a dataset at a path or URL, see :func:`open_store`. Shard files are checked when they are read.

        Args:
            path: The dataset.
            known: A fingerprint stored by an earlier version; see :attr:`fingerprint`.

        Raises:
            ShardError: There is no ``dataset.json`` (the job did not finish), or it cannot be read here.
        """
        return cls(open_store(path), Manifest.load(path), known)

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None) -> ShardDataset:
        """Open a dataset on the Hugging Face Hub at the commit that its revision means now.

        Args:
            name: OWNER/NAME of the dataset's repository, perhaps with a folder in it, or an hf:// address.
            revision: Branch, tag or commit.

        Raises:
            UserError: It cannot be read.
            ShardError: It is no dataset of shards.
        """
        address = HubAddress.parse(name, revision=revision)
        return cls.open(pinned(str(replace(address, repo_type=address.repo_type or "dataset")), MANIFEST_FILE))

    def push_to_hub(
        self, name: str, *, private: bool = False, revision: str | None = None, message: str | None = None
    ) -> str:
        """Upload the dataset to the Hugging Face Hub, with its card; an interrupted upload continues.

        Args:
            name: OWNER/NAME of the dataset's repository, perhaps with a folder in it, or an hf:// address.
            private: Create a private repository.
            revision: The branch to write.
            message: Message of the commit.

        Returns:
            The URL of the commit.

        Raises:
            UserError: The repository holds something else, or the Hub refuses.
            ShardError: The dataset is not in a local folder.
        """
        from codeshards.format.hub import upload_of

        address = HubAddress.parse(name, revision=revision)
        return upload(upload_of(self), address, private=private, message=message)[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over the spec and the hashes of all shards: a content address for caches and priors.

        The licence, the card and the names of classes are not part of it. Earlier versions hashed ``dataset.json``: a
        dataset opened with such a fingerprint keeps it.
        """
        content = {
            "spec": self.spec.to_json(),
            "splits": {
                split: [
                    [shard.name, shard.rows, {name: record.sha256 for name, record in shard.files.items()}]
                    for shard in found.shards
                ]
                for split, found in self.manifest.splits.items()
            },
        }
        current = hashlib.sha256(compact_json(content).encode()).hexdigest()
        if self._known not in ("", current) and sha256_file(self.path / MANIFEST_FILE) == self._known:
            return self._known
        return current

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

    def file_of(self, split: str, shard: ShardEntry) -> Store:
        """The file to read of one of the shards: Parquet where it exists, else the tar."""
        return data_file(self.path / split, shard.files)

    def check(self, split: str) -> None:
        """Compare the sha256 of the files of a split with the manifest, except those already checked.

        Raises:
            ShardError: The split is unknown, or a file is missing or has other bytes.
        """
        for shard in self._split(split).shards:
            self._check_file(split, shard, fetch=False)

    def table(self, split: str, shard: ShardEntry) -> pa.Table:
        """All rows and columns of one of the manifest's shards; errors as :meth:`batches`."""
        content = self._check_file(split, shard)
        return read_table(self.file_of(split, shard), self.spec, shard.rows, content)

    def _check_file(self, split: str, shard: ShardEntry, *, fetch: bool = True) -> bytes | None:
        """Check a shard's file before its first read; returns its bytes if they were downloaded for the check."""
        file = self.file_of(split, shard)
        record, name = shard.files[file.name], str(file)
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name in self._intact:
                return None
            content = None
            if fetch and file.local is None and file.size() == record.bytes:
                content = file.read_bytes()  # the hashed bytes are the ones parsed, and are downloaded once
                intact = hashlib.sha256(content).hexdigest() == record.sha256
            else:
                intact = is_intact(file, record)
            if not intact:
                raise ShardError(
                    f"{file} is missing or damaged: its sha256 is not the one of {MANIFEST_FILE}. Fetch it again, or "
                    "delete it and run the tokenize job again"
                )
            self._intact.add(name)
            return content

    def batches(
        self, split: str, columns: Sequence[str], batch_rows: int = 8192, *, shards: Sequence[int] | None = None
    ) -> Iterator[Columns]:
        """Iterate over a split once, in planned order, or over some of its shards.

        Batches do not span shards, so that they are views of decoded memory; the last batch of a shard may be
        smaller.

        Args:
            split: One of :attr:`splits`.
            columns: Out of ``spec.column_names``.
            batch_rows: Most rows of a batch.
            shards: Indices of the shards to read, in this sequence; None for all.

        Yields:
            Column → array. ``codes_*``, ``scale_*``, ``cond_*``: [n, L] of uint16, or uint32 for a codebook above
            65,536 entries; ``label``: int32 [n], null as -1; ``view``: uint8 [n]; ``key``: object [n] of str. Arrays
            may be read-only.

        Raises:
            ShardError: A name is unknown, or a shard is missing, damaged or not the one in the manifest.
        """
        entries = self._split(split).shards
        if shards is not None:
            entries = tuple(entries[index] for index in shards)
        self._check_columns(columns)
        if batch_rows < 1:
            raise ShardError(f"batch_rows is {batch_rows}: a batch requires at least one row")
        # Arguments are checked on the call: a generator would delay the error until the first batch.
        return self._batches(split, entries, list(columns), batch_rows)

    def _batches(
        self, split: str, entries: Sequence[ShardEntry], columns: list[str], batch_rows: int
    ) -> Iterator[Columns]:
        for entry in entries:
            content, store = self._check_file(split, entry), self.file_of(split, entry)
            for batch in read_batches(store, self.spec, entry.rows, columns, batch_rows, content):
                yield {name: column_to_numpy(batch.column(name)) for name in columns}

    def _check_columns(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in self.spec.column_names:
                raise ShardError(f"{self.path} has no column {name!r}. It has: {', '.join(self.spec.column_names)}")

    def _split(self, split: str) -> SplitEntry:
        if split not in self.manifest.splits:
            raise ShardError(f"{self.path} has no split {split!r}. It has: {', '.join(self.splits)}")
        return self.manifest.splits[split]
