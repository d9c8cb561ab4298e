"""Batches of token shards: random rows of memory-mapped columns.

Axes: N rows of a split, B batch, T image codes of a sequence, C condition tokens.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codeprior.cache import memory_map
from codeprior.config import Objective, PriorError, SequenceSpec, condition_parts
from codeshards.format import OrderName, ShardDataset
from runkit.codes import Codes
from runkit.jsonfiles import parse_json

_PIECE_ROWS = 8192  # bounds the memory of a pass over a split
_VIEWS = 1  # separates the draw of views from the epoch's permutation


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Sequences ready for the model."""

    condition_BC: Tensor
    """int64 condition tokens; zeros [B, 1] where there is no condition."""
    codes_BT: Tensor
    """int64 image codes in sequence order, the targets."""
    inputs_BT: Tensor | None = None
    """The inputs, if some of them are replaced; else codes_BT is read."""
    positions_BT: Tensor | None = None
    """Positions of the codes in the prior's order, if the sequences are permuted."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are set, by name: the arguments of `Prior.nll`."""
        found = {name: getattr(self, name) for name in ("condition_BC", "codes_BT", "inputs_BT", "positions_BT")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device) -> Self:
        """Return the batch on another device; the copy from pinned memory is asynchronous."""
        if device.type == "cuda":
            moved = {name: t.pin_memory().to(device, non_blocking=True) for name, t in self.tensors().items()}
        else:
            moved = {name: t.to(device) for name, t in self.tensors().items()}
        return type(self)(**moved)

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Concatenate batches."""
        return cls(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()})

    def pick(self, rows: NDArray[np.int64]) -> Self:
        """Return these rows, in this sequence."""
        index = torch.from_numpy(rows)
        return type(self)(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def split(self, parts: int) -> list[Self]:
        """Split the batch into equal parts, for gradient accumulation."""
        chunks = {name: tensor.chunk(parts) for name, tensor in self.tensors().items()}
        return [type(self)(**{name: chunk[i] for name, chunk in chunks.items()}) for i in range(parts)]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeData:
    """One split of a dataset, as the sequences that a prior reads."""

    sequence: SequenceSpec
    """The meaning of the sequences."""
    grids_NT: tuple[Codes, ...]
    """Image codes in the layout of `sequence.columns`, one array [N, codes of the grid] for each grid of a sequence."""
    conditions_NC: tuple[NDArray[Any], ...]
    """Condition tokens (unsigned codes or int32 class ids), one array for each condition."""
    identity: str
    """Fingerprint of the dataset, and the split."""
    views_N: NDArray[np.uint8] | None = None
    """View number of every row, if views are drawn; the rows of a sample are consecutive, view 0 first."""

    @property
    def rows(self) -> int:
        """Number of sequences in the split."""
        return len(self.grids_NT[-1])

    @classmethod
    def open(cls, dataset: ShardDataset, split: str, sequence: SequenceSpec, *, views: bool = False) -> Self:
        """Map the columns that this sequence requires, and with `views` the view numbers.

        Raises:
            ShardError: The shards do not fit the sequence, a class label is missing or out of range, or the split
                cannot be mapped.
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
            sequence=sequence,
            grids_NT=tuple(memory_map(dataset, split, column) for column in sequence.columns),
            conditions_NC=tuple(conditions),
            identity=f"{dataset.fingerprint}/{split}",
            views_N=memory_map(dataset, split, "view") if views else None,
        )

    def take(self, rows: NDArray[np.int64] | slice) -> Batch:
        """Return these rows as int64 tensors; :func:`checked` checks their codes."""
        # Grids are permuted here and not in `open`, where it would copy the whole memory map.
        grids = self.sequence.in_sequence([grid[rows] for grid in self.grids_NT])
        conditions = [condition[rows] for condition in self.conditions_NC]
        codes_BT = _join(grids)
        condition_BC = _join(conditions) if conditions else torch.zeros((len(codes_BT), 1), dtype=torch.int64)
        return Batch(condition_BC=condition_BC, codes_BT=codes_BT)

    def codes(self, part: int = 0, parts: int = 1) -> Iterator[Codes]:
        """Yield all image codes in pieces [n, codes of a grid]; with `parts`, only one part of the pieces."""
        for grid_NT in self.grids_NT:
            for start in range(part * _PIECE_ROWS, len(grid_NT), parts * _PIECE_ROWS):
                yield grid_NT[start : start + _PIECE_ROWS]


def _join(columns: Sequence[NDArray[Any]]) -> Tensor:
    wide = [column.astype(np.int64) for column in columns]
    return torch.from_numpy(wide[0] if len(wide) == 1 else np.concatenate(wide, axis=1))


