"""From token shards to batches: decode a column once, then read rows at random from a memory map.

Axes: N rows of a split, B batch, T image codes of a sequence, C condition tokens.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from codeprior.config import PriorError, SequenceSpec, condition_parts
from codeshards.format import OrderName, ShardDataset, WriteError, atomic_write

_VIEWS = 1  # a key of its own for the draw of views, beside the epoch's permutation
CACHE_VERSION = 1
"""Part of every cache file's address: raise it when the bytes in the files change meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences ready for the model."""

    condition_BC: Tensor
    """int64 condition tokens; zeros [B, 1] where there is no condition."""
    codes_BT: Tensor
    """int64 image codes in sequence order: what is predicted."""
    inputs_BT: Tensor | None = None
    """What the model reads in place of codes_BT, where some input codes are replaced."""
    positions_BT: Tensor | None = None
    """Places of the codes in the prior's order, where the sequences are permuted."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name: the arguments of `Prior.nll`."""
        found = {name: getattr(self, name) for name in ("condition_BC", "codes_BT", "inputs_BT", "positions_BT")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device) -> Self:
        """The same batch on another device; does not wait for the copy, which pinned memory makes possible."""
        if device.type == "cuda":
            moved = {name: t.pin_memory().to(device, non_blocking=True) for name, t in self.tensors().items()}
        else:
            moved = {name: t.to(device) for name, t in self.tensors().items()}
        return type(self)(**moved)

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Several batches as one."""
        return cls(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()})

    def split(self, parts: int) -> list[Self]:
        """The batch in equal parts, for gradient accumulation."""
        chunks = {name: tensor.chunk(parts) for name, tensor in self.tensors().items()}
        return [type(self)(**{name: chunk[i] for name, chunk in chunks.items()}) for i in range(parts)]


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
    bytes, so a changed dataset can never be served from an old file. Of processes that start together one
    decodes and the others wait. Where a file system knows no locks all of them decode; each renames a complete
    file into place, so a reader never sees half of one.

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
            with _locked(path.parent):
                if not path.exists():
                    _decode(dataset, split, column, path)
        except (OSError, WriteError) as error:
            raise PriorError(
                f"cannot write the decoded codes to {path.parent} ({error}): "
                "set IMAGEPRIORS_CACHE to a writable folder with room"
            ) from error
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:  # a header that is none, or fewer bytes than it promises
        raise PriorError(f"{path} is damaged ({error}): delete the file and try again") from error
    if len(array) != rows:
        raise PriorError(f"{path} holds {len(array)} rows, the dataset {rows}: delete the file and try again")
    return np.asarray(array)  # a plain view of the map: np.memmap's own indexing is slower


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when a process dies, so none is ever left behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _decode(dataset: ShardDataset, split: str, column: str, path: Path) -> None:
    dataset.check(split)  # once, here: what is decoded is read for as long as the file lies there
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

    grids_NT: tuple[NDArray[np.uint16], ...]
    """Image codes in sequence order, one array for each grid of a sequence: [N, codes of the grid]."""
    conditions_NC: tuple[NDArray[Any], ...]
    """Condition tokens (uint16 codes or int32 class ids), one array for each condition."""
    identity: str
    """What the rows are: the dataset's fingerprint and the split."""
    views_N: NDArray[np.uint8] | None = None
    """View number of every row, where views are drawn; a sample's rows follow one another from view 0 on."""

    @property
    def rows(self) -> int:
        """Sequences in the split."""
        return len(self.grids_NT[-1])

    @classmethod
    def open(cls, dataset: ShardDataset, split: str, sequence: SequenceSpec, *, views: bool = False) -> Self:
        """Map the columns that this sequence needs, and with `views` that of the views.

        Raises:
            ShardError: the shards are not what the sequence says, a class label is missing or beyond the
                classes, or the split cannot be mapped.
        """
        check_shards(dataset, sequence)
        conditions = []
        for part in sequence.conditions:
            if part.name == "class":
                conditions.append(memory_map(dataset, split, part.column)[:, None])
                check_labels(conditions[-1], split, part.vocabulary)
            else:
                conditions.append(memory_map(dataset, split, part.column))
        return cls(
            grids_NT=sequence.in_sequence([memory_map(dataset, split, column) for column in sequence.columns]),
            conditions_NC=tuple(conditions),
            identity=f"{dataset.fingerprint}/{split}",
            views_N=memory_map(dataset, split, "view") if views else None,
        )

    def take(self, rows: NDArray[np.int64] | slice) -> Batch:
        """These rows as int64 tensors."""
        codes_BT = _join(self.grids_NT, rows)
        if self.conditions_NC:
            return Batch(condition_BC=_join(self.conditions_NC, rows), codes_BT=codes_BT)
        return Batch(condition_BC=torch.zeros((len(codes_BT), 1), dtype=torch.int64), codes_BT=codes_BT)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in the dataset's order; the last batch may be smaller."""
        for start in range(0, self.rows, batch_size):
            yield self.take(slice(start, start + batch_size))


