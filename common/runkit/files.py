"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from runkit.errors import UserError
from runkit.retries import patient

log = logging.getLogger(__name__)

TEMP_MARK = ".tmp-"
"""Part of the name of a file or folder that is still being written."""


def temp_beside(path: Path) -> Path:
    """A hidden name beside a local file that no other process has, on this machine or another with the same ids."""
    return path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def fsync_path(path: Path) -> None:
    """Bring a file or folder to the disk; without a folder's a power cut may undo a rename of safe bytes in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@patient
def write_file(path: Path, *content: bytes | memoryview) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename, fsync of the folder, which is made.

    Args:
        path: The file.
        content: Its bytes, in as many pieces as they come in.

    Raises:
        UserError: it cannot be written; nothing of it was left behind.
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
    """Append to a file, whole or not at all; it and its folder are made.

    Raises:
        UserError: it cannot be written; it is as it was before.
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
    """Name the file or folder that a block could not write, and the remedy.

    Raises:
        UserError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); nothing was left there. Free some space, mend the "
            "permissions or choose another folder, and run again"
        ) from error


def pretty_json(value: Any) -> bytes:
    """JSON with sorted keys, indent 2 and a final newline: same value, same bytes.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_made(folder: Path, names: Collection[str]) -> None:
    """Remove a folder that this process may remove: its files of these names, and then the folder itself.

    It is renamed first, so that a kill leaves no half of it under its name. Where it holds other files too, those are
    kept in `leftover-NAME` beside it. Links to folders and missing folders are left alone.

    Args:
        folder: The folder.
        names: Names (glob patterns) of the files that were written into it.
    """
    if folder.is_symlink() or not folder.is_dir():
        return

    def is_made(path: Path) -> bool:
        return any(fnmatch.fnmatchcase(path.name, name) for name in names) and (path.is_file() or path.is_symlink())

    foreign = sorted(path.name for path in folder.iterdir() if not is_made(path))
    if foreign:
        aside = _unused(folder.with_name(f"leftover-{folder.name.lstrip('.')}"))
        log.warning("%s holds %s, which was not made here: kept in %s", folder, foreign[0], aside)
    else:
        aside = folder if folder.name.startswith(".") else temp_beside(folder)
    if aside != folder:
        folder.rename(aside)
    for path in [path for path in aside.iterdir() if is_made(path)]:
        path.unlink()
    if not foreign:
        aside.rmdir()


def set_aside(path: Path, name: str) -> Path:
    """Rename a file or folder within its folder, to `name` or, where that is taken, `name-2` and so on."""
    aside = _unused(path.with_name(name))
    path.rename(aside)
    return aside


def _unused(path: Path) -> Path:
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
