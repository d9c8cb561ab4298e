"""Measurements of this machine against rivals, behind one command. Imports no torch, so that the CLI stays quick."""

import importlib
from pathlib import Path
from typing import Any

import tyro

from vqgan.errors import InputError

SUITES = {
    "stage1": "training and encoding, against taming-transformers",
    "decode": "reading photos, against torchvision's ImageFolder",
    "tokenize": "the tokenize job, against the bare encoder and LlamaGen's loop",
    "shards": "what five orders and tars cost",
    "scaling": "the tokenize driver with ten million samples and 100 to 100,000 shards",
    "loader": "reading codes, against webdataset, litdata, mosaicml-streaming and datasets",
    "train-prior": "a training step of the prior, against nanoGPT and taming",
    "sample": "drawing codes, against taming and transformers",
}
_WANT_PHOTOS = ("decode", "tokenize")


def bench(
    suite: tyro.conf.Positional[str] = "stage1",
    *,
    repeats: int = 5,
    data: Path | None = None,
    out: Path | None = None,
) -> str:
    """Measure this package against its rivals on this machine (most suites need the `peers` extra).

    Args:
        suite: What to measure: stage1, decode, tokenize, shards, scaling, loader, train-prior or sample.
        repeats: Measurements of each contender; the median counts.
        data: Class folders of photos, for decode and tokenize.
        out: Folder for the table and its figures; default: the package's own results.
    """
    if suite not in SUITES:
        listed = "; ".join(f"{name} ({what})" for name, what in SUITES.items())
        raise InputError(f"unknown suite {suite!r}: choose one of {listed}")
    arguments: dict[str, Any] = {"out": out} if out else {}
    if suite in _WANT_PHOTOS:
        if data is None or not data.is_dir():
            raise InputError(f"no photos in {data}: pass --data, a folder with one sub-folder of photos per class")
        arguments["data"] = data
    run = importlib.import_module(f"{__name__}.{suite.replace('-', '_')}").run
    return str(run(repeats, **arguments))
