"""The deterministic plan: assigns samples to shards before anything is encoded.

The unit is a sample with all its views. A worker requires only a :class:`PlannedShard` and its sample indices. The rows
of a shard do not depend on which worker encodes it, when, and how often.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from codeshards.format.errors import ShardError
from codeshards.format.files import atomic_write, atomic_write_json, compact_json, read_json
from codeshards.format.keys import Keys, check_groups, file_keys, groups_of, shuffled_keys
from codeshards.format.schema import FORMAT_VERSION
from runkit.names import plain_name
from runkit.places import Store, Where, open_store
from runkit.retries import patient
from runkit.tables import check_table, open_table

PLAN_FILE = "plan.json"
SAMPLES_FILE = "samples.parquet"
SHUFFLED_SPLIT = "train"
"""The only split that is shuffled; the others keep source order, so that reports follow the source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """Consecutive samples in planned order; the unit of work."""

    split: str
    """Split that the shard belongs to."""
    index: int
    """Index of the shard in its split."""
    start: int
    """Planned position of the first sample."""
    stop: int
    """Planned position after the last sample."""

    @property
    def name(self) -> str:
        """File name without its ending: ``shard-000000``."""
        return f"shard-{self.index:06d}"

    @property
    def samples(self) -> int:
        """Number of samples in this shard; each gives one row per view."""
        return self.stop - self.start

    def path(self, dataset: Where, suffix: str) -> Store:
        """``DATASET/<split>/shard-000000<suffix>``."""
        return open_store(dataset) / f"{self.split}/{self.name}{suffix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that determines the bytes of a dataset's shards. Make one with :func:`build_plan`."""

    settings: dict[str, Any]
    """JSON settings of the caller: tokenizer fingerprints, transform, shard spec, views, conditions."""
    views: int
    """Views per sample: rows = samples · views."""
    shard_rows: int
    """Requested rows per shard; a shard has ``max(1, shard_rows // views)`` samples with all their views."""
    shuffle_seed: int | None
    """Seed of the train split's shuffle; None keeps source order."""
    source_hashes: dict[str, str]
    """Split → hash that identifies its list of samples, computed by the caller."""
    keys: dict[str, Keys] = field(repr=False, compare=False)
    """Split → its sample keys in planned order."""
    keys_sha256: dict[str, str]
    """Split → sha256 over its keys in planned order."""

    @property
    def hash(self) -> str:
        """sha256 (hex) over everything that determines bytes; shards with another hash are not reused."""
        return hashlib.sha256(compact_json(self.to_json()).encode()).hexdigest()

    @property
    def scales_from(self) -> str:
        """What was pooled for the coarser scales; missing in plans of earlier versions."""
        return str(self.settings.get("scales_from", "continuous"))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in alphabetical order."""
        return tuple(self.keys)

    @property
    def shard_samples(self) -> int:
        """Number of samples in a full shard."""
        return max(1, self.shard_rows // self.views)

    @property
    def shards(self) -> tuple[PlannedShard, ...]:
        """Every shard of every split."""
        return tuple(self.each_shard())

    def each_shard(self) -> Iterator[PlannedShard]:
        """As :attr:`shards`, one at a time: there may be a hundred thousand."""
        for split in self.keys:
            for index in range(self.shard_count(split)):
                yield self.shard(split, index)

    def shard_count(self, split: str) -> int:
        """Number of shards of a split."""
        return -(-len(self.keys[split]) // self.shard_samples)

    def shard(self, split: str, index: int) -> PlannedShard:
        """One shard of a split."""
        start = index * self.shard_samples
        stop = min(start + self.shard_samples, len(self.keys[split]))
        return PlannedShard(split=split, index=index, start=start, stop=stop)

    def sample_indices(self, shard: PlannedShard) -> npt.NDArray[np.int64]:
        """int64 [samples]: the shard's samples as indices into the source-ordered list of its split."""
        seed = _split_seed(shard.split, self.shuffle_seed)
        return planned_order(len(self.keys[shard.split]), seed)[shard.start : shard.stop]

    def sample_keys(self, shard: PlannedShard) -> list[str]:
        """The keys of the shard's samples, in the sequence of :meth:`sample_indices`."""
        keys: list[str] = self.keys[shard.split][shard.start : shard.stop].to_pylist()
        return keys

    def to_json(self) -> dict[str, Any]:
        """The content of :attr:`hash` as a JSON object."""
        return {
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "views": self.views,
            "shard_rows": self.shard_rows,
            "shuffle_seed": self.shuffle_seed,
            "splits": {
                split: {
                    "samples": len(keys),
                    "keys_sha256": self.keys_sha256[split],
                    "source_hash": self.source_hashes[split],
                }
                for split, keys in self.keys.items()
            },
        }


