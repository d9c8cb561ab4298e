"""Benchmarks: every figure is a ratio against a named rival, measured in one run on one machine."""

from pathlib import Path
from typing import Literal

import tyro

from vqgan.errors import InputError


def bench(
    suite: tyro.conf.Positional[Literal["stage1", "tokenize", "shards"]] = "stage1",
    *,
    repeats: int = 5,
    data: Path | None = None,
    out: Path | None = None,
) -> str:
    """Measure on this machine: stage1 against taming-transformers (`peers` extra), the tokenize job, or the shards.

    Args:
        suite: What to measure.
        repeats: Measurements of each contender; the median counts.
        data: Folder with photos for the tokenize suite.
        out: Folder for the table and its figures; default: the package's own results.
    """
    places = () if out is None else (out,)
    if suite == "stage1":
        from imagepriors.benchmarks.stage1 import run as run_stage1

        return run_stage1(repeats, *places)
    if suite == "shards":
        from imagepriors.benchmarks.shards import run as run_shards

        return run_shards(repeats, *places)
    if data is None:
        raise InputError("the tokenize suite needs photos: pass --data, e.g. a folder of ImageNet")
    from imagepriors.benchmarks.tokenize import run as run_tokenize

    return run_tokenize(repeats, data, *places)