def check_codes(codes: NDArray[Any], size: int, what: str) -> None:
    """Refuse codes that are not in their codebook, because an index error would not say which."""
    if codes.size and (highest := int(codes.max())) >= size:
        raise PriorError(
            f"{what} holds the code {highest}, its codebook 0 … {size - 1}: verify the dataset; if it is intact, "
            "delete its decoded columns in $IMAGEPRIORS_CACHE, its .cache, or for URLs ~/.cache/imagepriors"
        )


def checked(batch: Batch, sequence: SequenceSpec) -> Batch:
    """Return a batch on the CPU after checking its codes.

    Raises:
        PriorError: A code is not in its codebook.
    """
    check_codes(batch.codes_BT.numpy(), sequence.codebook_size, " or ".join(sequence.columns))
    widths = [part.length for part in sequence.conditions]
    for part, tokens in zip(
        sequence.conditions, torch.split(batch.condition_BC, widths, 1) if widths else (), strict=True
    ):
        check_codes(tokens.numpy(), part.vocabulary, part.column)
    return batch


def check_shards(dataset: ShardDataset, sequence: SequenceSpec) -> None:
    """Refuse shards that do not fit a prior's sequences, naming all differences.

    Raises:
        PriorError: The grid, codebook or tokenizer is another one, or an order, a scale or a condition is missing.
    """
    if wrong := differences(dataset, sequence):
        raise PriorError(f"{dataset.path} does not fit this prior: {'; '.join(wrong)}")


def differences(dataset: ShardDataset, sequence: SequenceSpec) -> list[str]:
    """Return in what shards do not fit a prior's sequences; nothing if they fit.

    The order tables are not compared, because shards with other tables cannot be opened.
    """
    spec, wrong = dataset.spec, list[str]()

    def compare(what: str, expected: object, found: object) -> None:
        if expected != found:
            wrong.append(f"{what}: the prior requires {expected}, the shards have {found}")

    compare("grid", f"{sequence.height}×{sequence.width}", f"{spec.image.height}×{spec.image.width}")
    compare("codebook_size", sequence.codebook_size, spec.image.codebook_size)
    compare("tokenizer", sequence.fingerprint, spec.image.fingerprint)
    if sequence.order not in spec.orders:
        wrong.append(f"order: the prior requires {sequence.order}, the shards have {', '.join(spec.orders)}")
    if not set(sequence.scales) <= set(spec.scales):
        wrong.append(f"scales: the prior requires {sequence.scales}, the shards have {spec.scales}")
    for part in sequence.conditions:
        grid = spec.conditions.get(part.name)
        if part.name == "class" and sequence.class_names and dataset.class_names:
            compare("classes", _listed(sequence.class_names), _listed(dataset.class_names))
        elif part.name != "class" and grid is None:
            wrong.append(f"condition {part.name}: the shards have {', '.join(sorted(spec.conditions)) or 'none'}")
        elif grid is not None:
            compare(f"{part.name} grid", f"{part.height}×{part.width}", f"{grid.height}×{grid.width}")
            compare(f"{part.name} codebook_size", part.vocabulary, grid.codebook_size)
            compare(f"{part.name} tokenizer", part.fingerprint, grid.fingerprint)
    return wrong


def _listed(names: Sequence[str]) -> str:
    """Return class names in a form that is short and differs for any two lists."""
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return f"{len(names)} ({', '.join(names[:3])}{', …' * (len(names) > 3)}; {digest})"


def check_labels(labels_N1: NDArray[np.int32], split: str, class_count: int) -> None:
    """Refuse rows whose label is missing or out of range."""
    missing = int((labels_N1 < 0).sum())
    if missing:
        raise PriorError(
            f"condition 'class': {missing} of {len(labels_N1)} rows in split {split!r} have no label; "
            "tokenize a labelled dataset or train with condition 'none'"
        )
    if int(labels_N1.max()) >= class_count:
        raise PriorError(f"split {split!r} has label {labels_N1.max()}, but there are {class_count} classes")


def sequence_from_dataset(
    dataset: ShardDataset,
    order: OrderName,
    condition: str,
    *,
    scales: bool = False,
    objective: Objective = "ordered",
) -> SequenceSpec:
    """Return the sequence spec of a dataset; classes without names are counted by the training labels."""
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
        objective=objective,
    )


