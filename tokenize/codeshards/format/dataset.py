"""Read a finished dataset of shards, column by column, as numpy arrays.

Axes: n rows of a batch, L codes of a column.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from codeshards.format.column import ColumnSpec
from codeshards.format.entries import ShardEntry, SplitEntry
from codeshards.format.errors import ShardError
from codeshards.format.files import FileRecord, compact_json, sha256_file
from codeshards.format.manifest import MANIFEST_FILE, Manifest, is_intact
from codeshards.format.schema import ShardSpec, column_to_numpy
from codeshards.format.shardfile import data_file, read_batches
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
    label_names: tuple[str, ...]
    """Name of each label of the masks in ``cond_segmentation``, from 0; empty where they are unknown."""

    def __init__(self, path: Store, manifest: Manifest, known: str = "") -> None:
        self.path = path
        self._own = _as_known(manifest, known)
        self.manifest = self._own.whole
        self._known = known
        self.spec = self.manifest.spec
        self.class_names = manifest.class_names
        self.label_names = manifest.label_names
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._intact: set[str] = set()

    def __reduce__(self) -> tuple[Callable[[Store, Manifest, str], ShardDataset], tuple[Store, Manifest, str]]:
        return ShardDataset, (self.path, self._own, self._known)  # locks cannot be pickled

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

        The licence, the card and the names of classes and labels are not part of it. A dataset that is opened with the
        fingerprint from before columns were added keeps it, and so does one that an earlier version identified by the
        hash of ``dataset.json``.
        """
        current = fingerprint_of(self._own)
        if self._known in ("", current):
            return current
        earlier = any(fingerprint_of(_first(self._own, count)) == self._known for count in range(len(self._own.added)))
        return self._known if earlier or sha256_file(self.path / MANIFEST_FILE) == self._known else current

    def fingerprint_of(self, column: str) -> str:
        """A content address of one column, which stays when columns are added that leave no rows out."""
        for count in range(len(self._own.added)):
            earlier = _first(self._own, count)
            if column in earlier.whole.spec.column_names and _same_rows(earlier, self._own):
                return fingerprint_of(earlier)
        return self.fingerprint

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
            for home in ("", *self._added):
                file, _, entry = self._source(home, split, shard)
                self._check_file(file, entry.files[file.name], fetch=False)

    def table(self, split: str, shard: ShardEntry) -> pa.Table:
        """All rows and columns of one of the manifest's shards; errors as :meth:`batches`."""
        table = self._shard_table(split, shard, self.spec.column_names)
        return pa.Table.from_arrays(table.columns, schema=self.spec.schema())

    @functools.cached_property
    def _added(self) -> dict[str, tuple[ColumnSpec, dict[tuple[str, str], ShardEntry]]]:
        """Added column → its spec and its side-car shards."""
        return {
            column.spec.name: (
                column.spec,
                {(split, shard.name): shard for split, found in column.splits.items() for shard in found.shards},
            )
            for column in self._own.added
        }

    @functools.cached_property
    def _entries(self) -> dict[tuple[str, str], ShardEntry]:
        return self._own.entries

    def _source(self, home: str, split: str, shard: ShardEntry) -> tuple[Store, ShardSpec | ColumnSpec, ShardEntry]:
        """File, columns and record of a shard itself, or of its side-car shard in the folder `home`."""
        if not home:
            entry = self._entries[split, shard.name]
            return data_file(self.path / split, entry.files), self._own.spec, entry
        spec, entries = self._added[home]
        entry = entries[split, shard.name]
        return data_file(self.path / f"{home}/{split}", entry.files), spec, entry

    def _check_file(self, file: Store, record: FileRecord, *, fetch: bool = True) -> bytes | None:
        """Check a file before its first read; returns its bytes if they were downloaded for the check."""
        name = str(file)
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
            homes = {name if name in self._added else "" for name in columns}
            sources = {home: self._source(home, split, entry) for home in homes}
            if len(homes) > 1 or any(found.rows != entry.rows for _, _, found in sources.values()):
                table = self._shard_table(split, entry, columns).combine_chunks()
                batches = iter(table.to_batches(max_chunksize=batch_rows))
            else:
                store, spec, found = next(iter(sources.values()))
                content = self._check_file(store, found.files[store.name])
                batches = read_batches(store, spec, found.rows, columns, batch_rows, content)
            for batch in batches:
                yield {name: column_to_numpy(batch.column(name)) for name in columns}

    def _shard_table(self, split: str, shard: ShardEntry, columns: Sequence[str]) -> pa.Table:
        """Columns of one shard and of its side-car shards, joined by key."""
        found: dict[str, Any] = {}
        for home in ("", *self._added):
            names = [name for name in columns if (name if name in self._added else "") == home]
            if names:
                table = self._home_table(home, split, shard, names)
                found |= {name: table[name] for name in names}
        return pa.table({name: found[name] for name in columns})

    def _home_table(self, home: str, split: str, shard: ShardEntry, names: Sequence[str]) -> pa.Table:
        """Columns of one file, without the rows that a column added later does not have."""
        store, spec, entry = self._source(home, split, shard)
        read, content = list(dict.fromkeys(["key", *names])), self._check_file(store, entry.files[store.name])
        if entry.rows == shard.rows:
            read = list(names)
        schema = pa.schema([spec.schema().field(name) for name in read])
        batches = read_batches(store, spec, entry.rows, read, max(entry.rows, 1), content)
        table = pa.Table.from_batches(batches, schema=schema)
        if entry.rows == shard.rows:
            return table
        keys = self._home_table(list(self._added)[-1], split, shard, ["key"])["key"]
        table = table.filter(pc.is_in(table["key"], value_set=keys.combine_chunks()))
        if table.num_rows != shard.rows:
            raise ShardError(f"{store} lacks rows of the columns that were added to it: verify the dataset")
        return table

    def _check_columns(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in self.spec.column_names:
                raise ShardError(f"{self.path} has no column {name!r}. It has: {', '.join(self.spec.column_names)}")

    def _split(self, split: str) -> SplitEntry:
        if split not in self.manifest.splits:
            raise ShardError(f"{self.path} has no split {split!r}. It has: {', '.join(self.splits)}")
        return self.manifest.splits[split]


def fingerprint_of(manifest: Manifest) -> str:
    """The fingerprint of a dataset with this manifest; see :attr:`ShardDataset.fingerprint`."""
    content: dict[str, Any] = {"spec": manifest.spec.to_json(), "splits": _contents(manifest.splits)}
    if manifest.added:
        content["added"] = [[column.spec.to_json(), _contents(column.splits)] for column in manifest.added]
    return hashlib.sha256(compact_json(content).encode()).hexdigest()


def _contents(splits: Mapping[str, SplitEntry]) -> dict[str, list[Any]]:
    return {
        split: [
            [shard.name, shard.rows, {name: record.sha256 for name, record in shard.files.items()}]
            for shard in found.shards
        ]
        for split, found in splits.items()
    }


def _first(manifest: Manifest, count: int) -> Manifest:
    """The manifest with the first `count` of its added columns."""
    return replace(manifest, added=manifest.added[:count])


def _same_rows(one: Manifest, other: Manifest) -> bool:
    rows = [{name: split.rows for name, split in found.whole.splits.items()} for found in (one, other)]
    return rows[0] == rows[1]


def _as_known(manifest: Manifest, known: str) -> Manifest:
    """The manifest as it was when its fingerprint was `known`, where a column added since leaves rows out."""
    for count in range(len(manifest.added) if known else 0):
        earlier = _first(manifest, count)
        if not _same_rows(earlier, manifest) and fingerprint_of(earlier) == known:
            return earlier
    return manifest