def build_plan(
    *,
    samples: Mapping[str, Sequence[str]],
    source_hashes: Mapping[str, str],
    settings: Mapping[str, Any],
    views: int,
    shard_rows: int,
    shuffle_seed: int | None,
) -> Plan:
    """Plan a dataset's shards.

    The train split is shuffled, because source folders are sorted by class and a shard of a single class makes a
    poor streaming buffer. The memory is that of a few int64 per sample; the keys of more than 2^20 samples are in
    temporary files.

    Args:
        samples: Split → sample keys in source order, of which slices are taken.
        source_hashes: Split → hash that identifies its source list.
        settings: JSON values of everything else that determines bytes.
        views: Views per sample, at least 1.
        shard_rows: Requested rows per shard.
        shuffle_seed: Seed of the train split's shuffle, None for source order.

    Raises:
        ShardError: A split is empty or unnamed, keys are bad or repeated, a number is out of range.
    """
    _check_numbers(views, shard_rows, shuffle_seed)
    if not samples or set(samples) != set(source_hashes):
        raise ShardError(f"splits with samples {sorted(samples)} and with source hashes {sorted(source_hashes)} differ")
    keys: dict[str, Keys] = {}
    for split, names in sorted(samples.items()):
        if not split or not split.isidentifier():
            raise ShardError(f"split name {split!r} is not allowed: use letters, digits and underscores")
        if not len(names):
            raise ShardError(f"split {split!r} has no samples. Leave it out or check the data folder")
        groups = groups_of(names)
        count = check_groups(groups, split, views)
        keys[split] = shuffled_keys(groups, planned_order(count, _split_seed(split, shuffle_seed)))
    return Plan(
        settings=json.loads(compact_json(dict(settings))),  # tuples become lists, as in the file
        views=views,
        shard_rows=shard_rows,
        shuffle_seed=shuffle_seed,
        source_hashes={split: source_hashes[split] for split in keys},
        keys=keys,
        keys_sha256={split: found.sha256() for split, found in keys.items()},
    )


def write_plan(plan: Plan, dataset: Where) -> None:
    """Write a plan into a dataset's folder: its keys as ``samples.parquet`` first, ``plan.json`` last."""
    folder = open_store(dataset)
    _write_samples(plan, folder / SAMPLES_FILE)
    ranges: dict[str, list[list[int]]] = {split: [] for split in plan.splits}
    for shard in plan.each_shard():
        ranges[shard.split].append([shard.start, shard.stop])
    atomic_write_json(folder / PLAN_FILE, {"hash": plan.hash, "plan": plan.to_json(), "shards": ranges})


