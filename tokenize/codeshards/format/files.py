"""Files that are either whole or absent: temp file → fsync → rename → fsync of the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from codeshards.format.errors import ShardError

_TEMP_MARK = ".tmp-"


class FileRecord(NamedTuple):
    """What identifies a written file's content."""

    sha256: str
    """Hex digest of the whole file."""
    bytes: int
    """Size of the file."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file for writing that appears under its name only when the block has succeeded.

    The bytes go to a hidden temporary file in the same folder (a rename is atomic only within one file
    system), which is removed if the block raises. An existing file is replaced. The folder must exist.

    Args:
        path: Where the file will be.

    Yields:
        A binary file open for writing.
    """
    target = Path(path)
    temp = target.with_name(f".{target.name}{_TEMP_MARK}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temp.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.replace(target)
    except BaseException:  # also on Ctrl-C: a half-written file must not stay behind
        temp.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` atomically as JSON: sorted keys, indent 2, final newline; same value, same bytes."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ShardError: The file is missing, is not JSON, or holds something else than an object.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ShardError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise ShardError(f"{path} cannot be read as JSON ({error}). Delete it and make it again") from error
    if not isinstance(value, dict):
        raise ShardError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def compact_json(value: Any) -> str:
    """``value`` as JSON on one line with sorted keys: what hashes and schema metadata are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: str | os.PathLike[str]) -> FileRecord:
    """The record of a file on disk."""
    return FileRecord(sha256_file(path), Path(path).stat().st_size)


def remove_stale_temps(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what :func:`atomic_write` left in ``folder`` (not below it) when its process was killed.

    Call it only while nobody writes there. Returns the paths removed.
    """
    stale = sorted(path for path in Path(folder).glob(f".*{_TEMP_MARK}*") if path.is_file())
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _fsync_folder(folder: Path) -> None:
    # Without this a power cut may undo the rename although the file's bytes are safe.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
