"""Folders of remote files, listed once, and files that are read in ranges in the state in which they were listed.

A :class:`RemotePath` has the methods of :class:`pathlib.Path` by which a folder is searched, so that the same code
searches a local folder and a remote one. A :class:`RemoteFile` is what remains of it: small, hashable and picklable. It
is read with the credentials of the process that reads it.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from runkit.hub import hub_file, hub_files
from runkit.objects import ObjectStore
from runkit.places import ChangedError, StoreError, open_store, store_errors, url_of
from runkit.progress import tqdm
from runkit.retries import patient
from runkit.web import WebFile, read_list

_T = TypeVar("_T")
_F = TypeVar("_F")
_THREADS = 16
"""Files that are opened at a time: each waits for the network."""
_SMALL = 64 * 2**10
"""Bytes up to which a range is read in a block."""
_CHECKED_S = 60
"""Seconds after which an open file is compared with its listed state again."""
_WEB = ("http", "https")


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
        return PurePosixPath(urlsplit(self.url).path if _scheme(self.url) in _WEB else self.url).name

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
    scheme = _scheme(file.url)
    if scheme in _WEB:
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


@dataclass(frozen=True, slots=True)
class _Listing:
    url: str
    """The URL that was listed."""
    files: dict[str, RemoteFile]
    """Path below it → file."""
    paths: list[str] = field(default_factory=list)
    """The paths, sorted."""

    def children(self, folder: str) -> Iterator[str]:
        """Yield the sorted names of the files and folders in a folder, whose path ends in a slash unless it is ""."""
        place, found = bisect.bisect_left(self.paths, folder), ""
        while place < len(self.paths) and self.paths[place].startswith(folder):
            name, slash, _ = self.paths[place][len(folder) :].partition("/")
            if name != found:
                yield name
            found = name
            place = bisect.bisect_left(self.paths, f"{folder}{name}0", place) if slash else place + 1  # "0" follows "/"


class RemotePath:
    """A file or folder below a listed URL, with the methods of a path by which a folder is searched."""

    __slots__ = ("_listing", "_path")

    def __init__(self, listing: _Listing, path: str = "") -> None:
        self._listing, self._path = listing, path

    def __str__(self) -> str:
        if self._path in self._listing.files:
            return self._listing.files[self._path].url
        return f"{self._listing.url}{self._path and '/'}{self._path}"

    def __truediv__(self, name: object) -> RemotePath:
        path = os.path.normpath(f"{self._path}/{name}").lstrip("/")
        return RemotePath(self._listing, "" if path == "." else path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._path or self._listing.url).name

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return PurePosixPath(self._path).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return RemotePath(self._listing, self._path.rpartition("/")[0])

    @property
    def file(self) -> RemoteFile:
        """The file at this path; a missing one has size -1 and cannot be read."""
        return self._listing.files.get(self._path) or RemoteFile(str(self), -1, "")

    def is_file(self) -> bool:
        """Return whether it was listed as a file."""
        return self._path in self._listing.files

    def is_dir(self) -> bool:
        """Return whether files below it were listed."""
        return next(self._listing.children(self._prefix), None) is not None

    def exists(self) -> bool:
        """Return whether it is a file or a folder."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the files and folders in it."""
        yield from (self / name for name in dict.fromkeys(self._listing.children(self._prefix)))

    def walk_files(self) -> Iterator[str]:
        """Yield the sorted relative paths of all files below it."""
        paths, place = self._listing.paths, bisect.bisect_left(self._listing.paths, self._prefix)
        while place < len(paths) and paths[place].startswith(self._prefix):
            yield paths[place][len(self._prefix) :]
            place += 1

    def with_name(self, name: str) -> RemotePath:
        """Return the file or folder of another name beside it; beside the listed folder, that one is listed."""
        if self._path:
            return self.parent / name
        parent, slash, _ = self._listing.url.rpartition("/")
        if slash and not parent.endswith("/") and _scheme(parent) not in _WEB:
            return list_remote(f"{parent}/{name}", required=False)
        return RemotePath(_Listing(f"{parent}/{name}", {}))

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    @property
    def _prefix(self) -> str:
        return self._path and f"{self._path}/"


AnyPath = Path | RemotePath


def open_folder(where: str | os.PathLike[str], *, known: bool = False) -> AnyPath:
    """Return a local path as it is, and list what a URL names; errors as :func:`list_remote`.

    Args:
        where: A path, or a URL as a path.
        known: Whether the last listing of this process suffices.
    """
    url = url_of(where)
    if url is not None:
        if not known or url not in _last:
            found = list_remote(url)
            _last.clear()
            _last[url] = found
        return _last[url]
    local = open_store(where).local
    assert local is not None
    return local


_last: dict[str, RemotePath] = {}


def list_remote(url: str, *, required: bool = True) -> RemotePath:
    """List the files below a URL.

    Args:
        url: ``s3://``, ``gs://`` or ``hf://datasets/`` with a folder; or an ``https://`` list, see
            :func:`runkit.web.read_list`.
        required: Whether a folder without files is an error.

    Raises:
        StoreError: It cannot be listed, or has no files.
    """
    scheme, url = _scheme(url), url.rstrip("/")
    try:
        if scheme in _WEB:
            files = _web_files(url)
        elif scheme == "hf":
            files = _hub_files(url)
        else:
            store = open_store(url)
            assert isinstance(store, ObjectStore)
            files = {name: RemoteFile(f"{store}/{name}", *state) for name, state in store.states().items()}
    except FileNotFoundError as error:
        raise StoreError(f"{url} cannot be listed ({error}): check the address and the credentials") from error
    if required and not files:
        raise StoreError(f"{url} has no files, or there is no such bucket or folder: check the address")
    return RemotePath(_Listing(url, files, sorted(files)))


@patient
def _hub_files(url: str) -> dict[str, RemoteFile]:
    with store_errors(url, "listed"):
        address, found = hub_files(url)
    return {name: RemoteFile(f"{address}/{name}", *state) for name, state in found.items()}


def _web_files(url: str) -> dict[str, RemoteFile]:
    with store_errors(url, "listed"):
        urls = read_list(url)
    return dict(zip(urls, in_parallel(_web_file, urls.values(), "files of the list"), strict=True))


@patient
def _web_file(url: str) -> RemoteFile:
    try:
        with store_errors(url, "read"):
            found = WebFile(url)
    except FileNotFoundError as error:
        raise StoreError(f"{url} is missing on the server ({error}): correct the list") from error
    return RemoteFile(url, found.size, found.stamp)


def in_parallel(work: Callable[[_F], _T], items: Iterable[_F], title: str = "") -> list[_T]:
    """Return the results of `work`, which waits for the network, in the order of the items.

    Args:
        work: The function.
        items: Its arguments.
        title: Title of a progress bar; "" for none.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in tqdm(futures, title, disable=None if title else True)]
        finally:
            for future in futures:
                future.cancel()


def _scheme(url: str) -> str:
    return url.partition(":")[0]
