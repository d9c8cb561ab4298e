"""Sources of bytes: what a dataset decodes, and how a file is opened safely."""

import io
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from runkit.ranges import RemoteFile
from runkit.remote import AnyPath, RemotePath
from runkit.retries import is_passing, patient
from vqgan.errors import InputError

Stored = str | RemoteFile
"""Where a source is: the path of a local file, or a remote file."""


def stored(path: AnyPath) -> Stored:
    """Return a file as sources have it."""
    return path.file if isinstance(path, RemotePath) else str(path)


def stored_in(folder: AnyPath, name: str) -> Stored:
    """Return a file in a folder as sources have it."""
    return (folder / name).file if isinstance(folder, RemotePath) else f"{folder}/{name}"


def size_of(path: Stored) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: it is missing.
    """
    return path.size if isinstance(path, RemoteFile) else os.stat(path).st_size


class Source(Protocol):
    """Bytes to decode. A source is small, hashable and picklable; only `open` reads the bytes."""

    @property
    def name(self) -> str:
        """Name in messages; of a map, its suffix gives the format."""

    def open(self) -> BinaryIO:
        """Open the bytes, seekable.

        Raises:
            OSError: they cannot be read.
        """

    def nbytes(self) -> int:
        """Size in bytes, without reading them; -1 where nothing can be read."""


@dataclass(frozen=True, slots=True)
class File:
    """A whole file."""

    path: Stored

    @property
    def name(self) -> str:
        """Name without the folder."""
        return self.path.name if isinstance(self.path, RemoteFile) else os.path.basename(self.path)

    def open(self) -> BinaryIO:
        """Open the file."""
        return open_regular(self.path)

    @patient
    def nbytes(self) -> int:
        """Size of the file, -1 where it is missing."""
        try:
            return size_of(self.path)
        except OSError as error:
            if is_passing(error):
                raise  # -1 would change the source hash of a file that exists
            return -1


@dataclass(frozen=True, slots=True)
class Blob:
    """A range of bytes in a file, such as a member of a tar, which is read in place."""

    path: Stored
    offset: int
    length: int
    name: str
    pieces: tuple[tuple[int, int], ...] | None = None
    """Of a sparse member: offset within it and length of each stored piece, in the order of storage; the rest is
    zeros."""

    def open(self) -> BinaryIO:
        """Read the bytes into memory."""
        stored = self.length if self.pieces is None else sum(length for _, length in self.pieces)
        if isinstance(self.path, RemoteFile):
            data = self.path.read_near(self.offset, stored)
        else:
            with open_regular(self.path) as file:
                file.seek(self.offset)
                data = file.read(stored)
        if len(data) < stored:
            raise OSError(f"{self.path} ends before this member does: the archive is truncated")
        if self.pieces is not None:
            whole, place = bytearray(self.length), 0
            for at, length in self.pieces:
                whole[at : at + length] = data[place : place + length]
                place += length
            data = bytes(whole)
        return io.BytesIO(data)

    def nbytes(self) -> int:
        """Length of the range."""
        return self.length


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in memory."""

    name: str
    data: bytes

    def open(self) -> BinaryIO:
        """Open the bytes."""
        return io.BytesIO(self.data)

    def nbytes(self) -> int:
        """Number of bytes."""
        return len(self.data)


def remote_state(source: Source) -> str:
    """Return the state of a remote file, by which a change is noticed; "" for other sources."""
    path = source.path if isinstance(source, File) else ""
    return f" {path.stamp}" if isinstance(path, RemoteFile) else ""


def open_regular(path: Stored | AnyPath) -> BinaryIO:
    """Open a regular file for reading; a remote one is read into memory.

    A pipe or a device is refused, because reading it may never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if isinstance(path, RemoteFile | RemotePath):
        return (path.file if isinstance(path, RemotePath) else path).open()
    file = open(path, "rb", opener=_opener)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # without it, opening a pipe waits for a writer


def read_text(path: AnyPath) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}): convert it, for example with iconv -f latin1") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
