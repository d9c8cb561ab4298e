"""Measurements of this machine against rivals, behind one command. Imports no torch, so that the CLI stays quick."""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any, Literal

import tyro

from vqgan.errors import InputError

SUITES = {
    "decode": "reading photos, against torchvision's ImageFolder",
    "train-vqgan": "VQGAN training steps, encoding and decoding, against taming-transformers and diffusers",
    "tokenize": "the tokenize job, against the bare encoder and LlamaGen's loop around the same network",
    "shards": "what five orders and tars cost",
    "loader": "reading codes, against webdataset, litdata, mosaicml-streaming, datasets and numpy",
    "train-prior": "a training step of the prior, against nanoGPT, transformers and taming",
    "sample": "drawing codes, against taming and transformers",
    "scaling": "growth: the job over workers, samples and shards, the loader over rows, training over sequence length",
}


def bench(
    suites: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    repeats: int = 3,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    data: Path | None = None,
    out: Path | None = None,
) -> str:
    """Measure this package against its rivals on this machine (most suites need the `bench` extra).

    Args:
        suites: What to measure: decode, train-vqgan, tokenize, shards, loader, train-prior, sample, scaling; none: all.
        repeats: Rounds; all contenders take their turn in each. Medians and ranges of ratios within a round count.
        device: cpu hides GPUs; cuda fails where there is none.
        data: Folder of photos, for decode and tokenize; default: rendered scenes of a photo's size.
        out: Folder for the results; default: the package's own.
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
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported, here and in the contenders' processes
    from priorbench import harness

    if device == "cuda" and harness.device() != "cuda":
        raise InputError("--device cuda: torch sees no GPU here; choose cpu, or look at nvidia-smi")
    harness.use_all_cores()  # floors are measured in this process
    tables: list[str] = []
    failed: list[str] = []
    for suite in suites or SUITES:
        run = importlib.import_module(f"{__name__}.{suite.replace('-', '_')}").run
        photos = {"data": data} if "data" in inspect.signature(run).parameters else {}
        arguments: dict[str, Any] = {"out": out or harness.RESULTS, **photos}
        try:
            tables.append(str(run(repeats, **arguments)))
        except (InputError, harness.ContenderError) as error:  # such as a rival that is missing: the other suites go on
            failed.append(f"{suite}: {error}")
    if failed:
        raise InputError("\n".join([*tables, f"not measured: {'; '.join(failed)}"]))
    return "\n".join(tables)
