"""Run the checks within a budget of time, and write the report after each: `python3 benchmarks/gpu_check.py`.

The checks run in one process, which imports torch and starts the GPU once; this process imports neither. A check that
fails or takes too long ends that process, because an error of CUDA spoils all later work of its process, and a new one
runs the rest.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from priorbench.gpu import packages
from priorbench.gpu.check import FIGURES, PHOTOS, Check, Figure
from priorbench.gpu.plan import CHECKS
from priorbench.gpu.report import Outcome, outcome, save, shown
from priorbench.markdown import markdown
from priorbench.processes import ContenderError, Server
from runkit.errors import UserError, user_message
from runkit.files import write_file

_VERSIONS = ("torch", "triton", "xformers", "transformers", "diffusers", "ray", "numpy", "pyarrow", "pillow")
_PATIENCE = 4
"""A check is ended after this many times its expected seconds, if the budget lasts so long."""
_LEAST_S = 60.0
_PARTLY = 0.5
"""A check of speed begins if this part of its expected time is left: its first figures are the most useful ones."""
_SHOWN = 3
"""Number of figures of a check that are printed; the report has all."""
LOG = "gpu-check.log"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks that the arguments choose; returns the exit code: 0 done, 1 a check failed, 2 bad input."""
    options = _parser().parse_args(argv)
    try:
        chosen = choose(options.only)
        if options.list:
            print("\n".join(f"{one.name:26} {one.kind:8} {one.seconds:4.0f} s  {one.what}" for one in chosen))
            return 0
        if options.packages:
            print(packages.listing(chosen))
            return 0
        return run(chosen, options, shlex.join(["python3", "benchmarks/gpu_check.py", *(argv or sys.argv[1:])]))
    except (UserError, OSError) as error:
        print(f"gpu_check: {user_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"gpu_check: interrupted; {options.out} has the checks that are done", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--budget-s", type=float, default=480, help="seconds for all checks (default: 480)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="run these checks only")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cpu: a rehearsal")
    parser.add_argument("--size", choices=("auto", "full", "tiny"), default="auto", help="auto: tiny on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder of the report")
    parser.add_argument("--list", action="store_true", help="list the checks with their expected times")
    parser.add_argument("--packages", action="store_true", help="list the packages they require, and what is missing")
    return parser


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
    start = time.monotonic()
    lacking = packages.missing(packages.CORE)
    if lacking:
        raise UserError(f"no check can run without {', '.join(lacking)}: --packages says how to bring them")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (options.out / LOG).open("w") as log:
        worker = _Worker(options.device, Path(folder), log)
        try:
            photos = any(check.photos for check in checks)
            session = _Session(worker, options, command, end=start + options.budget_s, photos=photos)
            for check in checks:
                session.take(check)
            return session.finish()
        finally:
            worker.stop()


