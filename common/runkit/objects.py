"""Object stores, through ``pyarrow.fs``, and the Hugging Face Hub, through :mod:`runkit.hub`, as stores."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from runkit.places import Listed, Store, StoreError, Where, open_store, store_errors, write_errors
from runkit.retries import patient


@dataclass(frozen=True, slots=True)
class ObjectStore(Store):
    """A file or folder in an object store or a repository of the Hub."""

    scheme: str
    key: str
    """Bucket or repository, and path, separated by slashes."""

    def __reduce__(self) -> tuple[Callable[[Where], Store], tuple[str]]:
        # Another process connects with its own environment, because its credentials may differ.
        return open_store, (str(self),)

    @property
    def local(self) -> None:
        """None: it is remote."""
        return None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.key).name

    @property
    def filesystem(self) -> Any:
        """The client, shared by all stores of a bucket and created on first use: naming a store needs no network."""
        with store_errors(self, "reached"):
            if self.scheme == "hf":
                return _hugging_face()
            if self.scheme != "s3":
                return _google()
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            return _amazon(self.key.partition("/")[0], endpoint, region, os.environ.get("AWS_ACCESS_KEY_ID"))

    def __truediv__(self, name: str) -> ObjectStore:
        return ObjectStore(self.scheme, f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def _open(self) -> BinaryIO:
        with store_errors(self, "read"):
            return self.filesystem.open_input_file(self.key)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def write(self) -> Iterator[BinaryIO]:
        """Write a new object; see :meth:`Store.write`."""
        # The object is built locally and sent in one call. Closing a stream commits the object even after an error, so
        # nothing on this side may fail while a stream is open.
        with write_errors(self, OSError):
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        with file:
            yield file
            with write_errors(self, OSError):
                file.flush()
                size = file.seek(0, os.SEEK_END)
            content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            with write_errors(self, OSError, pa.ArrowException), self.filesystem.open_output_stream(self.key) as out:
                out.write(content)

    @patient
    def size(self) -> int | None:
        """The size of the object in bytes, or None if there is none."""
        with store_errors(self, "looked up"):
            info = self.filesystem.get_file_info(self.key)
        return int(info.size) if info.type == fs.FileType.File else None

    def files(self) -> list[str]:
        """Sorted names of the objects below this folder."""
        return sorted(self.states())

    @patient
    def listing(self) -> dict[str, Listed]:
        """Name → size and time of each file in this folder, without those below it."""
        with store_errors(self, "listed"):
            infos = self.filesystem.get_file_info(fs.FileSelector(self.key, allow_not_found=True))
        here = [one for one in infos if one.type == fs.FileType.File and one.path == f"{self.key}/{one.base_name}"]
        return {one.base_name: Listed(int(one.size), one.mtime_ns or 0) for one in here}

    @patient
    def states(self) -> dict[str, tuple[int, str]]:
        """Name → size in bytes and time of modification in seconds, "" if unknown, of each file below this folder.

        Raises:
            StoreError: The folder cannot be listed, or an object has a name that is not a path.
        """
        with store_errors(self, "listed"):
            selector = fs.FileSelector(self.key, recursive=True, allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
        prefix = f"{self.key}/"
        found = {info.path.removeprefix(prefix): _state(info) for info in infos if info.type == fs.FileType.File}
        for name in found:
            if {"", ".", ".."} & {*name.split("/")}:  # a copy of such an object could be written outside its folder
                raise StoreError(f"{self} holds an object named {name!r}, which is not a path: delete or rename it")
        return found

    @patient
    def open_with_state(self) -> tuple[Any, tuple[int, str]]:
        """Return the file, opened for reading at any offset from several threads, and its state as in :meth:`states`.

        Raises:
            FileNotFoundError: There is no such file.
            StoreError: The file cannot be read.
        """
        with store_errors(self, "read"):
            file = self.filesystem.open_input_file(self.key)
            modified = (file.metadata() or {}).get("Last-Modified") if self.scheme == "s3" else None
            if modified:  # saves the request for the state
                return file, (file.size(), str(round(datetime.fromisoformat(modified.decode()).timestamp())))
            return file, _state(self.filesystem.get_file_info(self.key))

    @patient
    def delete(self) -> None:
        """Delete the object if it exists."""
        with store_errors(self, "deleted"):
            if self.filesystem.get_file_info(self.key).type == fs.FileType.File:
                self.filesystem.delete_file(self.key)

    def remove_empty_folders(self) -> None:
        """Do nothing: an object store has no folders."""


def _state(info: Any) -> tuple[int, str]:
    # Whole seconds, because a store may list more digits than it returns for one file.
    return int(info.size), "" if info.mtime_ns is None else str(info.mtime_ns // 10**9)


@functools.cache
def _hugging_face() -> Any:
    from runkit.hub import HubFileSystem

    return HubFileSystem()


@functools.cache
def _google() -> Any:
    return fs.GcsFileSystem()


@functools.lru_cache(maxsize=16)
def _amazon(bucket: str, endpoint: str | None, region: str | None, key_id: str | None) -> Any:
    """Create a client with the credentials of the environment; `key_id` identifies them in the cache."""
    # With allow_delayed_open a small object takes one request, not the three of a multipart upload.
    if endpoint:
        url = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        address = f"{url.netloc}{url.path.rstrip('/')}"
        return fs.S3FileSystem(
            endpoint_override=address, scheme=url.scheme, region=region or "us-east-1", allow_delayed_open=True
        )
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), allow_delayed_open=True)
