"""Tars whose members are read in place, and small archives that are read whole."""

import gzip
import io
import os
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from runkit.places import StoreError
from runkit.ranges import RemoteFile
from runkit.remote import AnyPath
from vqgan.data.files import is_system_name
from vqgan.data.sources import Blob, Source, Stored, open_regular, size_of, stored
from vqgan.errors import InputError

_ARCHIVE_BYTES = 512 * 2**20
"""Most bytes that an archive unpacks to: CIFAR-10 has 186 MB, ImageNet's development kit less than 10."""
_SPARSE_BYTES = 2**30
"""Largest sparse member; its header may declare any size."""
_KEPT_BYTES = 2**16
"""Largest member that is read on the way."""
_MAX_LINKS = 16
"""Longest chain of links between members."""
_CHUNK = 2**20
_BROKEN = (tarfile.TarError, OSError, ValueError, LookupError, ArithmeticError, RecursionError)
"""Exceptions of Python's tarfile on broken or hostile headers."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A member that cannot be read; it costs its sample alone."""

    name: str
    reason: str

    def open(self) -> BinaryIO:
        """Raise OSError with the reason."""
        raise OSError(self.reason)

    def nbytes(self) -> int:
        """Return -1, because nothing can be read."""
        return -1


class Contents(dict[Source, bytes]):
    """The content of the small members with some suffixes."""

    def __init__(self, *suffixes: str) -> None:
        super().__init__()
        self._suffixes = suffixes

    def add(self, name: str, source: Source, file: BinaryIO) -> None:
        """Read a member from its open archive if it is one of them."""
        if not name.lower().endswith(self._suffixes) or not isinstance(source, Blob) or source.pieces is not None:
            return
        if source.length <= _KEPT_BYTES:
            file.seek(source.offset)
            self[source] = file.read(source.length)

    def open(self, source: Source) -> BinaryIO:
        """Open a member."""
        return io.BytesIO(self[source]) if source in self else source.open()


def tar_members(path: AnyPath, contents: Contents | None = None) -> Iterator[tuple[str, Source]]:
    """Yield the files of a tar as (name, bytes in place): in archive order, then its hard and symbolic links.

    Names are relative, without "." and "..". Members that operating systems add, such as `._x`, are left out. All of
    several concatenated tars (`cat a.tar b.tar`) are read.

    Args:
        path: The archive.
        contents: Filled with members of a remote archive on the way, which saves a request for each.

    Raises:
        InputError: it is not a tar, is truncated or broken, or is compressed, so that members cannot be read in place.
    """
    try:
        where = stored(path)
        with cast(BinaryIO, where.open_ahead()) if isinstance(where, RemoteFile) else open_regular(where) as file:
            for name, source in _files(where, file, 0, size_of(where)):
                if contents is not None and isinstance(where, RemoteFile):
                    contents.add(name, source, file)
                yield name, source
    except StoreError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"{path} cannot be read as an uncompressed tar ({error}): unpack it, decompress it, or download it again"
        ) from error


def inner_tar_members(path: Path) -> Iterator[tuple[str, str, Source]]:
    """Yield the files of all tars in a tar as (inner tar, name, bytes in place): ImageNet's training archive.

    Raises:
        InputError: as `tar_members`.
    """
    try:
        with open_regular(path) as whole:
            for inner, found in _files(str(path), whole, 0, os.fstat(whole.fileno()).st_size):
                if not inner.lower().endswith(".tar"):
                    continue
                if not isinstance(found, Blob) or found.pieces is not None:
                    raise OSError(f"its member {inner} is sparse or a link")
                empty = True
                for name, source in _files(str(path), whole, found.offset, found.offset + found.length):
                    empty = False
                    yield inner, name, source
                if empty:  # without its class, the labels of all later classes would change
                    raise tarfile.ReadError(f"its member {inner} is empty")
    except _BROKEN as error:
        raise InputError(
            f"{path} cannot be read as a tar of uncompressed tars ({error}): unpack it, or download it again"
        ) from error