class _Worker:
    """The process that runs checks; a new one replaces it after a failure."""

    def __init__(self, device: str, work: Path, log: IO[str]) -> None:
        self._device, self._log, self.work = device, log, work
        self._server: Server | None = None
        try:
            self.about: dict[str, str] = self.ask()
        except ContenderError as error:
            raise UserError(f"no check can run here: {error}; {log.name} has the details") from error

    def ask(self, **request: Any) -> Any:
        """Return the answer of the process; it is ended if it fails."""
        if self._server is None:
            env = {"CUDA_VISIBLE_DEVICES": ""} if self._device == "cpu" else {}
            self._server = Server("gpu.worker", self._device, str(self.work), env=env, log=self._log)
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
        return [Figure(*json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


class _Session:
    """One run of the checks: its time, its outcomes and its report."""

    def __init__(self, worker: _Worker, options: argparse.Namespace, command: str, *, end: float, photos: bool) -> None:
        self._worker, self._end = worker, end
        gpu = worker.about["device"] == "cuda"
        self._size = options.size if options.size != "auto" else "full" if gpu else "tiny"
        self._targets = gpu and self._size == "full"
        self._path = options.out / worker.about["report"]
        kind = "" if self._targets else "Rehearsal: the speeds mean nothing. "
        self._head = {
            "machine": worker.about["machine"], "command": command, "versions": packages.versions(_VERSIONS),
            "text": f"{kind}Checks at the size {self._size!r} within {options.budget_s:.0f} s.",
        }  # fmt: skip
        self._outcomes: list[Outcome] = []
        print(self._head["machine"], flush=True)
        self._photos = self._make_photos(worker.work / PHOTOS) if photos else None

    def _make_photos(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start to write the photos that the speed of tokenizing is measured with."""
        command = [sys.executable, "-m", "priorbench.gpu.photos", str(folder), self._size]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def take(self, check: Check) -> None:
        """Run a check, or not, and add its outcome to the report."""
        if check.kind == "speed" and self._photos is not None:
            self._photos.wait()  # nothing is timed while they are written
        left_s, reason = self._end - time.monotonic(), self._reason_to_skip(check)
        if reason:
            found = Outcome(check.name, check.kind, "skipped", 0.0, reason)
        elif left_s <= self._least_s(check):
            reason = f"about {check.seconds:.0f} s, and {max(0.0, left_s):.0f} s were left: --only {check.name} runs it"
            found = Outcome(check.name, check.kind, "left out", 0.0, reason)
        else:
            found = self._run(check, left_s)
        self._outcomes.append(found)
        save(self._path, self._head, self._outcomes)
        self._print(found)

    def _least_s(self, check: Check) -> float:
        """Return the seconds without which a check does not begin; a rehearsal takes less than is expected."""
        if self._size != "full":
            return 0.0
        return check.seconds * (_PARTLY if check.kind == "speed" else 1.0)

    def _reason_to_skip(self, check: Check) -> str:
        lacking = packages.missing(check.needs)
        if lacking:
            return f"{', '.join(lacking)} not installed"
        return "requires a GPU" if check.gpu and self._worker.about["device"] != "cuda" else ""

    def _run(self, check: Check, left_s: float) -> Outcome:
        start, failed, skipped = time.monotonic(), "", ""
        patience_s = max(_LEAST_S, _PATIENCE * check.seconds)
        (self._worker.work / FIGURES).unlink(missing_ok=True)
        try:
            answer = self._worker.ask(
                check=(check.module, check.name), size=self._size, timeout_s=min(left_s, patience_s)
            )
            skipped = answer.get("skipped", "")
        except ContenderError as error:
            failed = str(error)
        seconds = time.monotonic() - start
        if failed and seconds >= left_s:
            return Outcome(
                check.name, check.kind, "left out", round(seconds, 1), "the budget ended", self._worker.figures()
            )
        if failed and seconds >= patience_s:
            failed = f"no end after {seconds:.0f} s"
        return outcome(check, seconds, self._worker.figures(), targets=self._targets, failed=failed, skipped=skipped)

    def _print(self, found: Outcome) -> None:
        notable = [
            figure for figure in found.figures if not figure.within and (self._targets or found.kind == "correct")
        ]
        notable += [figure for figure in found.figures if figure not in notable][: max(0, _SHOWN - len(notable))]
        texts = [found.reason] * bool(found.reason) + [f"{figure.what}: {shown(figure)}" for figure in notable]
        more = len(found.figures) - len(notable)
        texts += [f"{more} more"] * (more > 0)
        print(f"{found.status:12} {found.name:24} {found.seconds:5.1f} s  {'; '.join(texts)}", flush=True)

    def finish(self) -> int:
        """Write the table, say where it is, and return the exit code: 1 if a check failed."""
        if self._photos is not None:
            self._photos.wait()
        report = save(self._path, self._head, self._outcomes)
        table = self._path.with_suffix(".md")
        write_file(table, markdown(report).encode())
        counts = Counter(one.status for one in self._outcomes)
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
        print(f"{table} has the table, {self._path} the figures, {self._path.with_name(LOG)} the log")
        return 1 if counts["failed"] else 0
