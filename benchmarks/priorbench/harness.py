"""Shared code of the suites: measurements, speed limits of the machine, rounds, and reports.

A suite measures all contenders in each round and compares them within a round, so that other load on the machine
affects all of them. Its report is a JSON file that is rewritten after each round. The table in it is a function of its
figures, and all Markdown is generated from this file.
"""

import importlib.metadata
import json
import logging
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from codeprior.speed import measured_flops
from codeshards.format.files import atomic_write
from priorbench.markdown import markdown
from priorbench.processes import ContenderError
from runkit.machine import usable_cores
from runkit.progress import tqdm

log = logging.getLogger(__name__)
RESULTS = Path(__file__).parent / "results"
Rounds = list[dict[str, Any]]
"""Figures of a contender in each round; only {"failed": reason} if it failed in the first round."""
Key = TypeVar("Key", bound=Hashable)


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


def median_seconds(work: Callable[[], Any], warm: int, repeats: int | None = None) -> float:
    """Median seconds of a call of `work`, after `warm` untimed calls; None: 10 calls on a GPU and 2 on a CPU."""
    for _ in range(warm):
        work()
    return median([seconds(work) for _ in range(repeats or (10 if device() == "cuda" else 2))])


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
    from priorbench.gpu.photos import write_photo

    for index in range(count):
        write_photo(index, folder)
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


def values_of(figures: Mapping[Key, Rounds], name: str) -> dict[Key, list[float]]:
    """Contender → its values of a figure; without failed contenders."""
    return {one: [of_round[name] for of_round in found] for one, found in finished(figures).items()}


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
