"""Run the checks within a budget of time, and write the report after each: `python3 benchmarks/gpu_check.py`.

The checks run in one process, which imports torch and starts the GPU once; this process imports neither. A check that
fails or takes too long ends that process, because an error of CUDA spoils all later work of its process, and a new one
runs the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from priorbench.gpu import packages
from priorbench.gpu.check import FIGURES, PHOTOS, Check, Figure
from priorbench.gpu.plan import CHECKS
from priorbench.gpu.report import Outcome, Status, outcome, save, shown
from priorbench.processes import ContenderError, Server, kill_all
from runkit.errors import UserError, user_message
from runkit.folders import held
from runkit.signals import StoppedError

_VERSIONS = ("torch", "triton", "xformers", "transformers", "diffusers", "ray", "numpy", "pyarrow", "pillow")
_PATIENCE, _LEAST_PATIENCE_S = 4, 60.0
"""A check is ended after this many times its expected seconds, but not before the least number of seconds."""
_PARTLY = 0.5
"""A check of speed begins if this part of its expected time is left: its first figures are the most useful ones."""
_START_S = 180.0
"""Seconds in which a process has imported torch, also from a slow disk, and has found the GPU."""
_SHOWN = 3
"""Number of figures of a check that are printed; the report has all."""
LOG = "gpu-check.log"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks that the arguments choose; returns the exit code: 0 done, 1 a check failed, 2 bad input.

    After a signal it is 128 plus the number of the signal.
    """
    options = _parser().parse_args(argv)
    try:
        chosen = choose(options.only)
        if options.list:
            print("\n".join(f"{one.name:26} {one.kind:8} {one.seconds:4.0f} s  {one.what}" for one in chosen))
            print(f"{sum(one.seconds for one in chosen):40.0f} s  in all, on an H100 or H200", flush=True)
            return 0
        if options.packages:
            print(packages.listing(chosen), flush=True)
            return 0
        return run(chosen, options, shlex.join(["python3", "benchmarks/gpu_check.py", *(argv or sys.argv[1:])]))
    except BrokenPipeError:  # the reader of this output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (UserError, OSError) as error:
        print(f"gpu_check: {user_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"gpu_check: stopped; {options.out} has the checks that are done", file=sys.stderr)
        return error.exit_code if isinstance(error, StoppedError) else 130


def _stop(number: int, _: object) -> NoReturn:
    raise StoppedError(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--budget-s", type=_seconds, default=480, help="seconds for all checks (default: 480)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="run these checks only")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cpu: a rehearsal")
    parser.add_argument("--size", choices=("auto", "full", "tiny"), default="auto", help="auto: tiny on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder of the report")
    parser.add_argument("--list", action="store_true", help="list the checks with their expected times")
    parser.add_argument("--packages", action="store_true", help="list the packages they require, and what is missing")
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) > 0:  # a NaN is not
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no time: choose a number of seconds above 0")


def choose(names: Sequence[str]) -> list[Check]:
    """Return the checks with these names in the order of the plan; none: all.

    Raises:
        UserError: A name is unknown.
    """
    unknown = sorted(set(names) - {check.name for check in CHECKS})
    if unknown:
        raise UserError(f"unknown check {', '.join(unknown)}: --list lists the checks")
    return [check for check in CHECKS if not names or check.name in names]


def run(checks: Sequence[Check], options: argparse.Namespace, command: str) -> int:
    """Run checks and write the report; returns the exit code.

    Raises:
        UserError: No check can run on this machine.
    """
    end = time.monotonic() + options.budget_s
    lacking = packages.missing(packages.CORE)
    if lacking:
        raise UserError(f"no check can run without {', '.join(lacking)}: --packages says how to bring them")
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the connection to the machine is lost
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                stack.callback(signal.signal, number, signal.signal(number, _stop))
        stack.enter_context(held(options.out, "gpu-check"))
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        log = stack.enter_context((options.out / LOG).open("w"))
        worker = _Worker(options.device, Path(folder), log)
        stack.callback(worker.stop)
        try:
            worker.start()
        except ContenderError as error:
            raise UserError(f"no check can run here: {error}; {log.name} has the details") from error
        session = _Session(worker, options, command, end)
        if any(check.photos for check in checks):
            stack.callback(kill_all, session.make_photos(log))
        for check in checks:
            session.take(check)
        return session.finish()


