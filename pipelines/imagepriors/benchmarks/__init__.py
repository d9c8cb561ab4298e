"""Benchmarks: every figure is a ratio against a named rival, measured in one run on one machine."""

from pathlib import Path
from typing import Literal

import tyro


def bench(
    suite: tyro.conf.Positional[Literal["stage1", "decode", "tokenize", "shards"]] = "stage1",
    *,
    repeats: int = 5,
    data: Path | None = None,
    out: Path | None = None,
) -> str:
    """Measure this machine against rivals: stage1 (taming-transformers; `peers` extra), decode, tokenize, shards.

    Args:
        suite: What to measure: training and encoding, reading photos, the tokenize job, or what its format costs.
        repeats: Measurements of each contender; the median counts.
        data: Folder of photos, for decode and tokenize.
        out: Folder for the table and its figures; default: the package's own results.
    """
    if suite == "decode":
        from imagepriors.benchmarks import decode

        return decode.run(repeats, out or decode.RESULTS, data=data)
    if suite == "tokenize":
        from imagepriors.benchmarks import tokenize

        return tokenize.run(repeats, out or tokenize.RESULTS, data=data)
    if suite == "shards":
        from imagepriors.benchmarks import shards

        return shards.run(repeats, out or shards.RESULTS)
    from imagepriors.benchmarks import stage1

    return stage1.run(repeats, out or stage1.RESULTS)
