"""From token shards to batches: decode a column once, then read rows at random from a memory map.

Axes: N rows of a split, B batch, T image codes of a sequence, C condition tokens.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from codeprior.config import ConditionName, PriorError, SequenceSpec
from codeshards.format import OrderName, ShardDataset, WriteError, atomic_write

CACHE_VERSION = 1
"""Part of every cache file's address: raise it when the bytes in the files change meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences ready for the model."""

    condition_BC: Tensor
    """int64 condition tokens; zeros [B, 1] where there is no condition."""
    codes_BT: Tensor
    """int64 image codes in sequence order."""

    def to(self, device: torch.device) -> Self:
        """The same batch on another device; does not wait for the copy."""
        return type(self)(
            condition_BC=self.condition_BC.to(device, non_blocking=True),
            codes_BT=self.codes_BT.to(device, non_blocking=True),
        )


def cache_root(dataset: ShardDataset) -> Path:
    """Where decoded columns live: $IMAGEPRIORS_CACHE if set, else `.cache` inside the dataset.

    A memory map needs a local file: of a dataset in an object store they go to ~/.cache/imagepriors.
    """
    if chosen := os.environ.get("IMAGEPRIORS_CACHE"):
        return Path(chosen)
    folder = dataset.path.local
    return folder / ".cache" if folder else Path.home() / ".cache" / "imagepriors"


def memory_map(dataset: ShardDataset, split: str, column: str) -> NDArray[Any]:
    """One column of a split as a read-only array [N, ...] that stays on disk until it is read.

    The first call decodes the column into one .npy file; its name carries a hash of all that decides its
    bytes, so a changed dataset can never be served from an old file. Processes that start together may
    both decode, but each renames a complete file into place, so a reader never sees half of one.

    Raises:
        ShardError: the split or column is unknown or the split empty, a shard is damaged, or the cache
            cannot be written.
    """
    rows = dataset.rows(split)
    if rows == 0:
        raise PriorError(f"split {split!r} of {dataset.path} has no rows")
    content = "\n".join((str(CACHE_VERSION), dataset.fingerprint, split, column))
    address = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = cache_root(dataset) / f"{split}-{column}-{address}.npy"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _decode(dataset, split, column, path)
        except (OSError, WriteError) as error:
            raise PriorError(
                f"cannot write the decoded codes to {path.parent} ({error}): "
                "set IMAGEPRIORS_CACHE to a writable folder with room"
            ) from error
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(array) != rows:
        raise PriorError(f"{path} holds {len(array)} rows, the dataset {rows}: delete the file and try again")
    return np.asarray(array)  # a plain view of the map: np.memmap's own indexing is slower


