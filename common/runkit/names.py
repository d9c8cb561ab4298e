"""Names: checks of those of files and of many keys, and lists of them in messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runkit.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLAIN = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
_MAX_BYTES = 255
"""Longest name that common file systems allow."""


def plain_name(name: object, where: object, error: type[UserError] = UserError) -> str:
    """Return `name` if it is one visible path component that cannot lead out of its folder.

    Args:
        name: A name that was read from a file.
        where: The file, for the message.
        error: Class of the error.

    Raises:
        UserError: It is not a string, is empty, hidden or too long, or has a slash, a backslash or a control character.
    """
    if not isinstance(name, str) or not _PLAIN.fullmatch(name) or len(name.encode()) > _MAX_BYTES:
        raise error(
            f"{where} names {name!r}, which is not a plain file or folder name: nothing was written. The file is "
            "damaged, or was made to reach other files: do not use it"
        )
    return name


def plain_path(name: object, where: object, error: type[UserError] = UserError) -> str:
    """Return `name` if it is a relative path of plain names, joined by slashes; errors as :func:`plain_name`."""
    for part in name.split("/") if isinstance(name, str) else [name]:
        plain_name(part, where, error)
    return str(name)


def repeated_hashes(hashes: NDArray[np.int64]) -> set[int]:
    """Return the values that occur more than once; the array is sorted in place.

    Of the hashes of many keys, which take eight bytes each, these are those of equal keys, and rarely of others.
    """
    hashes.sort()
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return names joined by commas; of more than `most`, the first ones and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
