"""What the suites share: contenders in processes of their own, rounds in turn, floors, and one form of results.

A suite measures all contenders in every round and compares within a round, so that what else the machine does falls on
all alike. Its report is a JSON file, written anew after each round; the table in it is a function of its figures, and
Markdown, here and in README, is made of that file and never typed.
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
Found = list[dict[str, Any]]
"""What a contender's rounds gave, figure by figure; {"failed": reason} alone where it died in its first."""
Key = TypeVar("Key", bound=Hashable)


class ContenderError(RuntimeError):
    """A contender ended without an answer; the message says why, in a line."""


class Table(NamedTuple):
    """What is told of a report's figures."""

    columns: list[str]
    """Heads; the first is the contender's."""
    rows: list[list[str]]
    """Cells as text, as many in each row as there are columns."""
    headlines: dict[str, str]
    """What a reader should take away → ratio, for the table of all suites."""


def device() -> str:
    """cuda where this machine has a GPU (and CUDA_VISIBLE_DEVICES shows it), else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> str:
    """The hardware that is measured, in words: a GPU beside its CPU, which is all that some suites use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    # The same name may hide units twice as wide, bfloat16, or matrix units: the instructions tell.
    units = torch.backends.cpu.get_cpu_capability()
    if torch.cpu._is_amx_tile_supported():
        units += " with AMX"
    elif torch.cpu._is_avx512_bf16_supported():
        units += " with bfloat16"
    gpu = f"{torch.cuda.get_device_name()}; " if device() == "cuda" else ""
    return f"{gpu}{usable_cores()} cores, {found[1] if found else platform.machine()} ({units})"


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call of `work`, the GPU's part included."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def steady(work: Callable[[], Any], warm: int) -> float:
    """Median seconds of a call of `work`, after `warm` calls that are not counted."""
    for _ in range(warm):
        work()
    return median([seconds(work) for _ in range(10 if device() == "cuda" else 2)])


def peak_gib() -> float:
    """The most memory that this process has held: on a GPU its tensors, else the resident set."""
    return torch.cuda.max_memory_allocated() / 2**30 if device() == "cuda" else resident_gib()


def resident_gib(key: str = "VmHWM") -> float:
    """The resident set of this process, mapped files included: VmHWM at its highest, VmRSS now.

    Linux starts a child's ru_maxrss with what its parent had, so that is asked only where there is no /proc.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


def pin(cores: int) -> None:
    """Keep this process, and those that it starts, on the first so many of its cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def photos(folder: Path, count: int) -> Path:
    """Rendered scenes as JPEG files of a photo's size, 500×375, with its grain, in class folders; returns `folder`."""
    from PIL import Image

    from imagepriors.demo.scenes import CLASS_NAMES, render_scene

    rng = np.random.default_rng(0)
    for index in range(count):
        scene = render_scene(0, index, 250)
        smooth = Image.fromarray(scene.image).resize((500, 375), box=(0, 31, 250, 218.5))
        # Without grain a scene's file would be a fifth of a photo's, and be decoded sooner.
        pixels = np.asarray(smooth) + rng.normal(0, 9, (375, 500, 1))
        path = folder / CLASS_NAMES[scene.label] / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8)).save(path, quality=92)
    return folder


def autocast(precision: str) -> torch.autocast:
    """The context that gives a forward pass on this device its precision."""
    return torch.autocast(device(), dtype=torch.bfloat16, enabled=precision == "bfloat16")


def flops_floor(precision: str) -> float:
    """FLOPs per second of a large product in this process: what arithmetic could reach at most."""
    return measured_flops(device(), precision)


def best_floor(founds: Iterable[Found]) -> float:
    """The highest `floor` that any process of one run has measured, in FLOPs or bytes a second.

    Each measures for some milliseconds only, in which the machine may have done something else.
    """
    return max((figures["floor"] for found in founds for figures in found if "floor" in figures), default=float("nan"))


def read_floor() -> float:
    """Bytes per second that one large sum reads: what streaming weights could reach at most."""
    values = torch.ones(2**30 if device() == "cuda" else 2**27, device=device())
    found = values.nbytes / min(seconds(values.sum) for _ in range(4))
    del values
    if device() == "cuda":
        torch.cuda.empty_cache()  # the contenders' processes want it
    return found


def copy_floor() -> float:
    """Bytes per second, read or written, of a large copy by one thread of numpy."""
    source = np.ones(2**26, dtype=np.uint8)
    target = np.empty_like(source)
    return source.nbytes / min(seconds(lambda: np.copyto(target, source)) for _ in range(4))


