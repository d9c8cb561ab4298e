"""Contenders in separate processes."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from runkit.machine import usable_cores


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
        message = str(error).strip().partition("\n")[0].replace("|", "/")
        reply = {"failed": f"{type(error).__name__}: {message:.150}"}
    print(json.dumps(reply), file=file, flush=True)
    return "answer" in reply


def use_all_cores() -> None:
    """Let torch use all cores of this process; its default is the cores of the machine, above a container's quota."""
    import torch

    torch.set_num_threads(usable_cores())


def _as_contender() -> Any:
    """Use all cores of this process, and return its stdout, which libraries cannot print to any more."""
    use_all_cores()
    stdout, sys.stdout = sys.stdout, sys.stderr
    return stdout


def write_answer(work: Callable[[], Any]) -> None:
    """Counterpart of `spawn`: run `work` and print its result as JSON, separated from the output of libraries."""
    _reply(work, _as_contender())


class Server:
    """A contender in a long-running process; its counterpart is `serve`.

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
        timer = threading.Timer(timeout_s, self._process.kill) if timeout_s else None
        if timer is not None:
            timer.start()
        try:
            return self._ask(request)
        finally:
            if timer is not None:
                timer.cancel()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        self.wait_until_ready()
        with contextlib.suppress(BrokenPipeError):  # it died after its last answer
            print(json.dumps(request), file=self._to, flush=True)
        reply = self._from.readline()
        return _answer_in(reply, 0 if reply else self._process.wait())

    def wait_until_ready(self) -> None:
        """Wait until the process is ready or has died, which `ask` reports."""
        if not self._ready:
            self._from.readline()
            self._ready = True

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self.__exit__()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
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
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if not _reply(functools.partial(work, **json.loads(line)), answers) and torch.cuda.is_available():
            torch.cuda.empty_cache()