def _join(columns: tuple[NDArray[Any], ...], rows: NDArray[np.int64] | slice) -> Tensor:
    taken = [column[rows].astype(np.int64) for column in columns]
    return torch.from_numpy(taken[0] if len(taken) == 1 else np.concatenate(taken, axis=1))


def check_shards(dataset: ShardDataset, sequence: SequenceSpec) -> None:
    """Refuse shards that are not what a prior's sequences are made of, naming all that differs.

    The order tables need no check here: shards with other tables than this package's do not open at all.

    Raises:
        PriorError: another grid, codebook or tokenizer, or no such order, scale or condition.
    """
    spec, wrong = dataset.spec, []

    def compare(what: str, expected: object, found: object) -> None:
        if expected != found:
            wrong.append(f"{what}: the prior wants {expected}, the shards have {found}")

    compare("grid", f"{sequence.height}×{sequence.width}", f"{spec.image.height}×{spec.image.width}")
    compare("codebook_size", sequence.codebook_size, spec.image.codebook_size)
    compare("tokenizer", sequence.fingerprint, spec.image.fingerprint)
    if sequence.order not in spec.orders:
        wrong.append(f"order: the prior wants {sequence.order}, the shards have {', '.join(spec.orders)}")
    if not set(sequence.scales) <= set(spec.scales):
        wrong.append(f"scales: the prior wants {sequence.scales}, the shards have {spec.scales}")
    for part in sequence.conditions:
        grid = spec.conditions.get(part.name)
        if part.name != "class" and grid is None:
            wrong.append(f"condition {part.name}: the shards have {', '.join(sorted(spec.conditions)) or 'none'}")
        elif grid is not None:
            compare(f"{part.name} grid", f"{part.height}×{part.width}", f"{grid.height}×{grid.width}")
            compare(f"{part.name} codebook_size", part.vocabulary, grid.codebook_size)
            compare(f"{part.name} tokenizer", part.fingerprint, grid.fingerprint)
    if wrong:
        raise PriorError(f"{dataset.path} does not fit this prior: {'; '.join(wrong)}")


def check_labels(labels_N1: NDArray[np.int32], split: str, class_count: int) -> None:
    """Refuse rows without a label, or with one beyond the classes."""
    missing = int((labels_N1 < 0).sum())
    if missing:
        raise PriorError(
            f"condition 'class': {missing} of {len(labels_N1)} rows in split {split!r} have no label; "
            "tokenize a labelled dataset or train with condition 'none'"
        )
    if int(labels_N1.max()) >= class_count:
        raise PriorError(f"split {split!r} has label {labels_N1.max()}, but there are {class_count} classes")


def sequence_from_dataset(
    dataset: ShardDataset, order: OrderName, condition: str, *, scales: bool = False
) -> SequenceSpec:
    """The sequence spec of a dataset; unnamed classes are counted from the training labels."""
    class_count = len(dataset.class_names)
    if "class" in condition_parts(condition) and class_count == 0:
        class_count = 1 + max(int(batch["label"].max()) for batch in dataset.batches("train", ["label"]))
    return SequenceSpec.from_shards(
        dataset.spec,
        order=order,
        condition=condition,
        class_count=class_count,
        class_names=dataset.class_names,
        scales=scales,
    )