def _command(suite: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{suite}", *arguments]


def spawn(suite: str, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
    """What `python -m priorbench.SUITE ARGUMENTS…` answers, in a process of its own.

    Raises:
        ContenderError: it failed, or was killed; its own message is in stderr.
    """
    done = subprocess.run(_command(suite, *arguments), env={**os.environ, **(env or {})}, stdout=subprocess.PIPE)
    return _answer_in(done.stdout, done.returncode)


def _answer_in(reply: str | bytes, code: int) -> Any:
    found = json.loads(reply) if reply else {"failed": f"killed by signal {-code}" if code < 0 else f"exit code {code}"}
    if "failed" in found:
        raise ContenderError(found["failed"])
    return found["answer"]


def _reply(work: Callable[[], Any], file: Any) -> bool:
    """Print what `work` returns as a line of JSON, or why it failed, a traceback in stderr; True if it worked."""
    try:
        reply = {"answer": work()}
    except Exception as error:  # noqa: BLE001 whatever a rival raises, the others go on
        traceback.print_exc()
        told = str(error).strip().partition("\n")[0].replace("|", "/")
        reply = {"failed": f"{type(error).__name__}: {told:.150}"}
    print(json.dumps(reply), file=file, flush=True)
    return "answer" in reply


def use_all_cores() -> None:
    """Give torch all cores that this process may use: by itself it counts the machine's, past a container's quota."""
    torch.set_num_threads(usable_cores())


def _as_contender() -> Any:
    """Give this process all its cores; returns its stdout, which libraries do not print to any more."""
    use_all_cores()
    stdout, sys.stdout = sys.stdout, sys.stderr
    return stdout


def answer(work: Callable[[], Any]) -> None:
    """The other side of `spawn`: run `work` and print its result as JSON, whatever libraries print meanwhile."""
    _reply(work, _as_contender())


class Server:
    """A contender that stays in a process of its own: the other side is `serve`.

    Args:
        suite: Module of this package.
        arguments: Its command line.
        env: Beside this process's environment.
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
        """What it answers to one request.

        Raises:
            ContenderError: it failed, or was killed; its own message is in stderr.
        """
        self.wait_until_ready()
        with contextlib.suppress(BrokenPipeError):  # it died since it was asked last
            print(json.dumps(request), file=self._to, flush=True)
        reply = self._from.readline()
        return _answer_in(reply, 0 if reply else self._process.wait())

    def wait_until_ready(self) -> None:
        """Wait until it answers, or has died, which `ask` will tell."""
        if not self._ready:
            self._from.readline()
            self._ready = True

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._to.close()  # the end of its input ends it
        self._process.wait()
        self._from.close()


def serve(work: Callable[..., Any]) -> None:
    """The other side of `Server`: answer every request with `work(**request)`, until there are no more.

    One that fails, for want of memory say, costs no later one.
    """
    answers = _as_contender()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if not _reply(functools.partial(work, **json.loads(line)), answers) and device() == "cuda":
            torch.cuda.empty_cache()


def in_turns(
    what: str,
    contenders: Iterable[Key],
    measure: Callable[[Key], dict[str, Any]],
    report: Callable[[dict[Key, Found]], str],
    repeats: int,
    rounds_of: Callable[[Key], int] | None = None,
) -> str:
    """Measure all contenders in every round, and report after each, so that no later failure costs what is measured.

    A contender that died takes no more turns; if it never finished one, its figures are {"failed": reason}.

    Args:
        what: What the progress bar shows.
        contenders: In the order of their turns.
        measure: Gives the figures of one contender in one round.
        report: Writes the figures of all rounds so far, and returns them as Markdown.
        repeats: Rounds.
        rounds_of: Rounds that a contender takes part in, from the first on; None: all.

    Returns:
        The last report.
    """
    found: dict[Key, Found] = {one: [] for one in contenders}
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


def failure(found: Found) -> str:
    """Why a contender died in its first round, as `failed: reason`; empty if it did not."""
    return f"failed: {found[-1]['failed']}" if found and "failed" in found[-1] else ""


def alive(figures: Mapping[Key, Found]) -> dict[Key, Found]:
    """Those that finished a round: the others are in no ratio."""
    return {one: found for one, found in figures.items() if not failure(found)}


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))


def ratio(over: Sequence[float], values: Sequence[float]) -> str:
    """Median and range of the ratios within rounds, as `1.60 (1.52–1.71)`; of seconds, `over` is the rival's.

    Only rounds that both finished count: one may have died before the last.
    """
    found = [a / b for a, b in zip(over, values, strict=False)]
    spread = "1 round" if len(found) == 1 else f"{min(found):.3g}–{max(found):.3g}"
    return f"{statistics.median(found):.3g} ({spread})"


def rounds(count: int) -> str:
    """A number of rounds in words."""
    return f"{count} round{'s' * (count != 1)}"


def command(suite: str, repeats: int, data: bool = False) -> str:
    """What measures a suite again, as it was measured: with every flag but the place of the photos."""
    return f"python -m priorbench {suite} --repeats {repeats} --device {device()}{' --data PHOTOS' * data}"


def save(
    out: Path, name: str, table: Table, *, command: str, text: str, figures: Any, packages: Sequence[str] = ("torch",)
) -> str:
    """Write a report as NAME-DEVICE.json, whole or not at all, and return it as Markdown.

    Args:
        out: Folder for results.
        name: What was measured, such as `loader`.
        table: Made of `figures` alone.
        command: What measures it again.
        text: What the rows are and what they leave out.
        figures: Every single measurement.
        packages: What is compared; their versions are noted.
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
    """A table whose rows may end early, as those of contenders that died do."""
    return Table(list(columns), [[*row, *[""] * (len(columns) - len(row))] for row in rows], dict(headlines))


def result_path(out: Path, name: str, ending: str) -> Path:
    """NAME-DEVICE.ENDING in `out`: what a machine of this kind measured."""
    place = torch.cuda.get_device_name() if device() == "cuda" else "cpu"
    suffix = "".join(c if c.isalnum() else "-" for c in place.lower())
    return out / f"{name}-{suffix}{ending}"


def markdown(report: Mapping[str, Any]) -> str:
    """A report as a Markdown table under its text."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = "| " + " | ".join(report["columns"]) + " |"
    lines = [head, "|---" * len(report["columns"]) + "|", *(f"| {' | '.join(row)} |" for row in report["rows"])]
    return f"{report['machine']}; {versions}. {report['text']} `{report['command']}`\n\n" + "\n".join(lines) + "\n"
