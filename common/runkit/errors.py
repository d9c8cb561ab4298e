"""The base class of errors that a user can fix, and messages for errors of the system."""

from __future__ import annotations

_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
    "bad allocation", "storage size calculation overflowed",
)  # fmt: skip
"""Messages of the RuntimeErrors that the allocators of torch, CUDA and C++ raise."""


class UserError(ValueError):
    """An error that a user can fix: a file, a setting or an argument.

    The message says what is wrong, which value was found and what to do. A command prints it without a traceback; every
    other exception is a bug.
    """


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether torch, numpy or Python ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def user_message(error: Exception) -> str | None:
    """Return the message to print instead of a traceback; None for a bug.

    A user can fix every error of the file system, of the encoding of a text, and of memory.
    """
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory ({error or 'MemoryError'}): choose smaller sizes or batches, or a larger machine"
    if isinstance(error, UnicodeError):
        return f"a text is not in the encoding that is expected ({error}): save the file as UTF-8"
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename is not None else ""
        return f"{path}{error.strerror or error}; choose another path, or repair this one"
    return None