def _files(path: Stored, file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, Source]]:
    """Yield the files of concatenated tars in bytes `start` to `end` of a file."""
    if start >= end:
        raise tarfile.ReadError("it is empty")
    while start < end:
        found: dict[str, Blob] = {}
        links: dict[str, str] = {}
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # keeps memory constant over a million headers
                name = _plain(member.name)
                if member.islnk():
                    links[name] = _plain(member.linkname)
                elif member.issym():
                    links[name] = _plain(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.isreg():
                    found[name] = _blob(path, member, end)
                    if not _is_system_path(name):
                        yield name, found[name]
            place = archive.offset
        yield from _linked(links, found)
        start = _next_start(file, place, end)


def _blob(path: Stored, member: tarfile.TarInfo, end: int) -> Blob:
    stored_at: Any = member.sparse  # typeshed has it wrong
    pieces = None if stored_at is None else tuple((int(at), int(size)) for at, size in stored_at)
    stored = member.size if pieces is None else sum(size for _, size in pieces)
    if member.offset_data + stored > end:
        raise tarfile.ReadError(f"{member.name} ends after the archive, which is truncated")
    if pieces is not None and member.size > _SPARSE_BYTES:
        raise tarfile.ReadError(f"{member.name} is sparse and declares {member.size:,} bytes")
    if any(not 0 <= at <= at + length <= member.size for at, length in pieces or ()):
        raise tarfile.ReadError(f"{member.name} is sparse, and its map points outside it")
    return Blob(path, member.offset_data, member.size, posixpath.basename(member.name), pieces)


def _linked(links: dict[str, str], found: dict[str, Blob]) -> Iterator[tuple[str, Source]]:
    for name, target in links.items():
        for _ in range(_MAX_LINKS):
            target = links.get(target, target)
        base = posixpath.basename(name)
        if target in found:
            blob = found[target]
            source: Source = Blob(blob.path, blob.offset, blob.length, base, blob.pieces)
        else:
            source = Absent(base, f"it is a link to {links[name]}, which is not a file of the archive")
        if not _is_system_path(name):
            yield name, source


def _next_start(file: BinaryIO, place: int, end: int) -> int:
    """Return where the next tar begins after the end mark at `place`, or `end` without a next tar.

    Raises:
        tarfile.ReadError: there is no end mark, which is a block of zeros.
    """
    file.seek(place)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or place + tarfile.BLOCKSIZE > end:
        raise tarfile.ReadError(f"it ends at byte {place:,} without an end mark: it is truncated")
    if mark.strip(b"\0"):
        raise tarfile.ReadError(f"no header of a member at byte {place:,}: it is broken")
    while place < end:
        file.seek(place)
        chunk = file.read(min(_CHUNK, end - place))
        if not chunk:
            break
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return place + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        place += len(chunk)
    return end


def _plain(name: str) -> str:
    """Return the name of a member as a relative path below the root."""
    return posixpath.normpath("/" + name).lstrip("/")


def _is_system_path(name: str) -> bool:
    return any(map(is_system_name, name.split("/")))


def read_archive(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the content of members of a tar by name; the tar may be gzipped.

    Args:
        path: The archive.
        wanted: Returns whether the member with a name is read.

    Raises:
        InputError: it is truncated or broken, or unpacks to more than `_ARCHIVE_BYTES`.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            limited = _Limited(gzip.GzipFile(fileobj=file) if packed else file)
            content = {}
            with tarfile.open(fileobj=limited, mode="r:") as archive:  # type: ignore[call-overload]
                for member in archive:
                    limited.check(member.offset_data + member.size)
                    name = _plain(member.name)
                    data = archive.extractfile(member) if member.isreg() and wanted(name) else None
                    if data is not None and not _is_system_path(name):
                        content[name] = data.read()
            return content
    except (*_BROKEN, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read, is it complete? {error}") from error


class _Limited:
    """The first `_ARCHIVE_BYTES` of a file; reading or seeking further raises OSError."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        """Read the next bytes."""
        self.check(self.tell() + count)
        return self._file.read(count)

    def seek(self, place: int) -> int:
        """Seek to an offset."""
        self.check(place)
        return self._file.seek(place)

    def check(self, place: int) -> None:
        """Raise OSError for an offset after the limit."""
        if place > _ARCHIVE_BYTES:
            raise OSError(
                f"it unpacks to more than {_ARCHIVE_BYTES:,} bytes, the limit of an archive that is read whole"
            )
