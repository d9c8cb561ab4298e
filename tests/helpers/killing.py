"""Kill a process, or fill its disk, at the n-th operation on the files of a folder."""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")
_PRELOAD = (
    "vqgan.train",
    "codeprior.train",
    "imagepriors.cli",
    "imagepriors.decode.samples",
    "torch.utils.tensorboard",
)
_NEEDS_SPACE = ("os.rename", "os.mkdir", "os.link")
_open, _fsync = io.open, os.fsync


def _on_change(work: Callable[[str], None], changes: tuple[str, ...]) -> None:
    """Call `work` with the path before a file is opened for writing, and before any of these changes."""

    def hook(event: str, details: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in changes) and isinstance(details[0], str | os.PathLike):
            work(str(details[0]))

    sys.addaudithook(hook)


def _watched(folder: str, at: int, found: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)

    def count(path: str) -> None:
        if path.startswith(folder):
            found.value += 1
            if found.value == at:  # before the operation is made
                os.kill(os.getpid(), signal.SIGKILL)

    _on_change(count, _CHANGES)
    work(*arguments)


class _Disk:
    """A disk that is full from the `at`-th operation on files of a folder, or only at that one."""

    def __init__(self, folder: str, at: int, persistent: bool, found: Any) -> None:
        self.folder, self.at, self.persistent, self.found = folder, at, persistent, found
        self.lock = threading.Lock()

    def use(self, path: str) -> None:
        """Count an operation that needs space.

        Raises:
            OSError: The disk is full, or at every second operation the quota is exceeded.
        """
        if not path.startswith(self.folder):
            return
        with self.lock:
            self.found.value += 1
            now = self.found.value
        if 0 < self.at == now or (self.persistent and 0 < self.at <= now):
            number = (errno.ENOSPC, errno.EDQUOT)[self.at % 2]
            raise OSError(number, os.strerror(number), path)


def _file_class(disk: _Disk) -> type[io.FileIO]:
    class File(io.FileIO):
        """A file on that disk; the write that fills the disk is cut in half."""

        path, wrote, full = "", False, None

        def write(self, content: Any) -> int | None:
            if self.full is not None:
                error, self.full = self.full, None
                raise error
            try:
                disk.use(self.path)
            except OSError as error:
                error.filename = None  # as write(2) has it
                half = memoryview(content).cast("B")[: len(content) // 2]
                if not half:
                    raise
                self.full = error
                return super().write(half)
            self.wrote = True
            return super().write(content)

        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open and self.wrote:  # network file systems and quotas
                try:
                    disk.use(self.path)
                except OSError as error:
                    error.filename = None
                    raise

    return File


def _fill(
    folder: str, at: int, persistent: bool, found: Any, argv: list[str], log: str, setting: dict[str, str]
) -> None:
    import torch

    from imagepriors.cli import main

    torch.set_num_threads(1)
    os.environ.update(setting)
    with _open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    disk = _Disk(folder, at, persistent, found)
    file_class = _file_class(disk)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa+") or not str(file).startswith(folder):
            return _open(file, mode, buffering, *rest, **options)
        raw = file_class(file, mode.replace("b", "").replace("t", ""))
        raw.path = str(file)  # type: ignore[attr-defined]
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, options.get("encoding"), line_buffering=buffering == 1)

    def fsync(descriptor: int) -> None:
        try:
            disk.use(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        except OSError as error:
            error.filename = None  # as fsync(2) has it
            raise
        _fsync(descriptor)

    io.open = builtins.open = opened  # type: ignore[assignment]
    os.fsync = fsync
    _on_change(disk.use, _NEEDS_SPACE)
    sys.exit(main(argv))


def _run(target: Callable[..., Any], *arguments: Any) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _counter() -> Any:
    return multiprocessing.get_context("forkserver").Value("i", 0)


def killed_at(at: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> int:
    """Run `work` in a process that kills itself before the `at`-th operation on files in `folder`, 0: never.

    Returns:
        Number of operations.
    """
    found = _counter()
    code = _run(_watched, str(folder), at, found, work, arguments)
    assert code == (-signal.SIGKILL if 0 < at == found.value else 0)
    return int(found.value)


class Ended(NamedTuple):
    """Result of a command."""

    code: int
    """Exit code."""
    said: str
    """Output on both streams."""
    operations: int
    """Number of operations that require space."""


def full_disk_at(at: int, folder: Path, persistent: bool, argv: Sequence[str], **setting: str) -> Ended:
    """Run a command line in a process whose disk is full at the `at`-th operation on files in `folder`, 0: never.

    Operations are: opening a file for writing, a write, a flush to the disk, closing a written file, a new folder, and
    a new name. Deleting requires no space.

    Args:
        at: Index of the operation, from 1.
        folder: The folder.
        persistent: Whether the disk stays full, else only that operation fails.
        argv: Arguments of the command line.
        setting: Environment variables.
    """
    found, log = _counter(), folder.with_name(f"{folder.name}.log")
    code = _run(_fill, str(folder), at, persistent, found, list(argv), str(log), setting)
    return Ended(code, log.read_text(), int(found.value))
