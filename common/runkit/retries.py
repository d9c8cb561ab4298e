"""Retries of transient errors, as of network file systems and object stores."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from runkit.errors import UserError

log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before the second and each further attempt. Outages of network file systems and stores last seconds, or
minutes, for which the caller has to wait."""

_PASSING = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ENOTCONN,
    errno.EPIPE, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_NAMES = {"ClientConnectionError", "ConnectionError", "IncompleteRead", "ProtocolError", "Timeout", "TimeoutError"}
"""Error classes of the connections of fsspec and requests, which are not imported here."""
_WORDS = re.compile(
    r"HTTP status (408|429|5\d\d)|\b(INTERNAL_FAILURE|NETWORK_CONNECTION|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|SLOW_DOWN"
    r"|THROTTLING|UNAVAILABLE|DEADLINE_EXCEEDED)\b"
)
"""Names of transient errors in messages of Arrow's S3 and Google clients, which have no error number."""
_IN_VAIN = "tried_in_vain"
_FAILING_DISK = 8
"""Number of consecutive files lost to EIO after which there are no retries, because the disk is failing."""


class _Lost:
    """Number of consecutive files for which every attempt of this process ended in EIO."""

    count = 0


_lost_in_a_row = _Lost()


class PassingError(UserError):
    """A read or write of which every attempt failed with a transient error."""


def is_passing(error: BaseException) -> bool:
    """Return whether an error, or a cause of it, is transient."""
    return any(map(_may_pass, _causes(error)))


def is_outage(error: BaseException) -> bool:
    """Return whether an error is a transient one of the whole storage; EIO may be a bad sector of one file."""
    return any(_may_pass(cause) and getattr(cause, "errno", None) != errno.EIO for cause in _causes(error))


def patient(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate an idempotent function: after transient errors it is called again, with growing pauses.

    The error of the last attempt is raised unchanged, and a permanent error at once. Decorated functions may call each
    other; an error that one of them has retried is not retried by another.
    """

    @functools.wraps(work)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for pause_s in (*PAUSES_S, None):
            try:
                answer = work(*args, **kwargs)
            except Exception as error:
                if not is_passing(error) or any(_IN_VAIN in cause.__dict__ for cause in _causes(error)):
                    raise
                lost = not is_outage(error)
                if pause_s is None or (lost and _lost_in_a_row.count >= _FAILING_DISK):
                    error.__dict__[_IN_VAIN] = True
                    _lost_in_a_row.count += lost
                    raise
                log.warning("%s; trying again in %g s", error, pause_s)
            else:
                _lost_in_a_row.count = 0
                return answer
            time.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises

    return tried


def resumed(begin: Callable[[], Iterator[_T]]) -> Iterator[_T]:
    """Yield the items of an iterator; after a transient error it is created again and advanced to the same position.

    Args:
        begin: Returns the iterator, with the same items each time.
    """
    given, items = 0, begin()

    @patient
    def following() -> tuple[_T, ...]:
        nonlocal items
        try:
            return tuple(itertools.islice(items, 1))
        except Exception:
            items = itertools.islice(begin(), given, None)
            raise

    while item := following():
        given += 1
        yield item[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    if _NAMES & {base.__name__ for base in type(error).__mro__}:
        return True
    return isinstance(error, OSError) and bool(_WORDS.search(str(error)))
