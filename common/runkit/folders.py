"""Output folders: separate from inputs, held by one process, and replaced only by the command that wrote them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from runkit.errors import UserError
from runkit.files import pretty_json, sha256_of, write_file, writing
from runkit.jsonfiles import parse_json
from runkit.names import plain_path

log = logging.getLogger(__name__)


def check_apart(out: object, **inputs: object) -> None:
    """Refuse an output folder that is, contains or is inside an input, so that no input is overwritten.

    Args:
        out: Path or URL of the output.
        inputs: Name → path or URL of an input, or a list of them; None and empty ones are ignored.

    Raises:
        UserError: They overlap; the message names both.
    """
    place = _place(out)
    for name, given in inputs.items():
        for one in given if isinstance(given, list | tuple | set) else [given]:
            if one is None or not str(one):
                continue
            other = _place(one)
            shorter = min(len(place), len(other))
            if place[:shorter] == other[:shorter]:
                how = "is" if place == other else "is in" if len(place) > len(other) else "holds"
                raise UserError(f"the output {out} {how} the input {name} {one}: choose an output folder apart from it")


def _place(where: object) -> tuple[str, ...]:
    """Return the parts of a path, with links resolved, or of a URL."""
    text = str(where)
    scheme, mark, rest = text.partition(":/")
    if mark and "/" not in scheme and scheme != "file":
        return (scheme, *(part for part in PurePosixPath(rest).parts if part != "/"))
    return Path("/" + rest.lstrip("/") if mark and scheme == "file" else text).resolve().parts


@contextlib.contextmanager
def held(
    folder: Path, command: str, *, reserved: Collection[str] = (), is_ours: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Hold a folder for one process of a command during a block.

    The hidden file `.COMMAND.lock` marks a folder of the command and is locked during the block; the system releases
    the lock when the process dies. On a file system without locks, nothing is held. The file is kept if names are
    reserved. Folders that were created for it and are empty at the end are removed.

    Args:
        folder: The folder, which is created.
        command: Name of the command.
        reserved: Names (glob patterns) that the command writes. In a folder without the lock file they may not exist.
        is_ours: Returns whether a folder without the lock file was written by an earlier version of the command.

    Raises:
        UserError: Another process holds the folder, or it contains foreign files of reserved names.
    """
    path = folder / f".{command}.lock"
    check_ours(folder, command, reserved, is_ours)
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    with _locked(path, command):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder may be gone, or be full again
                is_empty = list(folder.iterdir()) == [path]
                if is_empty or not reserved:
                    path.unlink()
                for place in new if is_empty else ():
                    place.rmdir()


def check_ours(folder: Path, command: str, reserved: Collection[str], is_ours: Callable[[], bool]) -> None:
    """Refuse a folder with foreign files of reserved names; arguments as :func:`held`.

    Raises:
        UserError: naming the first of them.
    """
    if not (folder / f".{command}.lock").exists():
        foreign = sorted(found for name in reserved for found in folder.glob(name))
        if foreign and not is_ours():
            raise UserError(
                f"{foreign[0]} is there and was not made by {command}, which would replace it: choose another folder, "
                "or move it away"
            )


@contextlib.contextmanager
def _locked(path: Path, command: str) -> Iterator[None]:
    """Hold a lock file, which the block may remove."""
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        with file:
            _lock(file, path, command)
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue  # the process that held it has removed the file
            with writing(path):
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield
            return


def _lock(file: BinaryIO, path: Path, command: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).decode(errors="replace").strip() or "another process"
        raise UserError(
            f"{path.parent} is in use by {command} ({holder}): wait until it has ended, or choose another folder"
        ) from None
    except OSError as error:
        log.warning("%s: this file system has no locks (%s): do not start a second %s there", path, error, command)


def check_publish(folder: Path, names: Collection[str], command: str) -> None:
    """Make sure that :func:`publish` may write these files. Call it before the work.

    Raises:
        UserError: A file exists that the command has not written or that has changed since, or the folder cannot be
            written.
    """
    with held(folder, command):  # tests that it can be written
        record = _read_record(folder, command)
        _check_replaceable(folder, {name: record.get(name, []) for name in names}, command)


def _check_replaceable(folder: Path, hashes: Mapping[str, Collection[str]], command: str) -> None:
    for name, known in hashes.items():
        path = folder / plain_path(name, "the output")
        if path.is_symlink() or (path.exists() and not _is_recorded(path, known)):
            raise UserError(
                f"{path} is there, and {command} has not made it, or it was changed since: nothing was replaced. "
                "Choose another output folder, or move it away"
            )


def publish(
    folder: Path, files: Mapping[str, bytes], command: str, *, last: str = "", keep_others: bool = False
) -> None:
    """Write a set of files into a folder, replacing the set that the same command wrote there before.

    The hidden file `.COMMAND.json` records the name and sha256 of each file before it is written, so that the next call
    recognises its files after a kill at any moment. Other files, and files that have changed since, are not touched.

    Args:
        folder: The folder, which is created.
        files: Name, with slashes for folders below it → content.
        command: Name of the command.
        last: The file that is written last and marks the set as complete.
        keep_others: Keep the files of earlier sets that are not in this one.

    Raises:
        UserError: As :func:`check_publish`, or a file cannot be written.
    """
    with held(folder, command):
        before = _read_record(folder, command)
        new = {name: [hashlib.sha256(content).hexdigest()] for name, content in files.items()}
        # A foreign file with the same bytes is kept and not recorded.
        new = {name: sha for name, sha in new.items() if name in before or not _is_recorded(folder / name, sha)}
        both = {name: sorted({*before.get(name, []), *new.get(name, [])}) for name in {*before, *new}}
        _check_replaceable(folder, {name: both[name] for name in new}, command)
        _write_record(folder, command, both)
        for name in sorted(before.keys() - new.keys()) if not keep_others else ():
            if not (folder / name).is_symlink() and _is_recorded(folder / name, before[name]):
                (folder / name).unlink()
        for name in sorted(new, key=lambda name: (name == last, name)):
            write_file(folder / name, files[name])
        kept = before if keep_others else {}
        _write_record(folder, command, {**kept, **new})


def publish_file(path: Path, content: bytes, command: str) -> None:
    """Write one file, replacing one that the same command wrote; errors as :func:`publish`."""
    publish(path.parent, {path.name: content}, command, keep_others=True)


def _is_recorded(path: Path, hashes: Collection[str]) -> bool:
    return bool(hashes) and path.is_file() and sha256_of(path) in hashes


def _record_path(folder: Path, command: str) -> Path:
    return folder / f".{command}.json"


def _read_record(folder: Path, command: str) -> dict[str, list[str]]:
    path = _record_path(folder, command)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    value = parse_json(text, path)
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict) or not all(isinstance(hashes, list) for hashes in files.values()):
        raise UserError(f"{path} is not the record that {command} keeps of its files: move it away, with those files")
    return {plain_path(name, path): hashes for name, hashes in files.items()}


def _write_record(folder: Path, command: str, files: Mapping[str, list[str]]) -> None:
    write_file(_record_path(folder, command), pretty_json({"files": dict(files)}))
