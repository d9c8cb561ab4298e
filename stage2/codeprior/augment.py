"""Augmentation of training batches: dropped conditions, replaced and hidden inputs, permuted sequences.

Every random number is a function of (seed, step, row of the global batch). A resumed run therefore needs no saved
state, and the result does not depend on the number of ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from codeprior.config import SequenceSpec, TrainConfig
from codeprior.data import Batch, random_bits
from codeprior.given import UNKNOWN
from codeprior.masked import training_mask
from codeshards.format.schema import NO_LABEL

_HIDE, _PERMUTE, _KEYS, _REPLACE, _CODES, _COUNT = 11, 12, 13, 14, 15, 16  # a stream of random numbers for each purpose


def permuted_fraction(config: TrainConfig, step: int) -> float:
    """Return the probability that a sequence of update `step` is permuted.

    With random_order it is 1, then falls linearly to 0 (RAR, section 3.2); for a prior of any order it stays 1.
    """
    if config.objective == "any_order":
        return 1.0
    if not config.random_order:
        return 0.0
    start, end = config.anneal_start * config.steps, config.anneal_end * config.steps
    if step < start:
        return 1.0
    return max(0.0, (end - step) / (end - start)) if end > start else 0.0


def augment(batch: Batch, config: TrainConfig, sequence: SequenceSpec, *, step: int, mine: slice) -> Batch:
    """Augment this rank's part of global batch `step`.

    Args:
        batch: The rows `mine` of the global batch, in main memory.
        config: The run.
        sequence: The meaning of its sequences.
        step: Number of the update.
        mine: This rank's rows of the global batch.
    """

    def bits(purpose: int, width: int = 1) -> NDArray[np.uint64]:
        return random_bits(config.batch_size * width, config.seed, step, purpose).reshape(-1, width)[mine]

    def happens(purpose: int, probability: float, width: int = 1) -> torch.Tensor:
        return torch.from_numpy(bits(purpose, width) < np.uint64(min(probability * 2.0**64, 2.0**64 - 2048)))

    condition_BC, codes_BT, inputs_BT, positions_BT = batch.condition_BC, batch.codes_BT, None, None
    if config.cond_dropout > 0:
        hidden_B1 = happens(_HIDE, config.cond_dropout)
        condition_BC = torch.where(hidden_B1, NO_LABEL, condition_BC)  # the model's null condition
    T = sequence.length
    fraction = permuted_fraction(config, step)
    if config.random_order or config.objective == "any_order":
        ordered_T = torch.arange(T)
        shuffled_BT = torch.from_numpy(np.argsort(bits(_KEYS, T), axis=1, kind="stable"))
        permuted_B1 = happens(_PERMUTE, fraction) if fraction < 1 else torch.tensor(True)
        positions_BT = torch.where(permuted_B1, shuffled_BT, ordered_T)
        codes_BT = codes_BT.gather(1, positions_BT)
    if config.pkeep < 1:
        replaced_BT = happens(_REPLACE, 1 - config.pkeep, T)
        random_BT = torch.from_numpy((bits(_CODES, T) % np.uint64(sequence.codebook_size)).astype(np.int64))
        inputs_BT = torch.where(replaced_BT, random_BT, codes_BT)
    if config.objective == "masked":
        read_BT = codes_BT if inputs_BT is None else inputs_BT
        inputs_BT = read_BT.masked_fill(training_mask(bits(_COUNT), bits(_KEYS, T)), UNKNOWN)
    return Batch(condition_BC=condition_BC, codes_BT=codes_BT, inputs_BT=inputs_BT, positions_BT=positions_BT)
