"""Run the suites of the benchmarks: `python -m priorbench SUITE …`.

Imports no torch at first, because the device is chosen before it is imported.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from imagepriors.cli import print_answer
from priorbench import SUITES
from vqgan.errors import InputError


def bench(
    suites: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    repeats: int = 3,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    data: Path | None = None,
    out: Path | None = None,
) -> str:
    """Measure this package and its rivals on this machine (most suites require the `bench` extra).

    Args:
        suites: decode, train-vqgan, tokenize, shards, loader, train-prior, sample, scaling; none: all.
        repeats: Number of rounds; each measures all contenders, and ratios are taken within a round.
        device: cpu hides GPUs; cuda fails without a GPU.
        data: Folder of photos for decode and tokenize; default: rendered scenes.
        out: Folder for the results; default: the results of this package.
    """
    for suite in suites:
        if suite not in SUITES:
            listed = "; ".join(f"{name} ({what})" for name, what in SUITES.items())
            raise InputError(f"unknown suite {suite!r}: choose among {listed}")
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: choose 1 or more")
    if data is not None and not data.is_dir():
        raise InputError(f"no photos in {data}: pass --data, a folder of photos, or leave it out")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported in this and the contenders' processes
    from priorbench import harness, processes

    if device == "cuda" and harness.device() != "cuda":
        raise InputError("--device cuda: torch sees no GPU here; choose cpu, or look at nvidia-smi")
    processes.use_all_cores()  # speed limits are measured in this process
    tables: list[str] = []
    failed: list[str] = []
    for suite in suites or SUITES:
        run = importlib.import_module(f"{__package__}.{suite.replace('-', '_')}").run
        photos = {"data": data} if "data" in inspect.signature(run).parameters else {}
        arguments: dict[str, Any] = {"out": out or harness.RESULTS, **photos}
        try:
            tables.append(str(run(repeats, **arguments)))
        except (InputError, processes.ContenderError) as error:  # for example a missing rival: run the other suites
            failed.append(f"{suite}: {error}")
    if failed:
        raise InputError("\n".join([*tables, f"not measured: {'; '.join(failed)}"]))
    return "\n".join(tables)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites that the arguments name; returns the exit code: 0 done, 2 bad input."""
    return print_answer(lambda: str(tyro.cli(bench, prog="python -m priorbench", args=argv)), "priorbench")


if __name__ == "__main__":
    sys.exit(main())
