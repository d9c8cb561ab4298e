"""Sources of bytes: what a dataset decodes, and how a file is opened safely."""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from runkit.retries import is_passing, patient
from vqgan.errors import InputError


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

    path: str

    @property
    def name(self) -> str:
        """Name without the folder."""
        return os.path.basename(self.path)

    def open(self) -> BinaryIO:
        """Open the file."""
        return open_regular(self.path)

    @patient
    def nbytes(self) -> int:
        """Size of the file, -1 where it is missing."""
        try:
            return os.stat(self.path).st_size
        except OSError as error:
            if is_passing(error):
                raise  # -1 would change the source hash of a file that exists
            return -1


@dataclass(frozen=True, slots=True)
class Blob:
    """A range of bytes in a file, such as a member of a tar, which is read in place."""

    path: str
    offset: int
    length: int
    name: str
    pieces: tuple[tuple[int, int], ...] | None = None
    """Of a sparse member: offset within it and length of each stored piece, in the order of storage; the rest is
    zeros."""

    def open(self) -> BinaryIO:
        """Read the bytes into memory."""
        stored = self.length if self.pieces is None else sum(length for _, length in self.pieces)
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


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    A pipe or a device is refused, because reading it may never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    file = open(path, "rb", opener=_opener)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # without it, opening a pipe waits for a writer


def read_text(path: Path) -> str:
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
