"""Blends: one stream of batches from several datasets of shards, in given proportions.

Row n of the stream is from the dataset that a repeated schedule names, and is the next row of that dataset's own
endless sequence of shuffled epochs. Both follow from n alone, so that a run resumes at any step without a replay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import zip_longest
from numbers import Real
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codeprior.config import PriorError, SequenceSpec, TrainConfig
from codeprior.data import Batch, Batches, CodeBatches, CodeData, differences, random_bits, sequence_from_dataset
from codeprior.stream import StreamBatches
from codeshards.format import ShardDataset, Where, absolute
from runkit.codes import Codes

Shards: TypeAlias = "Where | Mapping[Any, float]"
"""A folder or URL of a dataset of shards, or a mapping from several to their weights."""

_MOST_CYCLE = 100_000  # rows after which a schedule repeats itself, at most: a limit of its table
_SOURCE = 31  # separates the seeds of the datasets from the permutations of epochs


def places(shards: Shards) -> list[Where]:
    """Return the folders or URLs of the datasets."""
    return list(shards) if isinstance(shards, Mapping) else [shards]


def absolute_shards(shards: Shards) -> Shards:
    """Return the same with absolute paths, for a process with another working directory."""
    if isinstance(shards, Mapping):
        return {absolute(place): weight for place, weight in shards.items()}
    return absolute(shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blend:
    """The datasets of a run, which are often only one."""

    datasets: tuple[ShardDataset, ...]
    """The datasets, in the sequence in which they were given."""
    rows_per_cycle: tuple[int, ...]
    """Rows of each dataset in a cycle of the schedule; (1,) for one dataset."""

    @classmethod
    def open(cls, shards: Shards, *, known: str = "") -> Self:
        """Open one dataset, or several with weights.

        Args:
            shards: The folder or URL of a dataset, or a mapping from several to their weights.
            known: The fingerprint of an earlier run; datasets to which columns were added since keep theirs, see
                :attr:`ShardDataset.fingerprint`.

        Raises:
            ShardError: A dataset cannot be opened or is given twice, or a weight is not a positive number.
        """
        if not isinstance(shards, Mapping):
            return cls(datasets=(ShardDataset.open(shards, known=known),), rows_per_cycle=(1,))
        if len(shards) < 2:
            raise PriorError(f"a blend of {len(shards)} datasets: give several, or the path of one without a weight")
        parts = rows_per_cycle({str(place): weight for place, weight in shards.items()})
        marks = known.split()[3::2] if known.startswith("blend of ") else []  # as `fingerprint` writes them
        marks = marks if len(marks) == len(shards) else []
        datasets = tuple(
            ShardDataset.open(place, known=mark.rstrip(",")) for place, mark in zip_longest(shards, marks, fillvalue="")
        )
        seen: dict[str, ShardDataset] = {}
        for dataset in datasets:
            if (other := seen.setdefault(dataset.fingerprint, dataset)) is not dataset:
                raise PriorError(f"{other.path} and {dataset.path} are the same dataset: give it once, with one weight")
        return cls(datasets=datasets, rows_per_cycle=parts)

    @property
    def proportions(self) -> tuple[float, ...]:
        """Share of each dataset in the rows of the stream."""
        return tuple(rows / sum(self.rows_per_cycle) for rows in self.rows_per_cycle)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of one dataset; of a blend, the fingerprints and the proportions of all."""
        if len(self.datasets) == 1:
            return self.datasets[0].fingerprint
        cycle = sum(self.rows_per_cycle)
        parts = zip(self.rows_per_cycle, self.datasets, strict=True)
        return "blend of " + ", ".join(f"{rows}/{cycle} {dataset.fingerprint}" for rows, dataset in parts)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of any of the datasets."""
        return tuple(sorted({split for dataset in self.datasets for split in dataset.splits}))

    def rows(self, split: str) -> int:
        """Rows of a split of all datasets together."""
        return sum(dataset.rows(split) for dataset in self.datasets if split in dataset.splits)

    def sequence(self, config: TrainConfig) -> SequenceSpec:
        """Return the meaning of the sequences, which is the same in all datasets.

        Raises:
            PriorError: A dataset does not fit the config, or two datasets do not fit each other.
        """
        first, *others = self.datasets
        options = {
            "order": config.order, "condition": config.condition, "scales": config.multiscale,
            "objective": config.objective,
        }  # fmt: skip
        found = [sequence_from_dataset(first, **options)]  # type: ignore[arg-type]
        for other in others:
            if wrong := differences(other, found[0]):
                raise PriorError(
                    f"{first.path} and {other.path} cannot be blended, because the second does not fit a prior of the "
                    f"first: {'; '.join(wrong)}. Blend datasets of the same tokenizers, orders and classes"
                )
            try:
                found.append(sequence_from_dataset(other, **options))  # type: ignore[arg-type]
            except PriorError as error:
                raise PriorError(f"{other.path}: {error}") from error
        # Classes may have names in some datasets only; without names, the highest label of all counts.
        return max(found, key=lambda one: (bool(one.class_names), *(part.vocabulary for part in one.conditions[:1])))

    def batches(self, config: TrainConfig, sequence: SequenceSpec, *, rank: int, world_size: int) -> Batches:
        """Return the batches of the training splits for one rank."""
        ranks: dict[str, Any] = {"rank": rank, "world_size": world_size}
        if len(self.datasets) == 1:
            options = {"batch_size": config.batch_size, "seed": config.seed, **ranks}
            return _open(self.datasets[0], config, sequence, config.shuffle_rows, **options)
        sources = []
        for number, (dataset, share) in enumerate(zip(self.datasets, self.proportions, strict=True)):
            # With parts of the window, the datasets together take the memory of one, and their windows last equally.
            window = max(1, round(share * config.shuffle_rows))
            seed = int(random_bits(1, config.seed, number, _SOURCE)[0] >> 1)
            sources.append(_open(dataset, config, sequence, window, batch_size=world_size, seed=seed, **ranks))
        identity = f"{self.fingerprint}/train"
        return BlendBatches(
            sources, self.rows_per_cycle, identity, batch_size=config.batch_size, seed=config.seed, **ranks
        )


def _open(
    dataset: ShardDataset, config: TrainConfig, sequence: SequenceSpec, shuffle_rows: int, **options: Any
) -> Batches:
    views = config.views == "one"
    if config.loader == "stream":
        return StreamBatches(dataset, "train", sequence, shuffle_rows=shuffle_rows, views=views, **options)
    return CodeBatches(CodeData.open(dataset, "train", sequence, views=views), **options)


class BlendBatches(Batches):
    """Batches of several datasets. Each one's rows are exact shuffles of its own epochs, one after the other.

    An epoch of a blend is as many rows as all datasets have together. Nothing restarts there.

    Args:
        sources: Batches of each dataset, whose rows are taken.
        parts: Rows of each in a cycle of the schedule.
        identity: Fingerprint of the blend.
        options: As for :class:`codeprior.data.Batches`.
    """

    def __init__(self, sources: Sequence[Batches], parts: Sequence[int], identity: str, **options: Any) -> None:
        super().__init__(sum(source.epoch_rows for source in sources), identity, **options)
        self._sources, self._parts = tuple(sources), tuple(parts)
        self._schedule = schedule(parts)
        self._before = np.empty(len(self._schedule), np.int64)
        """Rows of the same dataset earlier in the cycle."""
        for number, rows in enumerate(parts):
            self._before[self._schedule == number] = np.arange(rows)

    @property
    def sources(self) -> tuple[Batches, ...]:
        """Batches of each dataset."""
        return self._sources

    def take(self, epoch: int, first: int, end: int) -> Batch:
        """Return rows first … end - 1 of an epoch."""
        start = epoch * self.batches_per_epoch * self.batch_size
        cycles, slots = np.divmod(np.arange(start + first, start + end), len(self._schedule))
        numbers = self._schedule[slots]
        order = np.argsort(numbers, kind="stable")
        found: list[Batch] = []
        for number, source in enumerate(self._sources):
            mine = np.flatnonzero(numbers == number)
            if len(mine):
                begin = int(cycles[mine[0]]) * self._parts[number] + int(self._before[slots[mine[0]]])
                found.extend(_consecutive(source, begin, begin + len(mine)))
        return Batch.join(found).pick(np.argsort(order))

    def codes(self) -> Iterator[Codes]:
        """Yield this rank's part of the image codes of all datasets, in pieces."""
        for source in self._sources:
            yield from source.codes()


