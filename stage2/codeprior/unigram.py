"""How often codes occur, and what a model that knows no more than that pays for a code: the baseline of every prior."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from codeprior.config import SequenceSpec
from codeshards.format import ShardDataset


def code_counts(dataset: ShardDataset, split: str, sequence: SequenceSpec) -> NDArray[np.int64]:
    """How often each image code occurs in the sequences of a split, [codebook_size]; reads the shards once."""
    counts = np.zeros(sequence.codebook_size, dtype=np.int64)
    for batch in dataset.batches(split, list(sequence.columns)):
        for codes in batch.values():
            counts += np.bincount(codes.ravel(), minlength=sequence.codebook_size)
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
