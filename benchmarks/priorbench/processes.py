"""Contenders in separate processes."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from runkit.machine import usable_cores

_READY = "ready\n"


class ContenderError(RuntimeError):
    """A contender ended without an answer; the message is one line with the reason."""


def _command(suite: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{suite}", *arguments]


def spawn(suite: str, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
    """Run `python -m priorbench.SUITE ARGUMENTS…` in a separate process and return its answer.

    Raises:
        ContenderError: the process failed or was killed; its own message is in stderr.
    """
    done = subprocess.run(_command(suite, *arguments), env={**os.environ, **(env or {})}, stdout=subprocess.PIPE)
    return _answer_in(done.stdout, done.returncode)


def _answer_in(reply: str | bytes, code: int) -> Any:
    found = json.loads(reply) if reply else {"failed": f"killed by signal {-code}" if code < 0 else f"exit code {code}"}
    if "failed" in found:
        raise ContenderError(found["failed"])
    return found["answer"]


def _reply(work: Callable[[], Any], file: Any) -> bool:
    """Print the result of `work` or the reason of its failure as a line of JSON; return whether it succeeded."""
    try:
        reply = {"answer": work()}
    except Exception as error:  # noqa: BLE001 an error of a rival must not stop the others
        traceback.print_exc()
        message = str(error).strip().partition("\n")[0]
        reply = {"failed": f"{type(error).__name__}: {message:.150}"}
    print(json.dumps(reply), file=file, flush=True)
    return "answer" in reply


def use_all_cores() -> None:
    """Let torch use all cores of this process; its default is the cores of the machine, above a container's quota."""
    import torch

    torch.set_num_threads(usable_cores())


def _as_contender() -> Any:
    """Use all cores of this process, and return its stdout; what libraries and child processes print is in stderr."""
    use_all_cores()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def write_answer(work: Callable[[], Any]) -> None:
    """Counterpart of `spawn`: run `work` and print its result as JSON, separated from the output of libraries."""
    _reply(work, _as_contender())


def kill_all(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session, and the processes that it has started in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Server:
    """A contender in a long-running process, which leads a session; its counterpart is `serve`.

    Args:
        suite: Module of this package.
        arguments: Command line.
        env: Additional environment variables.
        log: File for what it prints and for its tracebacks; None: stderr.
    """

    def __init__(
        self, suite: str, *arguments: str, env: Mapping[str, str] | None = None, log: IO[str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            _command(suite, *arguments), env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._ready = False

    def ask(self, *, timeout_s: float = 0.0, **request: Any) -> Any:
        """Send a request and return the answer.

        Args:
            timeout_s: Seconds after which the process is killed; 0: never.
            request: Arguments of its `work`.

        Raises:
            ContenderError: the process failed or was killed; its own message is in stderr.
        """
        if not timeout_s:
            return self._ask(request)
        timer, start = threading.Timer(timeout_s, kill_all, (self._process,)), time.monotonic()
        timer.start()
        try:
            return self._ask(request)
        except ContenderError:
            if time.monotonic() - start >= timeout_s:
                raise ContenderError(f"no answer within {timeout_s:.0f} s") from None
            raise
        finally:
            timer.cancel()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        self.wait_until_ready()
        with contextlib.suppress(BrokenPipeError):  # it died after its last answer
            print(json.dumps(request), file=self._to, flush=True)
        reply = self._from.readline()
        return _answer_in(reply, 0 if reply else self._process.wait())

    def wait_until_ready(self) -> None:
        """Wait until the process is ready or has died, which `ask` reports."""
        while not self._ready:
            self._ready = self._from.readline() in (_READY, "")  # libraries may print while they are imported

    def kill(self) -> None:
        """End the process at once, with those that it has started."""
        kill_all(self._process)
        self.__exit__()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        if kind is not None:
            kill_all(self._process)
        with contextlib.suppress(BrokenPipeError):
            self._to.close()  # end of input stops the process
        self._process.wait()
        self._from.close()


def serve(work: Callable[..., Any]) -> None:
    """Counterpart of `Server`: answer each request with `work(**request)` until the end of input.

    A request that fails, for example because memory is short, does not affect later ones.
    """
    import torch

    answers = _as_contender()
    print(_READY, end="", file=answers, flush=True)
    for line in sys.stdin:
        if not _reply(functools.partial(work, **json.loads(line)), answers) and torch.cuda.is_available():
            torch.cuda.empty_cache()