class Batches(ABC):
    """Endless training batches; batch t of epoch e is a pure function of (seed, e, t).

    An epoch's ragged tail is dropped, so all batches are equal. The rows of a global batch do not depend on
    world_size: rank r gets the r-th equal part of them, so a run may go on with another number of ranks.

    Args:
        rows: rows of an epoch.
        identity: what the rows are.
        batch_size: sequences in a global batch, over all ranks.
        seed: decides the permutations.
        rank: this process, 0 … world_size - 1.
        world_size: processes that share a global batch; divides batch_size.

    Raises:
        PriorError: fewer rows than a batch, or a batch that does not divide over the ranks.
    """

    def __init__(
        self, rows: int, identity: str, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if rows < batch_size:
            raise PriorError(f"batch_size = {batch_size}: an epoch has only {rows} rows; use at most that")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise PriorError(
                f"batch_size = {batch_size}, rank {rank} of {world_size}: use a batch that divides over the ranks"
            )
        self.epoch_rows, self.identity, self.batch_size, self.seed = rows, identity, batch_size, seed
        self.batches_per_epoch = rows // batch_size
        share = batch_size // world_size
        self.mine = slice(rank * share, (rank + 1) * share)
        """This rank's rows of a global batch."""
        self.step = 0
        """Batches handed out so far, over all epochs."""

    @abstractmethod
    def at(self, step: int) -> Batch:
        """This rank's part of global batch `step`."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = self.at(self.step)
        self.step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next batch, as plain values."""
        return {"step": self.step, "seed": self.seed, "batch_size": self.batch_size, "data": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; costs the same at any step.

        Raises:
            PriorError: the state belongs to other data, another seed or another batch size.
        """
        mine = self.state_dict()
        for name in mine.keys() - {"step"}:
            if state.get(name) != mine[name]:
                raise PriorError(f"cannot resume the loader: {name} was {state.get(name)!r} and is {mine[name]!r} now")
        self.step = int(state["step"])


class CodeBatches(Batches):
    """Batches from a memory map: every epoch is an exact shuffle of the split, or of one view of each sample."""

    def __init__(self, data: CodeData, **options: Any) -> None:
        self.data = data
        self._samples = None if data.views_N is None else sample_starts(data.views_N)
        rows = data.rows if self._samples is None else len(self._samples) - 1
        super().__init__(rows, data.identity, **options)
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Row numbers of global batch `step`, the same on every rank."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if self._shuffled is None or self._shuffled[0] != epoch:
            rows = epoch_permutation(self.epoch_rows, self.seed, epoch)
            if self._samples is not None:
                rows = draw_views(self._samples, self.seed, epoch)[rows]
            self._shuffled = (epoch, rows)
        return self._shuffled[1][index * self.batch_size : (index + 1) * self.batch_size]

    def at(self, step: int) -> Batch:
        """This rank's part of global batch `step`."""
        return self.data.take(self.rows_of(step)[self.mine])


def sample_starts(views_N: NDArray[np.uint8]) -> NDArray[np.int64]:
    """First row of every sample, and the number of rows at the end: [samples + 1]. View 0 starts a sample."""
    if len(views_N) == 0 or views_N[0] != 0:
        raise PriorError("views = 'one': the first row is not a view 0; use views 'all', or tokenize again")
    return np.append(np.flatnonzero(views_N == 0), len(views_N))


def draw_views(starts: NDArray[np.int64], seed: int, *keys: int) -> NDArray[np.int64]:
    """A random row of each sample, fixed by (seed, keys)."""
    return starts[:-1] + (random_bits(len(starts) - 1, seed, *keys, _VIEWS) % np.diff(starts).astype(np.uint64)).astype(
        np.int64
    )


def random_bits(count: int, seed: int, *keys: int) -> NDArray[np.uint64]:
    """Random 64-bit numbers, fixed by (seed, keys).

    Raw generator output, because numpy promises that stream for ever, but not the results of its distributions:
    a run must resume into the same batches after an upgrade.
    """
    bits: NDArray[np.uint64] = np.random.PCG64(np.random.SeedSequence((seed, *keys))).random_raw(count)
    return bits


def epoch_permutation(rows: int, seed: int, *keys: int) -> NDArray[np.int64]:
    """A uniformly random permutation of range(rows), fixed by (seed, keys)."""
    return np.argsort(random_bits(rows, seed, *keys), kind="stable").astype(np.int64, copy=False)
