"""The base of all errors that a person can mend, and the words for those that the system raises."""

from __future__ import annotations

_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
    "bad allocation", "storage size calculation overflowed",
)  # fmt: skip
"""How the allocators of torch, CUDA and C++ say it, which raise RuntimeError."""


class UserError(ValueError):
    """Something that a person can mend: a file, a setting or an argument.

    The message says what is wrong, which value was found and what to do. The CLI prints it alone and exits with code 2;
    every other exception is a bug and keeps its traceback.
    """


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether torch, numpy or Python had no memory left."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def user_message(error: Exception) -> str | None:
    """What to print in place of a traceback; None for a bug, which keeps it.

    Every error of the file system, of text that is not UTF-8, and of memory is one that a person can mend.
    """
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory ({error or 'MemoryError'}): choose smaller sizes or batches, or a larger machine"
    if isinstance(error, UnicodeError):
        return f"a text is not in the encoding that is expected ({error}): write the file anew as UTF-8"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}; choose another path, or mend the place"
    return None
