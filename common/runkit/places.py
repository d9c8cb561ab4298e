"""Files in a local folder, an object store or a repository of the Hugging Face Hub, behind one set of operations.

A :class:`Store` names a file or a folder as a path does: ``store / "train/shard-000000.parquet"``. A file is either
complete or absent, wherever it is. :mod:`runkit.objects` has object stores and the Hub. Credentials come from where the
store's own tools look for them. Transient failures are retried (:mod:`runkit.retries`), except in :meth:`Store.write`,
whose block belongs to the caller.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Self, TypeAlias
from urllib.parse import unquote

import pyarrow as pa

from runkit.errors import UserError
from runkit.files import fsync_path, temp_beside
from runkit.retries import patient

# A Path drops one of the two slashes. A local folder named "s3:" is not supported.
_URL = re.compile(r"^(s3|gs|gcs|hf|file):/+")
_ANY_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(UserError):
    """A file or folder, or what it contains, cannot be used. The message states what to do."""


class ChangedError(StoreError):
    """A file is not the one that was listed."""


class WriteError(StoreError):
    """A file cannot be written: no space, no permission or no network. No partial file is left."""


class Listed(NamedTuple):
    """What the listing of a folder says of a file."""

    bytes: int
    """Size of the file."""
    mtime_ns: int
    """Time of the last change, in nanoseconds since 1970; 0 where the store has none."""

    @classmethod
    def of(cls, status: os.stat_result) -> Listed:
        """What a listing would say of a local file with this status."""
        return cls(status.st_size, status.st_mtime_ns)


def has_store_error(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, is a :class:`StoreError`."""
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__
    return error is not None


