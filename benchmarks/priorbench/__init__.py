"""Benchmarks against other packages. Imports no torch, because the device is chosen before it is imported."""

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
    "tokenize": "the tokenize job, against the encoder alone and LlamaGen's loop with the same network",
    "shards": "cost of five orders and of tars",
    "loader": "reading codes, against webdataset, litdata, mosaicml-streaming, datasets and numpy",
    "train-prior": "a training step of the prior, against nanoGPT, transformers and taming",
    "sample": "sampling codes, against taming and transformers",
    "scaling": "growth of the job with workers and shards, the loader with rows, training with sequence length",
}


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
        run = importlib.import_module(f"{__name__}.{suite.replace('-', '_')}").run
        photos = {"data": data} if "data" in inspect.signature(run).parameters else {}
        arguments: dict[str, Any] = {"out": out or harness.RESULTS, **photos}
        try:
            tables.append(str(run(repeats, **arguments)))
        except (InputError, processes.ContenderError) as error:  # for example a missing rival: run the other suites
            failed.append(f"{suite}: {error}")
    if failed:
        raise InputError("\n".join([*tables, f"not measured: {'; '.join(failed)}"]))
    return "\n".join(tables)
