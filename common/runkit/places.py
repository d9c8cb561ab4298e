"""Where a dataset lies: a local folder, or a prefix of an object store, behind one small set of operations.

A :class:`Store` names one place, a file or a folder, as a path does: ``store / "train/shard-000000.parquet"``. Files
are whole or absent in both kinds. Object stores go through ``pyarrow.fs``; credentials are looked up where the
store's own tools look for them. What fails in passing is tried again (:mod:`runkit.retries`), except in
:meth:`Store.write`, whose block is the caller's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import re
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, TypeAlias
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from runkit.errors import UserError
from runkit.files import fsync_path, temp_beside
from runkit.retries import patient

_SCHEMES = ("s3", "gs", "gcs")
# A Path swallows one of the two slashes; nobody's folder is called "s3:".
_URL = re.compile(r"^(s3|gs|gcs|file):/+")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(UserError):
    """A file or folder, or what it contains, cannot be used. The message states what to do."""


class WriteError(StoreError):
    """A file cannot be written: no space, no permission or no network. No partial file is left."""


class Store(ABC):
    """A place for files. Make one with :func:`open_store`; it holds nothing open and can be pickled."""

    @property
    @abstractmethod
    def local(self) -> Path | None:
        """The path on this machine's file system, None in an object store."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the path."""

    @abstractmethod
    def __truediv__(self, name: str) -> Self:
        """The place below this one; `name` may have several parts, separated by slashes."""

    @abstractmethod
    def _open(self) -> BinaryIO:
        """As :meth:`open`, tried once."""

    @abstractmethod
    def write(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a new file that appears, or replaces an old one, only when the block has succeeded.

        Raises:
            WriteError: It cannot be written, in words for a person; there is no half file.
        """

    @abstractmethod
    def size(self) -> int | None:
        """Size of the file in bytes, None where there is no such file."""

    @abstractmethod
    def files(self) -> list[str]:
        """Every file below this folder, hidden folders left out, as sorted names relative to it; none is no error."""

    @abstractmethod
    def delete(self) -> None:
        """Delete the file; nothing happens where there is none."""

    @abstractmethod
    def remove_empty_folders(self) -> None:
        """Remove this folder and those below it as far as they are empty; an object store has none."""

    @patient
    def open(self) -> BinaryIO:
        """Open the file for reading at random access.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: The object store refuses.
        """
        return self._open()

    def exists(self) -> bool:
        """Whether a file is here."""
        return self.size() is not None

    @contextlib.contextmanager
    def as_folder(self) -> Iterator[Path]:
        """The folder as a local one for the length of a block, for readers that need one: copied if it is not.

        Raises:
            StoreError: It cannot be read.
        """
        if self.local is not None:
            yield self.local
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in self.files():
                _LocalStore(Path(folder, name)).write_bytes((self / name).read_bytes())
            yield Path(folder)

    @patient
    def read_bytes(self) -> bytes:
        """Content of the file; errors as :meth:`open`."""
        with self._open() as file:
            return file.read()

    @patient
    def write_bytes(self, content: Any) -> None:
        """Write a whole file from anything that has a buffer; errors as :meth:`write`."""
        with self.write() as file:
            file.write(content)


Where: TypeAlias = "str | os.PathLike[str] | Store"
"""How callers name a place: a path, a URL (``s3://bucket/folder``, ``gs://…``, ``file:///…``) or a store."""


def open_store(where: Where) -> Store:
    """The store at a local path or URL. Nothing is looked at yet.

    ``s3://`` follows the environment of the AWS tools: AWS_ACCESS_KEY_ID and the rest, AWS_REGION or
    AWS_DEFAULT_REGION, and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL for another server. ``gs://`` follows Google's.

    Raises:
        StoreError: The scheme is unknown, the URL names no bucket, or the store cannot be reached.
    """
    if isinstance(where, Store):
        return where
    text = os.fspath(where)
    if match := _URL.match(text):
        scheme, rest = match[1], text[match.end() :]
        if scheme == "file":
            return _LocalStore(Path("/", unquote(rest)))
        if not rest.strip("/"):
            raise StoreError(f"{text} names no bucket: write {scheme}://BUCKET/FOLDER")
        return _ObjectStore(scheme, str(PurePosixPath(rest)))
    if isinstance(where, str) and "://" in text:
        raise StoreError(f"{text}: datasets lie in local folders or under {', '.join(_SCHEMES)} or file URLs")
    return _LocalStore(Path(text))


def absolute(where: Where) -> Store:
    """The same place for another process, which has another working folder."""
    store = open_store(where)
    return store if store.local is None else open_store(store.local.resolve())


@dataclass(frozen=True, slots=True)
class _LocalStore(Store):
    path: Path

    @property
    def local(self) -> Path:
        return self.path

    @property
    def name(self) -> str:
        return self.path.name

    def __truediv__(self, name: str) -> _LocalStore:
        return _LocalStore(self.path / name)

    def __str__(self) -> str:
        return str(self.path)

    def _open(self) -> BinaryIO:
        with _store_errors(self, "read"):
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise StoreError(f"{self} is no regular file: remove it")  # a pipe would be waited for
            return self.path.open("rb")

    @contextlib.contextmanager
    def write(self) -> Iterator[BinaryIO]:
        # In the same folder, for a rename is atomic only within one file system.
        temp = temp_beside(self.path)
        with _write_errors(self, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = temp.open("xb")
        try:
            with file:
                yield file
                with _write_errors(self, OSError):
                    file.flush()
                    os.fsync(file.fileno())
            with _write_errors(self, OSError):
                temp.replace(self.path)
        except BaseException as error:  # also on Ctrl-C: a half-written file must not stay behind
            temp.unlink(missing_ok=True)
            # The caller's block may also read: only what a read cannot raise is put down to this file.
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise _write_error(self, error) from error
            raise
        with _write_errors(self, OSError):
            fsync_path(self.path.parent)

    @patient
    def size(self) -> int | None:
        with _store_errors(self, "looked up"):
            return self.path.stat().st_size if self.path.is_file() else None

    @patient
    def files(self) -> list[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error  # a folder that cannot be listed is not an empty one

        found: list[str] = []
        with _store_errors(self, "listed"):
            for folder, folders, names in os.walk(self.path, onerror=refuse):
                folders[:] = [name for name in folders if not name.startswith(".")]
                found += [(Path(folder) / name).relative_to(self.path).as_posix() for name in names]
        return sorted(found)

    @patient
    def delete(self) -> None:
        with _store_errors(self, "deleted"):
            self.path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        for folder, _, _ in os.walk(self.path, topdown=False):
            with contextlib.suppress(OSError):  # it is not empty
                Path(folder).rmdir()


@dataclass(frozen=True, slots=True)
class _ObjectStore(Store):
    scheme: str
    key: str
    """Bucket and path, separated by slashes."""

    def __reduce__(self) -> tuple[Callable[[Where], Store], tuple[str]]:
        # Another process connects with its own environment, as its credentials may be others.
        return open_store, (str(self),)

    @property
    def local(self) -> None:
        return None

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def filesystem(self) -> Any:
        """The connection, made on first use, since naming a place must not need the network; one for all its files."""
        with _store_errors(self, "reached"):
            if self.scheme != "s3":
                return _google()
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            return _amazon(self.key.partition("/")[0], endpoint, region, os.environ.get("AWS_ACCESS_KEY_ID"))

    def __truediv__(self, name: str) -> _ObjectStore:
        return _ObjectStore(self.scheme, f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def _open(self) -> BinaryIO:
        with _store_errors(self, "read"):
            return self.filesystem.open_input_file(self.key)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def write(self) -> Iterator[BinaryIO]:
        # Built here and sent in one call: closing a stream commits the object, whatever went wrong before,
        # so that nothing may go wrong on our side once a stream is open.
        with _write_errors(self, OSError):
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below; its errors are this file's
        with file:
            yield file
            with _write_errors(self, OSError):
                file.flush()
                size = file.seek(0, os.SEEK_END)
            content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            with _write_errors(self, OSError, pa.ArrowException), self.filesystem.open_output_stream(self.key) as out:
                out.write(content)

    @patient
    def size(self) -> int | None:
        with _store_errors(self, "looked up"):
            info = self.filesystem.get_file_info(self.key)
        return int(info.size) if info.type == fs.FileType.File else None

    @patient
    def files(self) -> list[str]:
        with _store_errors(self, "listed"):
            selector = fs.FileSelector(self.key, recursive=True, allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
        prefix = f"{self.key}/"
        names = sorted(info.path.removeprefix(prefix) for info in infos if info.type == fs.FileType.File)
        for name in names:
            if {"", ".", ".."} & {*name.split("/")}:  # an object may have such a name, and a copy of it lead elsewhere
                raise StoreError(f"{self} holds an object named {name!r}, which is no path: delete or rename it")
        return names

    @patient
    def delete(self) -> None:
        with _store_errors(self, "deleted"):
            if self.filesystem.get_file_info(self.key).type == fs.FileType.File:
                self.filesystem.delete_file(self.key)

    def remove_empty_folders(self) -> None:
        pass


@functools.cache
def _google() -> Any:
    return fs.GcsFileSystem()


@functools.lru_cache(maxsize=16)
def _amazon(bucket: str, endpoint: str | None, region: str | None, key_id: str | None) -> Any:
    """A client of the environment's credentials; `key_id` is theirs, so that others get another client."""
    if endpoint:
        url = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        address = f"{url.netloc}{url.path.rstrip('/')}"
        return fs.S3FileSystem(endpoint_override=address, scheme=url.scheme, region=region or "us-east-1")
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket))


@contextlib.contextmanager
def _store_errors(store: Store, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{store} cannot be {what} ({error}). {_remedy(store)}, and try again") from error


@contextlib.contextmanager
def _write_errors(store: Store, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise _write_error(store, error) from error


def _write_error(store: Store, error: Exception) -> WriteError:
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        remedy = "Free some space and run again"
    else:
        remedy = f"{_remedy(store)}, and run again"
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return WriteError(f"{store} cannot be written ({reason}); nothing was left there. {remedy}")


def _remedy(store: Store) -> str:
    if store.local is None:
        return "Check the address, the credentials and the network"
    return "Choose a folder that can be written, or mend its permissions"
