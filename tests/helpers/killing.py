"""Kill a process at the n-th operation on the files of a folder, whatever code makes it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")


def _watched(folder: str, at: int, found: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in _CHANGES) or not isinstance(details[0], str | os.PathLike):
            return
        if str(details[0]).startswith(folder):
            found.value += 1
            if found.value == at:  # the operation is about to be made
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(*arguments)


def killed_at(at: int, folder: Path, preload: str, work: Callable[..., Any], *arguments: Any) -> int:
    """Run `work` in a process that kills itself before the `at`-th operation on files in `folder`, 0: never.

    Returns:
        Operations that were counted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload, "torch.utils.tensorboard"])
    found = context.Value("i", 0)
    process = context.Process(target=_watched, args=(str(folder), at, found, work, arguments))
    process.start()
    process.join(120)
    assert process.exitcode == (-signal.SIGKILL if 0 < at == found.value else 0)
    return int(found.value)
