"""Shared code of the suites: contenders in separate processes, rounds, speed limits of the machine, and reports.

A suite measures all contenders in each round and compares them within a round, so that other load on the machine
affects all of them. Its report is a JSON file that is rewritten after each round. The table in it is a function of its
figures, and all Markdown is generated from this file.
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from codeprior.speed import measured_flops
from codeshards.format import atomic_write
from codeshards.job.session import usable_cores

log = logging.getLogger(__name__)
RESULTS = Path(__file__).parent / "results"
Rounds = list[dict[str, Any]]
"""Figures of a contender in each round; only {"failed": reason} if it failed in the first round."""
Key = TypeVar("Key", bound=Hashable)


class ContenderError(RuntimeError):
    """A contender ended without an answer; the message is one line with the reason."""


class Table(NamedTuple):
    """Table of a report's figures."""

    columns: list[str]
    """Column names; the first column is the contender."""
    rows: list[list[str]]
    """Cells as text."""
    headlines: dict[str, str]
    """Main result → ratio, for the table of all suites."""


def device() -> str:
    """cuda if this machine has a visible GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> str:
    """Description of the hardware: the CPU and, if available, the GPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    # CPUs of one name may differ in vector width, bfloat16 and matrix units.
    units = torch.backends.cpu.get_cpu_capability()
    if torch.cpu._is_amx_tile_supported():
        units += " with AMX"
    elif torch.cpu._is_avx512_bf16_supported():
        units += " with bfloat16"
    gpu = f"{torch.cuda.get_device_name()}; " if device() == "cuda" else ""
    return f"{gpu}{usable_cores()} cores, {found[1] if found else platform.machine()} ({units})"


def synchronize() -> None:
    """Wait for the GPU, if available."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call of `work`, including its work on the GPU."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], Any], warm: int) -> float:
    """Median seconds of a call of `work`, after `warm` untimed calls."""
    for _ in range(warm):
        work()
    return median([seconds(work) for _ in range(10 if device() == "cuda" else 2)])


def peak_gib() -> float:
    """Peak memory of this process: tensors on a GPU, else the resident set."""
    return torch.cuda.max_memory_allocated() / 2**30 if device() == "cuda" else resident_gib()


def resident_gib(key: str = "VmHWM") -> float:
    """Resident set of this process, including mapped files: VmHWM is the peak, VmRSS the current value.

    Without /proc it is ru_maxrss, which on Linux a child inherits from its parent.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


