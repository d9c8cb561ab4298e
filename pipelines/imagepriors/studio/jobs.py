"""The queue of the page: one job at a time, in the order of the requests; each can be stopped, also while it waits."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
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


class StoppedJobError(Exception):
    """Raised in a job by its report when the person has stopped it or left."""


class BusyError(UserError):
    """Too many jobs wait."""


class JobQueue:
    """Runs jobs one after the other in a thread, so that all cores work for one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job")
        self._unfinished: list[Future[None]] = []

    async def stream(self, job: Job) -> AsyncIterator[Event]:
        """Run a job in its turn, and yield its events; ending the iteration stops the job.

        Yields:
            ``{"state": "waiting", "ahead": …}`` while other jobs run; ``{"state": "running", "done": …, "total": …,
            "left_s": …}`` with what the job reports; and last ``{"state": "done"}`` with the job's values and its
            ``seconds``, or ``{"state": "failed", "error": …}``.

        Raises:
            BusyError: Too many jobs wait.
        """
        if len(self._unfinished) > MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} drawings wait already: try again in a minute")
        loop, events, stop = asyncio.get_running_loop(), asyncio.Queue[Event | None](), threading.Event()

        def send(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        running = self._thread.submit(_run, job, send, stop)
        self._unfinished.append(running)
        running.add_done_callback(self._unfinished.remove)
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
            stop.set()
            running.cancel()


def _run(job: Job, send: Callable[[Event | None], None], stop: threading.Event) -> None:
    started = time.monotonic()
    begun: list[tuple[float, int]] = []

    def report(done: int, total: int, **values: Any) -> None:
        if stop.is_set():
            raise StoppedJobError
        now = time.monotonic()
        begun.extend([(now, done)] if done and not begun else [])  # loading the networks is before it
        left_s = (now - begun[0][0]) / (done - begun[0][1]) * (total - done) if begun and done > begun[0][1] else None
        send({"state": "running", "done": done, "total": total, "left_s": left_s, **values})

    try:
        report(0, 1)
        send({"state": "done", **job(report), "seconds": time.monotonic() - started})
    except StoppedJobError:
        pass
    except Exception as error:  # noqa: BLE001 - a bug is logged, and the page continues
        send({"state": "failed", "error": message_of(error)})
    finally:
        send(None)


def message_of(error: Exception) -> str:
    """Return what a person is told about an error; that of a bug is in the log only."""
    message = user_message(error)
    if message is None:
        log.error("a request failed", exc_info=error)
        return "this failed because of a fault in the program; the terminal of the studio shows which"
    return message
