"""Frequencies of codes, and the loss of the unigram model, which is the baseline of every prior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codeprior.data import check_codes


def code_counts(pieces: Iterable[NDArray[Any]], codebook_size: int) -> NDArray[np.int64]:
    """Return how often each image code occurs in arrays of codes, [codebook_size].

    Raises:
        PriorError: A code is not in the codebook.
    """
    counts = np.zeros(codebook_size, dtype=np.int64)
    for codes in pieces:
        check_codes(codes, codebook_size, "a column of image codes")
        counts += np.bincount(codes.ravel(), minlength=codebook_size)
    return counts


def mixed(counts: Sequence[NDArray[np.int64]], shares: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the counts of a blend: the frequencies in each dataset in these shares, with as many codes as in all."""
    total = sum(int(one.sum()) for one in counts)
    parts = [share * one * (total / one.sum()) for one, share in zip(counts, shares, strict=True)]
    return np.sum(parts, axis=0)  # type: ignore[no-any-return]


def entropy_nats(counts: NDArray[np.float64]) -> float:
    """Return the entropy of the frequencies: the loss per code of the unigram model on its training data."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def unigram_nll_nats(train_counts: NDArray[np.float64], val_counts: NDArray[np.float64]) -> float:
    """Return the mean negative log-likelihood of the validation codes under the training frequencies.

    One is added to every count, so that the loss of codes that do not occur in training is finite.
    """
    log_p = np.log(train_counts + 1) - math.log(train_counts.sum() + len(train_counts))
    return float(-(val_counts * log_p).sum() / val_counts.sum())