def load_plan(dataset: Where) -> Plan:
    """The plan in a dataset's folder, with its keys.

    Raises:
        ShardError: It is missing, damaged, or its two files do not match.
    """
    folder = open_store(dataset)
    found = read_json(folder / PLAN_FILE)
    try:
        body, splits = found["plan"], found["plan"]["splits"]
        for name in splits:
            plain_name(name, folder / PLAN_FILE, ShardError)
        _check_numbers(body["views"], body["shard_rows"], body["shuffle_seed"])
        keys = _read_samples(folder / SAMPLES_FILE, {name: split["samples"] for name, split in splits.items()})
        plan = Plan(
            settings=body["settings"],
            views=body["views"],
            shard_rows=body["shard_rows"],
            shuffle_seed=body["shuffle_seed"],
            source_hashes={name: split["source_hash"] for name, split in splits.items()},
            keys=keys,
            keys_sha256={name: found.sha256() for name, found in keys.items()},
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ShardError(f"{folder / PLAN_FILE} is not a plan ({error!r})") from error
    if plan.hash != found.get("hash"):
        raise ShardError(f"{folder / PLAN_FILE} and {SAMPLES_FILE} do not match the plan's hash: one was changed")
    return plan


def plan_settings(dataset: Where) -> dict[str, Any]:
    """The settings of a dataset's plan, without its keys, of which there may be millions.

    Raises:
        ShardError: There is no plan, or it is damaged.
    """
    path = open_store(dataset) / PLAN_FILE
    try:
        settings = read_json(path)["plan"]["settings"]
    except (KeyError, TypeError) as error:
        raise ShardError(f"{path} is not a plan ({error!r})") from error
    if not isinstance(settings, dict):
        raise ShardError(f"{path} is not a plan: its settings are {settings!r}")
    return settings


@functools.lru_cache(maxsize=8)
def planned_order(samples: int, seed: int | None) -> npt.NDArray[np.int64]:
    """int64 [samples], read-only: planned position → index in source order.

    With a seed, samples are sorted by raw PCG64 output: numpy guarantees that stream for all versions, but not
    ``Generator.permutation``, and a plan must keep its meaning after an upgrade.
    """
    if seed is None:
        table = np.arange(samples, dtype=np.int64)
    else:
        table = np.argsort(np.random.PCG64(seed).random_raw(samples), kind="stable")
    table.flags.writeable = False
    return table


def _split_seed(split: str, shuffle_seed: int | None) -> int | None:
    return shuffle_seed if split == SHUFFLED_SPLIT else None


def _check_numbers(views: int, shard_rows: int, shuffle_seed: int | None) -> None:
    if not 1 <= views <= 256:
        raise ShardError(f"views is {views}: a sample has 1 to 256 views, because they are numbered by a uint8")
    if shard_rows < 1:
        raise ShardError(f"shard_rows is {shard_rows}: a shard requires at least one row")
    if shuffle_seed is not None and shuffle_seed < 0:
        raise ShardError(f"shuffle_seed is {shuffle_seed}: give 0 or more, or None for source order")


SAMPLES_SCHEMA = pa.schema(
    [pa.field("split", pa.string(), nullable=False), pa.field("key", pa.large_string(), nullable=False)]
)


@patient
def _write_samples(plan: Plan, path: Store) -> None:
    with atomic_write(path) as file, pq.ParquetWriter(file, SAMPLES_SCHEMA, compression="zstd") as writer:
        for split, keys in plan.keys.items():
            for group in keys.groups():
                split_column = pa.repeat(pa.scalar(split, pa.string()), len(group))
                writer.write_table(pa.Table.from_arrays([split_column, group], schema=SAMPLES_SCHEMA))


@patient
def _read_samples(path: Store, counts: Mapping[str, int]) -> dict[str, Keys]:
    """Split → its keys; plan.json gives their number, and the plan's hash covers them."""
    try:
        if path.local is not None:
            file = open_table(path.local, check_table(path.local, ShardError))
        else:
            file = pq.ParquetFile(path.open(), read_dictionary=["key"])
        if file.schema_arrow.names != SAMPLES_SCHEMA.names:
            raise ShardError(f"its columns are {', '.join(file.schema_arrow.names)}")
        return file_keys(file, counts)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ShardError(f"{path} cannot be read ({error})") from error


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """``name: old → new`` for every leaf of two JSON values that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name or 'plan'}: {json.dumps(old)} → {json.dumps(new)}"
