"""Folders of remote files, listed once.

A :class:`RemotePath` has the methods of :class:`pathlib.Path` by which a folder is searched, so that the same code
searches a local folder and a remote one. Its files are :class:`runkit.ranges.RemoteFile`.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from runkit.hub import hub_files
from runkit.objects import ObjectStore
from runkit.places import StoreError, open_store, store_errors, url_of
from runkit.progress import tqdm
from runkit.ranges import WEB_SCHEMES, RemoteFile, scheme_of
from runkit.retries import patient
from runkit.web import WebFile, read_list

_T = TypeVar("_T")
_F = TypeVar("_F")
_THREADS = 16
"""Files that are opened at a time: each waits for the network."""


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
        if slash and not parent.endswith("/") and scheme_of(parent) not in WEB_SCHEMES:
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
    scheme, url = scheme_of(url), url.rstrip("/")
    try:
        if scheme in WEB_SCHEMES:
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