class Store(ABC):
    """A file or folder. Create it with :func:`open_store`; it keeps nothing open and can be pickled."""

    @property
    @abstractmethod
    def local(self) -> Path | None:
        """The path on the local file system; None for a remote store."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path."""

    @abstractmethod
    def __truediv__(self, name: str) -> Self:
        """The file or folder below this one; `name` may have several parts, separated by slashes."""

    @abstractmethod
    def _open(self) -> BinaryIO:
        """Open the file as :meth:`open` does, without retries."""

    @abstractmethod
    def write(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a new file that appears, or replaces the existing one, only when the block has succeeded.

        Raises:
            WriteError: The file cannot be written. No partial file is left.
        """

    @abstractmethod
    def size(self) -> int | None:
        """The size of the file in bytes, or None if there is no such file."""

    @abstractmethod
    def files(self) -> list[str]:
        """Sorted names, relative to this folder, of all files below it; empty if the folder is missing.

        Hidden folders of a local file system are skipped.
        """

    @abstractmethod
    def listing(self) -> dict[str, Listed]:
        """Name → size and time of each file in this folder, not below it; empty if the folder is missing."""

    @abstractmethod
    def delete(self) -> None:
        """Delete the file if it exists."""

    @abstractmethod
    def remove_empty_folders(self) -> None:
        """Remove this folder and all folders below it that are empty; an object store has no folders."""

    @patient
    def open(self) -> BinaryIO:
        """Open the file for random-access reading.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: The file cannot be read.
        """
        return self._open()

    def exists(self) -> bool:
        """Return whether the file exists."""
        return self.size() is not None

    @contextlib.contextmanager
    def as_folder(self) -> Iterator[Path]:
        """Provide the folder as a local path inside the block; a remote folder is copied to a temporary one.

        Raises:
            StoreError: The folder cannot be read.
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
        """Return the content of the file; errors as :meth:`open`."""
        with self._open() as file:
            return file.read()

    @patient
    def write_bytes(self, content: Any) -> None:
        """Write a file from any object that supports the buffer protocol; errors as :meth:`write`."""
        with self.write() as file:
            file.write(content)


Where: TypeAlias = "str | os.PathLike[str] | Store"
"""What :func:`open_store` accepts: a path, a URL (``s3://…``, ``gs://…``, ``hf://…``, ``file:///…``) or a store."""


def open_store(where: Where) -> Store:
    """Return the store at a local path or URL, without accessing it.

    - ``s3://BUCKET/FOLDER`` follows the environment of the AWS tools: AWS_ACCESS_KEY_ID and the rest, AWS_REGION or
      AWS_DEFAULT_REGION, and AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL for another server.
    - ``gs://BUCKET/FOLDER`` follows the environment of the Google Cloud tools.
    - ``hf://datasets/OWNER/NAME/FOLDER`` and ``hf://OWNER/NAME@REVISION/FOLDER`` are read-only and require
      ``huggingface_hub``.

    Raises:
        StoreError: The scheme is unknown, or the URL names no bucket.
    """
    if isinstance(where, Store):
        return where
    text = os.fspath(where)
    if match := _URL.match(text):
        scheme, rest = match[1], text[match.end() :]
        if scheme == "file":
            return _LocalStore(Path("/", unquote(rest)))
        if not rest.strip("/"):
            names = "datasets/OWNER/NAME" if scheme == "hf" else "BUCKET/FOLDER"
            raise StoreError(f"{text} names no bucket or repository: write {scheme}://{names}")
        from runkit.objects import ObjectStore

        return ObjectStore(scheme, str(PurePosixPath(rest)))
    if isinstance(where, str) and "://" in text:
        raise StoreError(f"{text} is not supported: use a local path or an s3, gs, gcs, hf or file URL")
    return _LocalStore(Path(text))


def url_of(where: str | os.PathLike[str]) -> str | None:
    """Return the URL that a text or a path stands for, with two slashes after the scheme; None for a local path."""
    text = os.fspath(where)
    match = _ANY_URL.match(text)
    return f"{match[1]}://{text[match.end() :]}" if match and match[1] != "file" else None


def as_typed(where: str | os.PathLike[str]) -> str:
    """Return a local path, or the URL that a path stands for, as a user writes it."""
    return url_of(where) or os.fspath(where)


def absolute(where: Where) -> Store:
    """Return the same store with an absolute path, for a process with another working directory."""
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

    def _open(self, buffering: int = -1) -> BinaryIO:
        with store_errors(self, "read"):
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise StoreError(f"{self} is not a regular file: remove it")  # reading a pipe would block
            return self.path.open("rb", buffering)

    @patient
    def read_bytes(self) -> bytes:
        with self._open(0) as file:  # without a buffer a small file is read in half of the time
            return file.read()

    @contextlib.contextmanager
    def write(self) -> Iterator[BinaryIO]:
        # In the same folder, because a rename is atomic only within one file system.
        temp = temp_beside(self.path)
        with write_errors(self, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = temp.open("xb")
        try:
            with file:
                yield file
                with write_errors(self, OSError):
                    file.flush()
                    os.fsync(file.fileno())
            with write_errors(self, OSError):
                temp.replace(self.path)
        except BaseException as error:  # also on Ctrl-C: no partial file must be left
            temp.unlink(missing_ok=True)
            # The caller's block may also read, so only errors that a read cannot raise are attributed to this file.
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise _write_error(self, error) from error
            raise
        with write_errors(self, OSError):
            fsync_path(self.path.parent)

    @patient
    def size(self) -> int | None:
        with store_errors(self, "looked up"):
            return self.path.stat().st_size if self.path.is_file() else None

    @patient
    def files(self) -> list[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error  # a folder that cannot be listed is not empty

        found: list[str] = []
        with store_errors(self, "listed"):
            for folder, folders, names in os.walk(self.path, onerror=refuse):
                folders[:] = [name for name in folders if not name.startswith(".")]
                found += [(Path(folder) / name).relative_to(self.path).as_posix() for name in names]
        return sorted(found)

    @patient
    def listing(self) -> dict[str, Listed]:
        with store_errors(self, "listed"):
            try:
                entries = os.scandir(self.path)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            with entries:
                return {entry.name: status for entry in entries if (status := _listed(entry))}

    @patient
    def delete(self) -> None:
        with store_errors(self, "deleted"):
            self.path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        for folder, _, _ in os.walk(self.path, topdown=False):
            with contextlib.suppress(OSError):  # the folder is not empty
                Path(folder).rmdir()


def _listed(entry: os.DirEntry[str]) -> Listed | None:
    """Return the size and time of a file; None for what is no file, or was deleted since it was listed."""
    try:
        status = entry.stat() if entry.is_file() else None
    except FileNotFoundError:
        return None
    return Listed.of(status) if status else None


@contextlib.contextmanager
def store_errors(store: object, what: str) -> Iterator[None]:
    """Convert the errors of a block to :class:`StoreError`, except that of a missing file.

    Args:
        store: What the message names.
        what: What it cannot be: read, listed, …
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{store} cannot be {what} ({error}). {_remedy(store, error)}, and try again") from error


@contextlib.contextmanager
def write_errors(store: Store, *kinds: type[Exception]) -> Iterator[None]:
    """Convert the errors of a block to :class:`WriteError`."""
    try:
        yield
    except kinds as error:
        raise _write_error(store, error) from error


def _write_error(store: Store, error: Exception) -> WriteError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return WriteError(
        f"{store} cannot be written ({reason}); nothing was left there. {_remedy(store, error)}, and run again"
    )


def _remedy(store: object, error: Exception) -> str:
    code = getattr(error, "errno", None)
    if code in _DISK_FULL:
        return "Free some space"
    if isinstance(store, Store) and store.local is not None:
        return "Choose a folder that can be written, or correct its permissions"
    if code == errno.EROFS:
        return "Choose a local folder (publish it with `hf upload`)"
    return "Check the address, the credentials and the network"
