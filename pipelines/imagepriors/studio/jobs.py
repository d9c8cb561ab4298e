"""The queue of the page: one job at a time, in the order of the requests; each can be stopped, also while it waits."""

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runkit.errors import UserError, user_message

log = logging.getLogger(__name__)
Event = dict[str, Any]
Report = Callable[..., None]
"""Called in a job with the number of steps that are done and that there are, and further values of the event."""
Job = Callable[[Report], Event]
"""Does the work, reports its progress, and returns the values of the last event."""
MAX_WAITING = 16
"""Jobs that may wait; more are refused."""
_WAITING_S = 0.5
"""Seconds between events while a job waits."""
_LONGEST = 400
"""Characters of a message; a value in it may be a whole request."""
_ABSOLUTE = re.compile(r"(?<![\w:/.~-])/(?:[^\s/'\",:;()\[\]]+/)+([^\s/'\",:;()\[\]]*)")
"""An absolute path, and its last part."""
_NO_PLACES: Mapping[str, str] = MappingProxyType({})


def use_set_threads() -> None:
    """Compute in this thread with the number of threads that torch was last set to in this process.

    A thread keeps the number with which it began, and sums over another number round differently: codes of this thread
    could differ from those of the command line.
    """
    import torch

    with ThreadPoolExecutor(1) as new:  # a new thread has this number
        threads = new.submit(torch.get_num_threads).result()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class StoppedJobError(Exception):
    """Raised in a job by its report when the person has stopped it or left."""


class BusyError(UserError):
    """Too many jobs wait."""


class JobQueue:
    """Runs jobs one after the other in a thread, so that all cores work for one at a time.

    Args:
        places: Absolute path → name on the page, for messages.
    """

    def __init__(self, places: Mapping[str, str] = _NO_PLACES) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job")
        self._unfinished: dict[Future[None], Callable[[], None]] = {}
        self._places = places
        self._is_closed = False

    async def stream(self, job: Job) -> AsyncIterator[Event]:
        """Run a job in its turn, and yield its events; ending the iteration stops the job.

        Yields:
            ``{"state": "waiting", "ahead": …}`` while other jobs run; ``{"state": "running", "done": …, "total": …,
            "left_s": …}`` with what the job reports; and last ``{"state": "done"}`` with the job's values and its
            ``seconds``, or ``{"state": "failed", "error": …}``.

        Raises:
            BusyError: Too many jobs wait, or the queue is closed.
        """
        if self._is_closed:
            raise BusyError("the studio is ending: start it again in the terminal")
        if len(self._unfinished) > MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} jobs wait already: try again in a minute")
        loop, events, stop = asyncio.get_running_loop(), asyncio.Queue[Event | None](), threading.Event()

        def send(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        def end() -> None:
            stop.set()
            running.cancel()
            send(None)

        running = self._thread.submit(self._run, job, send, stop)
        self._unfinished[running] = end
        running.add_done_callback(self._unfinished.pop)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), _WAITING_S)
                except TimeoutError:
                    if running in (before := list(self._unfinished)) and not running.running():
                        yield {"state": "waiting", "ahead": before.index(running)}
                    continue
                if event is None:
                    return
                yield event
        finally:
            end()

    def close(self) -> None:
        """Stop all jobs, and refuse new ones; may be called from any thread and from a handler of signals."""
        self._is_closed = True
        for end in list(self._unfinished.values()):
            end()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job, send: Callable[[Event | None], None], stop: threading.Event) -> None:
        started = time.monotonic()
        begun: list[tuple[float, int]] = []

        def report(done: int, total: int, **values: Any) -> None:
            if stop.is_set():
                raise StoppedJobError
            now = time.monotonic()
            begun.extend([(now, done)] if done and not begun else [])  # loading the networks is before it
            measured = bool(begun) and done > begun[0][1]
            left_s = (now - begun[0][0]) / (done - begun[0][1]) * (total - done) if measured else None
            send({"state": "running", "done": done, "total": total, "left_s": left_s, **values})

        try:
            report(0, 1)
            use_set_threads()
            send({"state": "done", **job(report), "seconds": time.monotonic() - started})
        except StoppedJobError:
            pass
        except Exception as error:  # noqa: BLE001 - a bug is logged, and the page continues
            send({"state": "failed", "error": message_of(error, self._places)})
        finally:
            send(None)


def message_of(error: Exception, places: Mapping[str, str] = _NO_PLACES) -> str:
    """Return the message of an error for the page; the error of a bug is logged, and the message only says so.

    Args:
        error: The error.
        places: Absolute path → name on the page. Of other absolute paths only the last part remains, because the
            person may be on another machine.
    """
    message = user_message(error)
    if message is None:
        log.error("a request failed", exc_info=error)
        return "this failed because of a fault in the program; the terminal of the studio shows which"
    return plain(message, places)


def folders_above(paths: Iterable[str]) -> dict[str, str]:
    """Return what messages have in place of folders whose names have spaces or brackets, where a path seems to end.

    Args:
        paths: Absolute paths.

    Returns:
        Such a path, or folder above it → its last part; with a slash at the end → nothing.
    """
    folders = {folder for path in map(Path, paths) for folder in (path, *path.parents) if folder.is_absolute()}
    ended = [folder for folder in folders if folder.name and not _ABSOLUTE.fullmatch(f"{folder}/x")]
    return {f"{folder}/": "" for folder in ended} | {str(folder): folder.name for folder in ended}


def plain(message: str, places: Mapping[str, str] = _NO_PLACES) -> str:
    """Return a message without the folders of this machine, short, and in characters that can be sent."""
    for path in sorted(places, key=len, reverse=True):
        message = message.replace(path, places[path])
    message = _ABSOLUTE.sub(r"\1", message)
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
    return message.encode("utf-8", "backslashreplace").decode()
