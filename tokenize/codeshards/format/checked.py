"""Shards that were checked before: what saves reading them again.

A line of the file names a shard, the sizes and times of its files when they were checked, and what was found. It holds
as long as the files have these sizes and times. The file is a cache: without it, everything is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from codeshards.format.errors import ShardError
from codeshards.format.plan import PlannedShard
from runkit.jsonfiles import parse_object
from runkit.places import Listed, Store, absolute

log = logging.getLogger(__name__)

CACHE_FOLDER = ".cache"
CHECKED_FILES = r"(finished|verified)-[0-9a-f]{16}\.jsonl"
"""Names of these files, as a regular expression."""


def cache_folder(dataset: Store) -> Path:
    """Return the local folder of what is derived from a dataset: $IMAGEPRIORS_CACHE if set, else `.cache` inside it.

    For a dataset in an object store it is ~/.cache/imagepriors.
    """
    if chosen := os.environ.get("IMAGEPRIORS_CACHE"):
        return Path(chosen)
    return dataset.local / CACHE_FOLDER if dataset.local else Path.home() / CACHE_FOLDER / "imagepriors"


class CheckedShards:
    """The shards of a dataset that were checked before, in an append-only file."""

    def __init__(self, dataset: Store, kind: str, identity: str) -> None:
        """Name the file.

        Args:
            dataset: The dataset.
            kind: finished or verified.
            identity: Hash of what the shards were checked against; another one has another file.
        """
        address = hashlib.sha256(f"{absolute(dataset)}\n{identity}".encode()).hexdigest()[:16]
        self._path, self._can_write = cache_folder(dataset) / f"{kind}-{address}.jsonl", True
        self._file: BinaryIO | None = None
        self._lines: dict[str, bytes] = {}

    def read(self) -> Self:
        """Read the shards that the file names, if there is a file."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            for line in file:
                crc, _, rest = line.rstrip(b"\n").partition(b" ")
                if crc == _crc(rest):  # else it was cut by a kill
                    name, _, value = rest.partition(b" ")
                    self._lines[name.decode()] = value
        return self

    def get(self, shard: PlannedShard, listing: Mapping[str, Listed]) -> Any:
        """Return what was found in a shard, None if it was not checked or its files have changed since.

        Args:
            shard: The shard.
            listing: The files in the folder of its split.
        """
        if (line := self._lines.get(_name(shard))) is None:
            return None
        found = parse_object(line, self._path, ShardError)
        unchanged = all(name in listing and [*listing[name]] == status for name, status in found["files"].items())
        return found["value"] if unchanged else None

    def add(self, shard: PlannedShard, files: Iterable[str], listing: Mapping[str, Listed], value: Any = True) -> None:
        """Append a shard; where the file cannot be written, a warning is logged once.

        Args:
            shard: The shard.
            files: Names of all its files.
            listing: The files in the folder of its split before they were read; without one of its files, the shard is
                not recorded.
            value: What was found, in JSON.
        """
        found = {name: listing.get(name) for name in files}
        if not self._can_write or None in found.values():
            return
        line = f"{_name(shard)} {json.dumps({'files': found, 'value': value}, separators=(',', ':'))}".encode()
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
                self._file.write(b"\n")  # ends a line that was cut by a kill
            self._file.write(b"%b %b\n" % (_crc(line), line))
        except OSError as error:
            log.warning("%s cannot be written (%s): an interrupted run starts again", self._path, error.strerror)
            self._can_write = False

    def delete(self) -> None:
        """Delete the file, and the cache folder of the dataset if it is empty."""
        self.close()
        with contextlib.suppress(OSError):  # there are other files
            self._path.unlink(missing_ok=True)
            if self._path.parent.name == CACHE_FOLDER:
                self._path.parent.rmdir()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _name(shard: PlannedShard) -> str:
    return f"{shard.split}/{shard.index}"


def _crc(line: bytes) -> bytes:
    return b"%08x" % zlib.crc32(line)
