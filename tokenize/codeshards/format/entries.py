"""Entries of the manifest and of sidecars: files, shards, splits, added columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codeshards.format.column import ColumnSpec
from codeshards.format.files import FileRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One shard in the manifest."""

    name: str
    """File name without its ending."""
    rows: int
    """Rows of the shard."""
    files: dict[str, FileRecord]
    """File name → sha256 and size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """One split in the manifest."""

    rows: int
    """Rows of all its shards."""
    samples: int
    """Samples encoded."""
    failures: int
    """Samples left out; the sidecars name them."""
    shards: tuple[ShardEntry, ...]
    """Its shards in planned order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedColumn:
    """A column that was added to finished shards, with its side-car shards in a folder of its name."""

    spec: ColumnSpec
    """Name and grid of the column."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """JSON about the tokenizer of a condition; empty for orders and scales."""
    settings: dict[str, Any] = field(default_factory=dict)
    """JSON of what determines its codes beside the plan."""
    splits: dict[str, SplitEntry]
    """Split → its side-car shards and counts."""

    def to_json(self) -> dict[str, Any]:
        """This entry of the manifest."""
        splits = {name: split_json(split) for name, split in self.splits.items()}
        column = self.spec.to_json()
        return {"column": column, "tokenizer": self.tokenizer, "settings": self.settings, "splits": splits}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AddedColumn:
        """The entry in the value of :meth:`to_json`."""
        return cls(
            spec=ColumnSpec.from_json(value["column"]),
            tokenizer=value["tokenizer"],
            settings=value["settings"],
            splits={name: split_from_json(split) for name, split in value["splits"].items()},
        )


def split_json(split: SplitEntry) -> dict[str, Any]:
    """A split as JSON."""
    shards = [{"name": shard.name, "rows": shard.rows, "files": files_json(shard.files)} for shard in split.shards]
    return {"rows": split.rows, "samples": split.samples, "failures": split.failures, "shards": shards}


def split_from_json(value: Mapping[str, Any]) -> SplitEntry:
    """The split in the value of :func:`split_json`."""
    shards = tuple(
        ShardEntry(name=shard["name"], rows=shard["rows"], files=files_from_json(shard["files"]))
        for shard in value["shards"]
    )
    return SplitEntry(rows=value["rows"], samples=value["samples"], failures=value["failures"], shards=shards)


def files_json(files: Mapping[str, FileRecord]) -> dict[str, dict[str, Any]]:
    """File records as JSON."""
    return {name: record._asdict() for name, record in files.items()}


def files_from_json(value: Mapping[str, Mapping[str, Any]]) -> dict[str, FileRecord]:
    """The records in the value of :func:`files_json`."""
    return {name: FileRecord(**record) for name, record in value.items()}