class _Worker:
    """The process that runs checks; a new one replaces it after a failure."""

    def __init__(self, device: str, work: Path, log: IO[str]) -> None:
        self._device, self._log, self.work = device, log, work
        self._server: Server | None = None
        self.about: dict[str, str] = {}
        """What the report says about the machine, after the first start."""

    def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
            ContenderError: It cannot start, or finds no GPU where one is asked for.
        """
        if self._server is None:
            env = {"CUDA_VISIBLE_DEVICES": ""} if self._device == "cpu" else {}
            self._server = Server("gpu.worker", self._device, str(self.work), env=env, log=self._log)
            self.about = self.ask(timeout_s=_START_S)

    def ask(self, **request: Any) -> Any:
        """Return the answer of the process; it is ended if it fails."""
        assert self._server is not None
        try:
            return self._server.ask(**request)
        except ContenderError:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def figures(self) -> list[Figure]:
        """Return the figures that the current check has found."""
        path = self.work / FIGURES
        # The last line may be incomplete.
        return [Figure(*json.loads(line)) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


class _Session:
    """One run of the checks: its time, its outcomes and its report."""

    def __init__(self, worker: _Worker, options: argparse.Namespace, command: str, end: float) -> None:
        self._worker, self._end, about = worker, end, worker.about
        gpu = about["device"] == "cuda"
        self._size = options.size if options.size != "auto" else "full" if gpu else "tiny"
        self._targets = gpu and self._size == "full"
        self._path = options.out / about["report"]
        kind = "" if self._targets else "Rehearsal: the speeds mean nothing. "
        self._head = {
            "machine": about["machine"], "command": command, "versions": packages.versions(_VERSIONS),
            "text": f"{kind}Checks at the size {self._size!r} within {options.budget_s:.0f} s.",
        }  # fmt: skip
        self._outcomes: list[Outcome] = []
        self._photos: subprocess.Popen[bytes] | None = None
        print(f"{about['machine']}. {self._head['text']}", flush=True)

    def make_photos(self, log: IO[str]) -> subprocess.Popen[bytes]:
        """Start to write the photos that the speed of tokenizing is measured with, and return the process."""
        command = [sys.executable, "-m", "priorbench.gpu.photos", str(self._worker.work / PHOTOS), self._size]
        self._photos = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self._photos

    def take(self, check: Check) -> None:
        """Run a check, or not, and add its outcome to the report."""
        if check.kind == "speed":
            self._wait_for_photos()
        reason, left_s = self._reason_to_skip(check), max(0.0, self._end - time.monotonic())
        if reason:
            found = Outcome(check.name, check.kind, "skipped", 0.0, reason)
        elif left_s <= self._required_s(check):
            reason = f"about {check.seconds:.0f} s, and {left_s:.0f} s were left: --only {check.name} runs it"
            found = Outcome(check.name, check.kind, "left out", 0.0, reason)
        else:
            found = self._run(check)
        self._outcomes.append(found)
        save(self._path, self._head, self._outcomes)
        self._print(found)

    def _required_s(self, check: Check) -> float:
        """Return the seconds without which a check does not begin; a rehearsal takes less than is expected."""
        if self._size != "full":
            return 0.0
        return check.seconds * (_PARTLY if check.kind == "speed" else 1.0)

    def _reason_to_skip(self, check: Check) -> str:
        lacking = packages.missing(check.needs)
        if lacking:
            return f"{', '.join(lacking)} not installed"
        if check.gpu and self._worker.about["device"] != "cuda":
            return "requires a GPU"
        if check.photos and self._photos is not None and self._photos.returncode:
            return f"the photos could not be written: {LOG} has the details"
        return ""

    def _wait_for_photos(self) -> None:
        """Wait until the photos are written, because nothing is timed meanwhile, or until the budget ends."""
        if self._photos is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._photos.wait(max(0.0, self._end - time.monotonic()))

    def _run(self, check: Check) -> Outcome:
        ended: tuple[Status, str] | None = None
        (self._worker.work / FIGURES).unlink(missing_ok=True)
        start = time.monotonic()
        try:
            self._worker.start()
            start = time.monotonic()  # a start after a failure is not a part of this check
            left_s = max(0.1, self._end - start)
            patience_s = max(_LEAST_PATIENCE_S, _PATIENCE * check.seconds)
            answer = self._worker.ask(
                check=(check.module, check.name), size=self._size, timeout_s=min(left_s, patience_s)
            )
            if "skipped" in answer:
                ended = "skipped", answer["skipped"]
        except ContenderError as error:
            ended = ("left out", "the budget ended") if time.monotonic() >= self._end else ("failed", str(error))
        seconds = time.monotonic() - start
        return outcome(check, seconds, self._worker.figures(), targets=self._targets, ended=ended)

    def _print(self, found: Outcome) -> None:
        judged = self._targets or found.kind == "correct"
        notable = [figure for figure in found.figures if judged and not figure.within]
        notable += [figure for figure in found.figures if figure not in notable][: max(0, _SHOWN - len(notable))]
        texts = [found.reason] * bool(found.reason) + [f"{figure.what}: {shown(figure)}" for figure in notable]
        more = len(found.figures) - len(notable)
        texts += [f"{more} more"] * (more > 0)
        print(f"{found.status:12} {found.name:24} {found.seconds:5.1f} s  {'; '.join(texts)}", flush=True)

    def finish(self) -> int:
        """Say where the report is, and return the exit code: 1 if a check failed."""
        counts = Counter(one.status for one in self._outcomes)
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
        table = self._path.with_suffix(".md")
        print(f"{table} has the table, {self._path} the figures, {self._path.with_name(LOG)} the log")
        return 1 if counts["failed"] else 0
