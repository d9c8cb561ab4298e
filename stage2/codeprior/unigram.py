"""How often codes occur, and what a model that knows no more than that pays for a code: the baseline of every prior."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codeprior.data import check_codes


def code_counts(pieces: Iterable[NDArray[Any]], codebook_size: int) -> NDArray[np.int64]:
    """How often each image code occurs in these arrays of codes, [codebook_size].

    Raises:
        PriorError: a code is beyond the codebook.
    """
    counts = np.zeros(codebook_size, dtype=np.int64)
    for codes in pieces:
        check_codes(codes, codebook_size, "a column of image codes")
        counts += np.bincount(codes.ravel(), minlength=codebook_size)
    return counts


def entropy_nats(counts: NDArray[np.int64]) -> float:
    """Entropy of the codes' frequencies: what a model that knows only them pays for each code."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def unigram_nll_nats(train_counts: NDArray[np.int64], val_counts: NDArray[np.int64]) -> float:
    """Mean cost of the validation codes under the training frequencies.

    One is added to every count: a code that training never saw must not cost infinitely much.
    """
    log_p = np.log(train_counts + 1) - math.log(train_counts.sum() + len(train_counts))
    return float(-(val_counts * log_p).sum() / val_counts.sum())
