"""Progress bars in terminals and notebooks; there are none where output goes to a file."""

import sys
from typing import Any

import tqdm as _library


class tqdm(_library.tqdm):  # type: ignore[misc]  # noqa: N801 - used in place of the class of this name
    """tqdm's text bar, of which `disable=None` means: show it in a terminal or a notebook."""

    def __init__(self, *args: Any, disable: bool | None = None, **kwargs: Any) -> None:
        super().__init__(*args, disable=False if disable is None and in_notebook() else disable, **kwargs)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose output is no terminal but is seen by a person."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
