"""Files that are written atomically."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Collection, Iterator
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from runkit.errors import UserError
from runkit.jsonfiles import finite_or_none
from runkit.retries import patient

log = logging.getLogger(__name__)

TEMP_MARK = ".tmp-"
"""Part of the name of a temporary file or folder."""
_NEWLINE = "\n"
_ONE_LINE = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def temp_beside(path: Path) -> Path:
    """Return a hidden temporary path beside a local file that no other process uses, on this machine or another."""
    return path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk. A power failure may undo a rename in a folder that was not flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@patient
def write_file(path: Path, *content: bytes | memoryview) -> None:
    """Write a file atomically: temporary file, fsync, rename, fsync of the folder, which is created.

    Args:
        path: The file.
        content: Its bytes, in any number of pieces.

    Raises:
        UserError: It cannot be written; no part of it is left.
    """
    temp = temp_beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temp.open("xb") as file:
                file.writelines(content)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


@patient
def append_file(path: Path, content: bytes) -> None:
    """Append to a file, completely or not at all. The file and its folder are created.

    Raises:
        UserError: It cannot be written; it is unchanged.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_size if path.exists() else None
        try:
            with path.open("ab") as file:
                file.write(content)
        except BaseException:
            if before is not None:
                os.truncate(path, before)
            else:
                path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError of a block that writes a file or folder to a UserError that names the path and the remedy.

    Raises:
        UserError: The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); nothing was left there. Free some space, mend the "
            "permissions or choose another folder, and run again"
        ) from error


def pretty_json(value: Any) -> bytes:
    """Return JSON with sorted keys, indent 2 and a final newline; equal values give equal bytes.

    Raises:
        ValueError: A number is not finite.
    """
    return f"{_pretty(value, _NEWLINE)}\n".encode()


def _pretty(value: Any, newline: str) -> str:
    """Return what json.dumps returns for an indent of 2, in half of its time: its C encoder does not indent."""
    if type(value) is str:
        return encode_basestring(value)
    inner = newline + "  "
    if isinstance(value, dict) and value:
        lines = [
            f"{inner}{encode_basestring(name if type(name) is str else _json_name(name))}: {_pretty(item, inner)}"
            for name, item in sorted(value.items())
        ]
        return f"{{{','.join(lines)}{newline}}}"
    if isinstance(value, list | tuple) and value:
        return f"[{','.join([inner + _pretty(item, inner) for item in value])}{newline}]"
    return repr(value) if type(value) is int else _ONE_LINE.encode(value)


def _json_name(name: Any) -> str:
    """Return the name of a field in JSON: numbers, booleans and None become strings."""
    return str(next(iter(json.loads(_ONE_LINE.encode({name: 0})))))


def write_json(path: Path, value: Any) -> None:
    """Write :func:`pretty_json` atomically; numbers that are not finite become null."""
    write_file(path, pretty_json(finite_or_none(value)))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_made(folder: Path, names: Collection[str]) -> None:
    """Remove the files of these names in a folder, and then the folder.

    The folder is renamed first, so that a kill leaves no part of it under its name. Other files are kept in
    `leftover-NAME` beside it. Links to folders and missing folders are ignored.

    Args:
        folder: The folder.
        names: Names (glob patterns) of the files.
    """
    if folder.is_symlink() or not folder.is_dir():
        return

    def is_made(path: Path) -> bool:
        return any(fnmatch.fnmatchcase(path.name, name) for name in names) and (path.is_file() or path.is_symlink())

    foreign = sorted(path.name for path in folder.iterdir() if not is_made(path))
    if foreign:
        aside = _unused(folder.with_name(f"leftover-{folder.name.lstrip('.')}"))
        log.warning("%s holds %s, which is a foreign file: kept in %s", folder, foreign[0], aside)
    else:
        aside = folder if folder.name.startswith(".") else temp_beside(folder)
    if aside != folder:
        folder.rename(aside)
    for path in [path for path in aside.iterdir() if is_made(path)]:
        path.unlink()
    if not foreign:
        aside.rmdir()


def set_aside(path: Path, name: str) -> Path:
    """Rename a file or folder within its folder to `name` or, if that exists, `name-2` and so on."""
    aside = _unused(path.with_name(name))
    path.rename(aside)
    return aside


def _unused(path: Path) -> Path:
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
