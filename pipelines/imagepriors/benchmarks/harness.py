"""What the suites share: contenders in processes of their own, rounds in turn, floors, and one form of results.

A suite measures all contenders in every round and compares within a round, so that what else the machine does falls on
all alike. Its report is a JSON file; Markdown, here and in README, is made of that file and never typed.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.speed import measured_flops
from vqgan.errors import InputError

RESULTS = Path(__file__).parent / "results"


def device() -> str:
    """cuda where this machine has a GPU (and CUDA_VISIBLE_DEVICES shows it), else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> str:
    """The hardware that is measured, in words: a GPU beside its CPU, which is all that some suites use."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    # The same name may hide units twice as wide, or bfloat16: the instructions tell.
    units = torch.backends.cpu.get_cpu_capability() + " with bfloat16" * torch.cpu._is_avx512_bf16_supported()
    gpu = f"{torch.cuda.get_device_name()}; " if device() == "cuda" else ""
    return f"{gpu}{os.cpu_count()} cores, {found[1] if found else platform.machine()} ({units})"


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


def need(modules: Mapping[str, str]) -> None:
    """Check that rivals are there, before minutes are spent.

    Args:
        modules: What is imported → the package that has it.

    Raises:
        InputError: some are not installed.
    """
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        names = " ".join(missing)
        raise InputError(f"rivals are missing: `make bench` installs them, or: pip install --no-deps {names}")


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


def flops_floor(precision: str) -> float:
    """FLOPs per second of a large product in this process: what arithmetic could reach at most."""
    return measured_flops(device(), precision)


def read_floor() -> float:
    """Bytes per second that one large sum reads: what streaming weights could reach at most."""
    values = torch.ones(2**30 if device() == "cuda" else 2**27, device=device())
    return values.nbytes / min(seconds(values.sum) for _ in range(4))


def copy_floor() -> float:
    """Bytes per second, read or written, of a large copy by one thread of numpy."""
    source = np.ones(2**26, dtype=np.uint8)
    target = np.empty_like(source)
    return source.nbytes / min(seconds(lambda: np.copyto(target, source)) for _ in range(4))


def spawn(suite: str, *arguments: str, env: Mapping[str, str] | None = None) -> Any:
    """What `python -m imagepriors.benchmarks.SUITE ARGUMENTS…` answers, in a process of its own."""
    command = [sys.executable, "-m", f"{__package__}.{suite}", *arguments]
    done = subprocess.run(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def answer(work: Callable[[], Any]) -> None:
    """The other side of `spawn`: run `work` and print its result as JSON, whatever libraries print meanwhile."""
    sys.stdout = sys.stderr
    result = work()
    assert sys.__stdout__ is not None
    sys.__stdout__.write(json.dumps(result))
    sys.__stdout__.flush()


class Server:
    """A contender that stays in a process of its own: the other side is `serve`.

    Args:
        suite: Module of this package.
        arguments: Its command line.
        env: Beside this process's environment.
    """

    def __init__(self, suite: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", f"{__package__}.{suite}", *arguments]
        self._process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def ask(self, **request: Any) -> Any:
        """What it answers to one request.

        Raises:
            RuntimeError: it died; its own message is in stderr.
        """
        print(json.dumps(request), file=self._to, flush=True)
        reply = self._from.readline()
        if not reply:
            raise RuntimeError(f"{self._process.args!r} died (exit code {self._process.wait()}): see above")
        return json.loads(reply)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._to.close()  # the end of its input ends it
        self._process.wait()
        self._from.close()


def serve(work: Callable[..., Any]) -> None:
    """The other side of `Server`: answer every request with `work(**request)`, until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    for line in sys.stdin:
        print(json.dumps(work(**json.loads(line))), file=answers, flush=True)


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))


def ratio(over: Sequence[float], values: Sequence[float]) -> str:
    """Median and range of the ratios within rounds, as `1.60 (1.52–1.71)`; of seconds, `over` is the rival's."""
    found = [a / b for a, b in zip(over, values, strict=True)]
    middle = f"{statistics.median(found):.3g}"
    return middle if len(found) == 1 else f"{middle} ({min(found):.3g}–{max(found):.3g})"


def save(
    out: Path,
    name: str,
    *,
    command: str,
    text: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    figures: Any,
    headlines: Mapping[str, str],
    packages: Sequence[str] = ("torch",),
) -> str:
    """Write a report as NAME-DEVICE.json and return it as Markdown.

    Args:
        out: Folder for results.
        name: What was measured, such as `loader`.
        command: What measures it again.
        text: What the rows are and what they leave out.
        columns: Heads of the columns; the first is the contender.
        rows: Cells, as text.
        figures: Every single measurement.
        headlines: What a reader should take away → ratio, for the table of all suites.
        packages: What is compared; their versions are noted.
    """
    versions = {package: importlib.metadata.version(package) for package in packages}
    report = {
        "machine": machine(), "command": command, "versions": versions, "text": text, "columns": list(columns),
        "rows": [list(row) for row in rows], "headlines": dict(headlines), "figures": figures,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    result_path(out, name, ".json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return markdown(report)


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
