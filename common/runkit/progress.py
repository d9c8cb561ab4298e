"""Progress bars in terminals and notebooks; there are none where output goes to a file."""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import tqdm as _library

_hidden = ContextVar("hidden", default=False)


class tqdm(_library.tqdm):  # type: ignore[misc]  # noqa: N801 - used in place of the class of this name
    """tqdm's text bar, of which `disable=None` means: show it in a terminal or a notebook."""

    def __init__(self, *args: Any, disable: bool | None = None, **kwargs: Any) -> None:
        if disable is None and (_hidden.get() or in_notebook()):
            disable = _hidden.get()
        super().__init__(*args, disable=disable, **kwargs)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show no progress bar of the block, because one around it shows the progress of the whole work."""
    before = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(before)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose output is no terminal but is seen by a person."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