def _decode(dataset: ShardDataset, split: str, column: str, path: Path) -> None:
    rows = dataset.rows(split)
    bar = tqdm(total=rows, desc=f"decode {split}/{column}", unit="row", unit_scale=True, disable=None)
    with bar, atomic_write(path) as file:
        written = 0
        for batch in dataset.batches(split, [column]):
            chunk = np.ascontiguousarray(batch[column])
            if written == 0:
                header = {
                    "descr": np.lib.format.dtype_to_descr(chunk.dtype),
                    "fortran_order": False,
                    "shape": (rows, *chunk.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(chunk.data)
            written += len(chunk)
            bar.update(len(chunk))
        if written != rows:
            raise PriorError(
                f"{dataset.path}: dataset.json promises {rows} rows in {split!r}, the shards hold {written}; "
                "verify the dataset"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeData:
    """One split of a dataset as the sequences a prior reads."""

    codes_NT: NDArray[np.uint16]
    """Image codes in sequence order."""
    condition_NC: NDArray[Any] | None
    """Condition tokens (uint16 codes or int32 class ids), None where there is no condition."""
    identity: str
    """What the rows are: the dataset's fingerprint and the split."""

    @property
    def rows(self) -> int:
        """Sequences in the split."""
        return len(self.codes_NT)

    @classmethod
    def open(cls, dataset: ShardDataset, split: str, sequence: SequenceSpec) -> Self:
        """Map the columns that this sequence needs.

        Raises:
            ShardError: a class label is missing or beyond the classes, or the split cannot be mapped.
        """
        condition_NC = None
        if sequence.condition == "class":
            condition_NC = memory_map(dataset, split, "label")[:, None]
            _check_labels(condition_NC, split, sequence.condition_vocabulary)
        elif sequence.condition != "none":
            condition_NC = memory_map(dataset, split, f"cond_{sequence.condition}")
        codes_NT = memory_map(dataset, split, f"codes_{sequence.order}")
        return cls(codes_NT=codes_NT, condition_NC=condition_NC, identity=f"{dataset.fingerprint}/{split}")

    def take(self, rows: NDArray[np.int64] | slice) -> Batch:
        """These rows as int64 tensors."""
        codes_BT = torch.from_numpy(self.codes_NT[rows].astype(np.int64))
        if self.condition_NC is None:
            condition_BC = torch.zeros((len(codes_BT), 1), dtype=torch.int64)
        else:
            condition_BC = torch.from_numpy(self.condition_NC[rows].astype(np.int64))
        return Batch(condition_BC=condition_BC, codes_BT=codes_BT)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in the dataset's order; the last batch may be smaller."""
        for start in range(0, self.rows, batch_size):
            yield self.take(slice(start, start + batch_size))

    def code_counts(self, codebook_size: int) -> NDArray[np.int64]:
        """How often each code occurs, [codebook_size]."""
        counts = np.zeros(codebook_size, dtype=np.int64)
        for start in range(0, self.rows, 8192):
            counts += np.bincount(self.codes_NT[start : start + 8192].ravel(), minlength=codebook_size)
        return counts


def _check_labels(labels_N1: NDArray[np.int32], split: str, class_count: int) -> None:
    missing = int((labels_N1 < 0).sum())
    if missing:
        raise PriorError(
            f"condition 'class': {missing} of {len(labels_N1)} rows in split {split!r} have no label; "
            "tokenize a labelled dataset or train with condition 'none'"
        )
    if int(labels_N1.max()) >= class_count:
        raise PriorError(f"split {split!r} has label {labels_N1.max()}, but there are {class_count} classes")


def sequence_from_dataset(dataset: ShardDataset, order: OrderName, condition: ConditionName) -> SequenceSpec:
    """The sequence spec of a dataset; unnamed classes are counted from the training labels."""
    class_count = len(dataset.class_names)
    if condition == "class" and class_count == 0:
        class_count = int(memory_map(dataset, "train", "label").max()) + 1
    return SequenceSpec.from_shards(
        dataset.spec,
        order=order,
        condition=condition,
        class_count=class_count,
        class_names=tuple(dataset.class_names),
    )


class CodeBatches:
    """Endless shuffled training batches; batch t of epoch e is a pure function of (seed, e, t).

    Every epoch is an exact shuffle. Its ragged tail is dropped, so all batches are equal. The rows of a
    global batch do not depend on world_size: rank r gets the r-th equal part of them.

    Args:
        data: the split to draw from.
        batch_size: sequences in a global batch, over all ranks.
        seed: decides the permutations.
        rank: this process, 0 … world_size - 1.
        world_size: processes that share a global batch; divides batch_size.

    Raises:
        PriorError: fewer rows than a batch, or a batch that does not divide over the ranks.
    """

    def __init__(self, data: CodeData, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if data.rows < batch_size:
            raise PriorError(f"batch_size = {batch_size}: the split has only {data.rows} rows; use at most that")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise PriorError(
                f"batch_size = {batch_size}, rank {rank} of {world_size}: use a batch that divides over the ranks"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.batches_per_epoch = data.rows // batch_size
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None
        self.step = 0
        """Batches handed out so far, over all epochs."""

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Row numbers of global batch `step`, the same on every rank."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = (epoch, epoch_permutation(self.data.rows, self.seed, epoch))
        return self._shuffled[1][index * self.batch_size : (index + 1) * self.batch_size]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = self.data.take(self.rows_of(self.step)[self._mine])
        self.step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next batch, as plain values."""
        return {
            "step": self.step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "data": self.data.identity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; costs the same at any step.

        Raises:
            PriorError: the state belongs to other data, another seed or another batch size.
        """
        mine = self.state_dict()
        for name in ("data", "seed", "batch_size"):
            if state.get(name) != mine[name]:
                raise PriorError(f"cannot resume the loader: {name} was {state.get(name)!r} and is {mine[name]!r} now")
        self.step = int(state["step"])


def epoch_permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A uniformly random permutation of range(rows), fixed by (seed, epoch).

    Sorting raw generator output, because numpy promises that stream for ever, but not the result of its
    `permutation`: a run must resume into the same batches after an upgrade.
    """
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    return np.argsort(bits.random_raw(rows), kind="stable").astype(np.int64, copy=False)


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
