"""The process that runs the checks, one after the other: `python -m priorbench.gpu.worker DEVICE FOLDER`."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path

import torch

from priorbench import harness, processes
from priorbench.gpu.check import FIGURES, Run, Setup, Size, SkipCheckError
from runkit.devices import pick_device


def run_check(setup: Setup, module: str, name: str) -> dict[str, str]:
    """Run a check and write each of its figures to `FIGURES`; return why it was skipped, if it was."""
    check: Run = getattr(importlib.import_module(module, __package__), name)
    torch.manual_seed(0)
    if setup.size == "tiny":
        torch.set_num_threads(1)  # several are slower for tiny networks, most of all beside other work
    with (setup.work / FIGURES).open("w") as file:
        try:
            for figure in check(setup):
                print(json.dumps(figure), file=file, flush=True)
        except SkipCheckError as reason:
            return {"skipped": str(reason)}
        finally:
            if setup.device.type == "cuda":
                torch.cuda.empty_cache()
    return {}


def describe(device: torch.device) -> dict[str, str]:
    """Return what the report says about the machine."""
    report = harness.result_path(Path(), "gpu-check", ".json").name
    return {"device": device.type, "machine": harness.machine(), "report": report}


def main(name: str, folder: str) -> None:
    """Answer requests: a check, or a description of the machine."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

    def work(check: tuple[str, str] | None = None, size: Size = "tiny") -> dict[str, str]:
        device = pick_device(name)  # type: ignore[arg-type]
        return run_check(Setup(device, size, Path(folder)), *check) if check else describe(device)

    processes.serve(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