def _consecutive(source: Batches, begin: int, end: int) -> Iterator[Batch]:
    """Yield rows begin … end - 1 of a dataset's epochs, counted over all epochs."""
    while begin < end:
        epoch, first = divmod(begin, source.epoch_rows)
        last = min(first + end - begin, source.epoch_rows)
        yield source.take(epoch, first, last)
        begin += last - first


def rows_per_cycle(weights: Mapping[str, float]) -> tuple[int, ...]:
    """Return how many rows of each dataset a cycle has, for example (7, 3) for the weights 0.7 and 0.3.

    The proportions are those of the weights, or rounded to 1/100,000 if a longer cycle is required for them.

    Args:
        weights: Name → weight.

    Raises:
        PriorError: A weight is not a positive number, or too small beside the others.
    """
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise PriorError(f"the weight of {name} is {weight!r}: use a positive number, or leave the dataset out")
    exact = [Fraction(str(weight)) for weight in weights.values()]
    shares = [weight / sum(exact) for weight in exact]
    cycle = min(math.lcm(*(share.denominator for share in shares)), _MOST_CYCLE)
    parts = [math.floor(share * cycle) for share in shares]
    remainders = [share * cycle - rows for share, rows in zip(shares, parts, strict=True)]
    for number in sorted(range(len(parts)), key=lambda i: -remainders[i])[: cycle - sum(parts)]:
        parts[number] += 1
    for rows, (name, weight) in zip(parts, weights.items(), strict=True):
        if rows == 0:
            raise PriorError(
                f"the weight of {name} is {weight!r}, less than 1 row of {_MOST_CYCLE:,}: use a larger one, or leave "
                "the dataset out"
            )
    divisor = math.gcd(*parts)
    return tuple(rows // divisor for rows in parts)


def schedule(parts: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of the dataset of each row of a cycle.

    In every prefix the rows of a dataset are its share of the prefix, rounded down or up: Balinski and Young's quota
    method (1975). After a cycle all shares are exact, so that this holds for every prefix of the repeated cycle too.
    """
    cycle, given = sum(parts), [0] * len(parts)
    found = np.empty(cycle, np.int64)
    for place in range(cycle):
        due = [number for number, rows in enumerate(parts) if given[number] * cycle < (place + 1) * rows]
        found[place] = chosen = min(due, key=lambda number: (given[number] + 1) / parts[number])
        given[chosen] += 1
    return found