def pin(cores: int) -> None:
    """Restrict this process and its children to its first `cores` cores, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def photos(folder: Path, count: int) -> Path:
    """Write rendered scenes with grain as JPEG files of 500×375 pixels in class folders, and return `folder`."""
    from PIL import Image

    from imagepriors.demo.scenes import CLASS_NAMES, render_scene

    rng = np.random.default_rng(0)
    for index in range(count):
        scene = render_scene(0, index, 250)
        smooth = Image.fromarray(scene.image).resize((500, 375), box=(0, 31, 250, 218.5))
        # Without grain the file is a fifth of a photo's, and is decoded faster.
        pixels = np.asarray(smooth) + rng.normal(0, 9, (375, 500, 1))
        path = folder / CLASS_NAMES[scene.label] / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8)).save(path, quality=92)
    return folder


def autocast(precision: str) -> torch.autocast:
    """Autocast context for a precision on this device."""
    return torch.autocast(device(), dtype=torch.bfloat16, enabled=precision == "bfloat16")


def flops_floor(precision: str) -> float:
    """FLOPs per second of a large matrix product, an upper bound of arithmetic speed."""
    return measured_flops(device(), precision)


def best_floor(founds: Iterable[Rounds]) -> float:
    """The highest `floor` of all processes of a run, in FLOPs or bytes per second.

    Each process measures it for a few milliseconds only, in which the machine may have other load.
    """
    return max((figures["floor"] for found in founds for figures in found if "floor" in figures), default=float("nan"))


def read_floor() -> float:
    """Bytes per second that a large sum reads, an upper bound for reading weights."""
    values = torch.ones(2**30 if device() == "cuda" else 2**27, device=device())
    found = values.nbytes / min(seconds(values.sum) for _ in range(4))
    del values
    if device() == "cuda":
        torch.cuda.empty_cache()  # the contenders' processes need it
    return found


def copy_floor() -> float:
    """Bytes per second, read or written, of a large copy by one thread of numpy."""
    source = np.ones(2**26, dtype=np.uint8)
    target = np.empty_like(source)
    return source.nbytes / min(seconds(lambda: np.copyto(target, source)) for _ in range(4))


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
    """

    def __init__(self, suite: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            _command(suite, *arguments), env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._ready = False

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer.

        Raises:
            ContenderError: the process failed or was killed; its own message is in stderr.
        """
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
    answers = _as_contender()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if not _reply(functools.partial(work, **json.loads(line)), answers) and device() == "cuda":
            torch.cuda.empty_cache()


def run_rounds(
    what: str,
    contenders: Iterable[Key],
    measure: Callable[[Key], dict[str, Any]],
    report: Callable[[dict[Key, Rounds]], str],
    repeats: int,
    rounds_of: Callable[[Key], int] | None = None,
) -> str:
    """Measure all contenders in each round, and report after each round, so that a later failure loses no figures.

    A contender that fails is skipped in later rounds; if it fails in the first, its figures are {"failed": reason}.

    Args:
        what: Label of the progress bar.
        contenders: Contenders, in order.
        measure: Returns the figures of one contender in one round.
        report: Writes the figures of all rounds so far, and returns them as Markdown.
        repeats: Number of rounds.
        rounds_of: Number of rounds of a contender; None: all.

    Returns:
        The last report.
    """
    found: dict[Key, Rounds] = {one: [] for one in contenders}
    dead: set[Key] = set()
    table = ""
    for number in range(repeats):
        taking_part = [one for one in found if rounds_of is None or number < rounds_of(one)]
        for one in tqdm(taking_part, desc=f"{what}, round {number + 1} of {repeats}", disable=None):
            if one in dead:
                continue
            try:
                found[one].append(measure(one))
            except ContenderError as error:
                log.warning("%s, round %d: %s", one, number + 1, error)
                dead.add(one)
                if not found[one]:
                    found[one].append({"failed": str(error)})
        table = report(found)
    return table


def failure(found: Rounds) -> str:
    """`failed: reason` of a contender that failed in the first round, else empty."""
    return f"failed: {found[-1]['failed']}" if found and "failed" in found[-1] else ""


def finished(figures: Mapping[Key, Rounds]) -> dict[Key, Rounds]:
    """Contenders that finished a round."""
    return {one: found for one, found in figures.items() if not failure(found)}


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))


def ratio(over: Sequence[float], values: Sequence[float]) -> str:
    """Median and range of the ratios within rounds, as `1.60 (1.52–1.71)`; of seconds, `over` is the rival's.

    Only rounds that both contenders finished count.
    """
    found = [a / b for a, b in zip(over, values, strict=False)]
    spread = "1 round" if len(found) == 1 else f"{min(found):.3g}–{max(found):.3g}"
    return f"{statistics.median(found):.3g} ({spread})"


def rounds(count: int) -> str:
    """A number of rounds as text."""
    return f"{count} round{'s' * (count != 1)}"


def command(suite: str, repeats: int, data: bool = False) -> str:
    """Command that repeats the measurement of a suite."""
    return f"python -m priorbench {suite} --repeats {repeats} --device {device()}{' --data PHOTOS' * data}"


def save(
    out: Path, name: str, table: Table, *, command: str, text: str, figures: Any, packages: Sequence[str] = ("torch",)
) -> str:
    """Write a report as NAME-DEVICE.json, whole or not at all, and return it as Markdown.

    Args:
        out: Folder for results.
        name: Name of the report, such as `loader`.
        table: A function of `figures` only.
        command: Command that repeats the measurement.
        text: Description of the rows.
        figures: All measurements.
        packages: Packages whose versions are recorded.
    """
    versions = {package: importlib.metadata.version(package) for package in packages}
    report = {
        "machine": machine(), "command": command, "versions": versions, "text": text, **table._asdict(),
        "figures": figures,
    }  # fmt: skip
    with atomic_write(result_path(out, name, ".json")) as file:
        file.write((json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return markdown(report)


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], headlines: Mapping[str, str]) -> Table:
    """A table; short rows, such as those of failed contenders, are padded."""
    return Table(list(columns), [[*row, *[""] * (len(columns) - len(row))] for row in rows], dict(headlines))


def result_path(out: Path, name: str, ending: str) -> Path:
    """Path of NAME-DEVICE.ENDING in `out`."""
    place = torch.cuda.get_device_name() if device() == "cuda" else "cpu"
    suffix = "".join(c if c.isalnum() else "-" for c in place.lower())
    return out / f"{name}-{suffix}{ending}"


def markdown(report: Mapping[str, Any]) -> str:
    """A report as a Markdown table under its text."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = "| " + " | ".join(report["columns"]) + " |"
    lines = [head, "|---" * len(report["columns"]) + "|", *(f"| {' | '.join(row)} |" for row in report["rows"])]
    return f"{report['machine']}; {versions}. {report['text']} `{report['command']}`\n\n" + "\n".join(lines) + "\n"
