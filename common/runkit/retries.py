"""Trying again what fails in passing, as reads and writes on a network's file system or in an object store do."""

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
"""Seconds before the second and each further try: network file systems and stores come back within seconds, or after
minutes, which is for the caller to wait."""

_PASSING = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ENOTCONN,
    errno.EPIPE, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_NAMES = {"ClientConnectionError", "ConnectionError", "IncompleteRead", "ProtocolError", "Timeout", "TimeoutError"}
"""Classes of the errors of fsspec's and requests' connections, which are not imported here."""
_WORDS = re.compile(
    r"HTTP status (408|429|5\d\d)|\b(INTERNAL_FAILURE|NETWORK_CONNECTION|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|SLOW_DOWN"
    r"|THROTTLING|UNAVAILABLE|DEADLINE_EXCEEDED)\b"
)
"""How Arrow's S3 and Google clients name them, whose errors have no number."""
_IN_VAIN = "tried_in_vain"
_FAILING_DISK = 8
"""Files in a row that are lost to EIO until it is tried once only: of a disk that is failing nothing comes back."""


class _Lost:
    """Files in a row that this process has given up, since they gave EIO each time."""

    count = 0


_lost_in_a_row = _Lost()


class PassingError(UserError):
    """A read or write that failed in a way that may pass, each time that it was tried."""


def is_passing(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, may be gone when the same is tried again."""
    return any(map(_may_pass, _causes(error)))


def is_outage(error: BaseException) -> bool:
    """Whether it is one of a storage that is away, and not of one file: a bad sector gives EIO however often."""
    return any(_may_pass(cause) and getattr(cause, "errno", None) != errno.EIO for cause in _causes(error))


def patient(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a function that may be called again: where it fails in passing it is, after growing pauses.

    The error of the last try is raised as it is, and that of a permanent failure at once. Such functions may call each
    other: what one has tried in vain another does not try again.
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
        raise AssertionError  # the last try returns or raises

    return tried


def resumed(begin: Callable[[], Iterator[_T]]) -> Iterator[_T]:
    """The items of an iterator that is begun again, and wound forward to where it was, when it fails in passing.

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
