"""Files of stores, the Hub and web servers that are read in ranges, in the state in which they were listed.

They are read with the credentials of the process that reads them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from runkit.hub import hub_file
from runkit.objects import ObjectStore
from runkit.places import ChangedError, open_store, store_errors
from runkit.retries import patient
from runkit.web import WebFile

WEB_SCHEMES = ("http", "https")
_SMALL = 64 * 2**10
"""Bytes up to which a range is read in a block."""
_CHECKED_S = 60
"""Seconds after which an open file is compared with its listed state again."""


def scheme_of(url: str) -> str:
    """Return the scheme of a URL."""
    return url.partition(":")[0]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A remote file in the state in which it was listed."""

    url: str
    size: int
    """Bytes."""
    stamp: str
    """Its ETag, its id on the Hub or its time of modification, as the store has it; "" if it has none."""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(urlsplit(self.url).path if scheme_of(self.url) in WEB_SCHEMES else self.url).name

    @patient
    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return the bytes of a range, cut at the end of the file.

        Raises:
            FileNotFoundError: It was missing when the folder was listed.
            ChangedError: The file was changed or deleted since it was listed.
            StoreError: It cannot be read.
        """
        if self.size < 0:
            raise FileNotFoundError(f"{self} is missing")
        nbytes = max(0, min(nbytes, self.size - offset))
        with self._errors():
            content: bytes = _opened(self, int(time.monotonic() // _CHECKED_S)).read_at(nbytes, offset)
        if len(content) < nbytes:
            raise ChangedError(f"{self} ends before byte {offset + nbytes:,}, but had {self.size:,} bytes: run again")
        return content

    def read_near(self, offset: int, nbytes: int) -> bytes:
        """Return the bytes of a range as :meth:`read_at`; small ranges that a thread reads in turn share requests."""
        if nbytes > _SMALL:
            return self.read_at(offset, nbytes)
        ranges: RangedFile | None = getattr(_thread, "ranges", None)
        if ranges is None or ranges.file != self:
            ranges = _thread.ranges = RangedFile(self, ahead=_LEAST_BLOCK)
        ranges.seek(offset)
        return ranges.read(nbytes)

    @patient
    def check(self) -> None:
        """Compare the file with its listed state; errors as :meth:`read_at`."""
        with self._errors():
            _open_checked(self)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with store_errors(self, "read"):
                yield
        except FileNotFoundError as error:
            raise ChangedError(f"{self} was deleted after it was listed: run again") from error

    def open(self) -> io.BytesIO:
        """Open the whole file, read into memory."""
        return io.BytesIO(self.read_at(0, self.size))

    def open_ranges(self) -> RangedFile:
        """Open the file so that each read is a request."""
        return RangedFile(self)

    def open_ahead(self) -> RangedFile:
        """Open the file so that reads that follow each other closely share requests."""
        return RangedFile(self, ahead=_FIRST_BLOCK)


@functools.lru_cache(maxsize=4096)
def _opened(file: RemoteFile, _: int) -> Any:
    return _open_checked(file)


def _open_checked(file: RemoteFile) -> Any:
    """Open a file and compare it with its listed state; what is returned has `read_at(nbytes, offset)`."""
    scheme = scheme_of(file.url)
    if scheme in WEB_SCHEMES:
        opened: Any = WebFile(file.url)
        state = opened.size, opened.stamp
    elif scheme == "hf":  # a commit does not change
        opened = WebFile(*hub_file(file.url))
        state, opened.stamp = (opened.size, file.stamp), ""
    else:
        store = open_store(file.url)
        assert isinstance(store, ObjectStore)
        opened, state = store.open_with_state()
    if state != (file.size, file.stamp):
        now, then = (f"{size:,} bytes, {stamp or 'unknown'}" for size, stamp in (state, (file.size, file.stamp)))
        raise ChangedError(f"{file} was changed after it was listed ({then}; now {now}): run again, or restore it")
    return opened


_HOP = 256 * 2**10
"""Bytes between two reads up to which what is between them is read as well. With a delay of 25 ms, 16 threads read
through 100 kB members 14 times as fast as they skip them at 10 Gb/s, and twice as fast at 1 Gb/s."""
_FIRST_BLOCK, _LEAST_BLOCK, _LARGEST_BLOCK = 256 * 2**10, 16 * 2**10, 8 * 2**20


_thread = threading.local()


class RangedFile(io.RawIOBase):
    """A remote file at a position. Every read is one request, or with `ahead` fewer.

    Reads that are less than `_HOP` apart read through what is between them, in blocks that grow; over a larger distance
    a small block is read.
    """

    def __init__(self, file: RemoteFile, *, ahead: int = 0) -> None:
        """Begin at the start.

        Args:
            file: The file.
            ahead: Bytes of the first block; 0: every read is a request.
        """
        super().__init__()
        self.file, self._ahead = file, ahead
        self._place = self._start = 0
        self._block, self._content = 0, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset, without a request."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.file.size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the offset."""
        return self._place

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.file.size

    def read(self, nbytes: int | None = -1) -> bytes:
        """Return the next bytes, as many as there are."""
        left = max(0, self.file.size - self._place)
        nbytes = left if nbytes is None or nbytes < 0 else min(nbytes, left)
        content = self._from_block(nbytes) if self._ahead else self.file.read_at(self._place, nbytes)
        self._place += len(content)
        return content

    def _from_block(self, nbytes: int) -> bytes:
        end = self._start + len(self._content)
        if not self._start <= self._place <= self._place + nbytes <= end:
            if not self._block:
                self._block = self._ahead
            elif abs(self._place - end) <= _HOP:
                self._block = min(2 * self._block, _LARGEST_BLOCK)
            else:
                self._block = _LEAST_BLOCK
            kept = self._content[self._place - self._start :] if self._start <= self._place < end else b""
            self._start = self._place
            self._content = kept + self.file.read_at(self._place + len(kept), max(self._block, nbytes - len(kept)))
        first = self._place - self._start
        return self._content[first : first + nbytes]