class Batches(ABC):
    """Endless training batches; batch t of epoch e is a pure function of (seed, e, t).

    The last incomplete batch of an epoch is dropped. The rows of a global batch do not depend on world_size: rank r
    gets the r-th equal part of them, so a run may resume with another number of ranks.

    Args:
        rows: Rows per epoch.
        identity: Fingerprint of the rows.
        batch_size: Sequences per global batch, over all ranks.
        seed: Determines the permutations.
        rank: This process, 0 … world_size - 1.
        world_size: Number of processes; divides batch_size.

    Raises:
        PriorError: There are fewer rows than a batch, or the batch cannot be divided among the ranks.
    """

    def __init__(
        self, rows: int, identity: str, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if rows < batch_size:
            raise PriorError(f"batch_size = {batch_size}: an epoch has only {rows} rows; use at most that")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise PriorError(
                f"batch_size = {batch_size}, rank {rank} of {world_size}: use a multiple of the number of ranks"
            )
        self.epoch_rows, self.identity, self.batch_size, self.seed = rows, identity, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.batches_per_epoch = rows // batch_size
        share = batch_size // world_size
        self.mine = slice(rank * share, (rank + 1) * share)
        """This rank's rows of a global batch."""
        self.step = 0
        """Number of batches returned so far, over all epochs."""

    def at(self, step: int) -> Batch:
        """Return this rank's part of global batch `step`."""
        epoch, index = divmod(step, self.batches_per_epoch)
        first = index * self.batch_size
        return self.take(epoch, first + self.mine.start, first + self.mine.stop)

    @abstractmethod
    def take(self, epoch: int, first: int, end: int) -> Batch:
        """Return rows first … end - 1 of an epoch, in the sequence in which its batches have them."""

    @property
    def sources(self) -> tuple[Batches, ...]:
        """The datasets that the rows come from: for one dataset, this object alone."""
        return (self,)

    @abstractmethod
    def codes(self) -> Iterator[Codes]:
        """Yield this rank's part of the image codes of the split, in pieces [n, codes of a grid]."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = self.at(self.step)
        self.step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return all that determines the next batch, as plain values."""
        return {"step": self.step, "seed": self.seed, "batch_size": self.batch_size, "data": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; takes the same time at any step.

        Raises:
            PriorError: The state belongs to other data, another seed or another batch size.
        """
        mine = self.state_dict()
        for name in mine.keys() - {"step"}:
            if state.get(name) != mine[name]:
                raise PriorError(f"cannot resume the loader: {name} was {state.get(name)!r} and is {mine[name]!r} now")
        self.step = int(state["step"])


class CodeBatches(Batches):
    """Batches of a memory map: every epoch is an exact shuffle of the split, or of one view per sample."""

    def __init__(self, data: CodeData, **options: Any) -> None:
        self.data = data
        self._samples = None if data.views_N is None else sample_starts(data.views_N)
        rows = data.rows if self._samples is None else len(self._samples) - 1
        super().__init__(rows, data.identity, **options)
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None

    def take(self, epoch: int, first: int, end: int) -> Batch:
        """Return rows first … end - 1 of an epoch."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            rows = epoch_permutation(self.epoch_rows, self.seed, epoch)
            if self._samples is not None:
                rows = draw_views(self._samples, self.seed, epoch)[rows]
            self._shuffled = (epoch, rows)
        return self.data.take(self._shuffled[1][first:end])

    def codes(self) -> Iterator[Codes]:
        """Yield this rank's part of the image codes of the split, in pieces."""
        return self.data.codes(self.rank, self.world_size)


def sample_starts(views_N: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the first row of every sample, then the number of rows, [samples + 1]. View 0 starts a sample."""
    if len(views_N) == 0 or views_N[0] != 0:
        raise PriorError("views = 'one': the first row is not a view 0; use views 'all', or tokenize again")
    return np.append(np.flatnonzero(views_N == 0), len(views_N))


def draw_views(starts: NDArray[np.int64], seed: int, *keys: int) -> NDArray[np.int64]:
    """Return a random row of each sample, determined by (seed, keys)."""
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
    """Return a uniformly random permutation of range(rows), determined by (seed, keys)."""
    return np.argsort(random_bits(rows, seed, *keys), kind="stable").astype(np.int64, copy=False)


def pixel_dims(dataset: ShardDataset) -> int | None:
    """Return height · width · channels of an image, from the tokenizer's config beside the shards; None without it.

    Bits per dimension count the codes only: the rate of the compressed image, not a likelihood of the pixels.
    """
    try:
        place = dataset.path / "tokenizer" / "config.json"
        model = parse_json(place.read_bytes(), place)["model"]
        channels = {"rgb": 3, "depth": 1}.get(model["modality"])
        return None if channels is None else int(model["resolution"]) ** 2 * channels
    except (OSError, ValueError, KeyError, TypeError):
        return None  # another kind of tokenizer, or none beside the shards
