"""JSON, hashes and atomic writes of the files of a dataset, local or in an object store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from codeshards.format.errors import ShardError
from runkit.files import TEMP_MARK, pretty_json
from runkit.jsonfiles import parse_object
from runkit.places import Where, open_store
from runkit.retries import patient

_SEAL = "sha256"
_REMEDY = "Restore it from a copy, or delete it and run the command that made it again"


class FileRecord(NamedTuple):
    """Identifies the content of a written file."""

    sha256: str
    """Hex digest of the whole file."""
    bytes: int
    """Size of the file."""


def atomic_write(path: Where) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a file for writing that appears under its name only when the block has succeeded.

    Missing folders are made. A local file is written to a hidden temporary file beside the target, then follow fsync,
    rename and fsync of the folder. An object is uploaded when all its bytes are written.

    Args:
        path: The file; an existing one is replaced.

    Returns:
        A context manager that yields a binary file open for writing.

    Raises:
        WriteError: It cannot be written; no partial file is left.
    """
    return open_store(path).write()


def atomic_write_json(path: Where, value: Any) -> None:
    """Write ``value`` atomically as JSON: sorted keys, indent 2, final newline; equal values give equal bytes."""
    open_store(path).write_bytes(pretty_json(value))


def read_json(path: Where) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ShardError: The file is missing, is not JSON, or its value is not an object.
    """
    return parse_object(_content(path), path, ShardError)


def write_sealed_json(path: Where, value: dict[str, Any]) -> None:
    """Write a JSON object like :func:`atomic_write_json`, with a hash of itself under the key ``sha256``."""
    atomic_write_json(path, {**value, _SEAL: _seal(value)})


def read_sealed_json(path: Where) -> dict[str, Any]:
    """Read what :func:`write_sealed_json` wrote, without its hash; every byte is checked.

    Raises:
        ShardError: As :func:`read_json`, or the file was changed since it was written.
    """
    content = _content(path)
    try:
        value = parse_object(content, path, ShardError)
    except ShardError as error:
        raise ShardError(f"{error}. {_REMEDY}") from error
    seal = value.pop(_SEAL, None)
    try:
        # The second comparison detects what the first does not: spaces, escapes, upper-case digits of the hash.
        intact = seal == _seal(value) and content == pretty_json({**value, _SEAL: seal})
    except (ValueError, RecursionError):  # 1e999 and lone surrogates can be read as JSON but not written
        intact = False
    if not intact:
        raise ShardError(
            f"{path} was changed since it was written, or damaged: its content and its own sha256 differ. {_REMEDY}"
        )
    return value


def compact_json(value: Any) -> str:
    """``value`` as JSON on one line with sorted keys: the form in hashes and schema metadata."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@patient
def sha256_file(path: Where) -> str:
    """sha256 (hex) of a file's content."""
    with open_store(path).open() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def file_record(path: Where) -> FileRecord:
    """The record of an existing file."""
    store = open_store(path)
    size = store.size()
    if size is None:
        raise ShardError(f"{store} is missing")
    return FileRecord(sha256_file(store), size)


def remove_stale_temps(folder: Where) -> list[Path]:
    """Remove the temporary files that killed processes left in ``folder`` (not below it) by :func:`atomic_write`.

    Call it only while no other process writes there. Returns the removed paths: none in an object store, where an
    unfinished upload has no name.
    """
    path = open_store(folder).local
    if path is None or not path.is_dir():
        return []
    with os.scandir(path) as entries:  # a folder may have a hundred thousand files: no Path for each
        names = sorted(
            one.name for one in entries if one.name.startswith(".") and TEMP_MARK in one.name and one.is_file()
        )
    stale = [path / name for name in names]
    for found in stale:
        found.unlink(missing_ok=True)
    return stale


def _content(path: Where) -> bytes:
    try:
        return open_store(path).read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{path} is missing") from None
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error})") from error


def _seal(value: dict[str, Any]) -> str:
    return hashlib.sha256(compact_json(value).encode()).hexdigest()
