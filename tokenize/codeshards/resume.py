"""What of a plan is made already: found again after whatever happened, without holding every shard in memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from codeshards.format import Plan, PlannedShard, ShardError, Sidecar, Store, shard_is_done, sidecar_path
from codeshards.progress import kind_of

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_READERS = 32
"""Sidecars read at once: on a network's file system or an object store each costs a round trip."""
_BATCH = 1024
_NAMED = 10
"""Failures that the log names one by one."""


class MissingShards(Collection[PlannedShard]):
    """The planned shards that are to be made, in planned order: one bit a shard, however many there are."""

    def __init__(self, plan: Plan, missing: npt.NDArray[np.bool_]) -> None:
        self._plan, self._missing = plan, missing

    def __len__(self) -> int:
        return int(self._missing.sum())

    def __iter__(self) -> Iterator[PlannedShard]:
        return (shard for shard, missing in zip(each_shard(self._plan), self._missing, strict=True) if missing)

    def __contains__(self, shard: object) -> bool:
        return any(shard == mine for mine in self)


def each_shard(plan: Plan) -> Iterator[PlannedShard]:
    """The planned shards one after another; `plan.shards` has them all in memory."""
    step = plan.shard_samples
    for split in plan.splits:
        samples = len(plan.keys[split])
        for index, start in enumerate(range(0, samples, step)):
            yield PlannedShard(split=split, index=index, start=start, stop=min(start + step, samples))


def missing_shards(out: Store, plan: Plan, *, retry_failed: bool = False) -> MissingShards:
    """The shards without a sidecar of this plan, or whose files are gone or of another size.

    Args:
        out: The dataset's folder.
        plan: The plan.
        retry_failed: Count those with failures among them.
    """
    plan_hash = plan.hash

    def is_missing(shard: PlannedShard) -> bool:
        if not shard_is_done(out, plan_hash, shard):
            return True
        return retry_failed and bool(Sidecar.load(sidecar_path(out, shard)).failures)

    if not any((out / split).files() for split in plan.splits):
        return MissingShards(plan, np.ones(sum(1 for _ in each_shard(plan)), bool))
    return MissingShards(plan, np.fromiter(_in_threads(is_missing, each_shard(plan)), bool))


class Failures:
    """Counts the samples of sidecars, and what failed by kind, as they pass through."""

    def __init__(self) -> None:
        self.samples = 0
        self.kinds: Counter[str] = Counter()
        self._first = ""

    def watch(self, sidecars: Iterable[Sidecar]) -> Iterator[Sidecar]:
        """Give the sidecars on, having counted them."""
        for sidecar in sidecars:
            self.samples += sidecar.samples + len(sidecar.failures)
            for failure in sidecar.failures:
                if self.kinds.total() < _NAMED:
                    log.warning("left out: %s: %s", failure.key, failure.reason)
                self._first = self._first or f"{failure.key}: {failure.reason}"
                self.kinds[kind_of(failure.reason)] += 1
            yield sidecar

    def check(self, allowed: float, out: Store) -> None:
        """Refuse a dataset with more failures than allowed.

        Raises:
            ShardError: too many, with how many of which kind.
        """
        total = self.kinds.total()
        if total > allowed * self.samples:
            kinds = "; ".join(f"{count}× {kind}" for kind, count in self.kinds.most_common(5))
            raise ShardError(
                f"{total} of {self.samples} samples failed, more than max_failure_rate = {allowed} "
                f"(first: {self._first}; by kind: {kinds}). The sidecars in {out} name them all. Use --retry-failed if "
                "they may succeed now, raise --max-failure-rate, or mend the data and use --overwrite"
            )


def load_sidecars(out: Store, plan: Plan) -> Iterator[Sidecar]:
    """The sidecars of all planned shards, in planned order.

    Raises:
        ShardError: one is missing or damaged.
    """
    return _in_threads(lambda shard: Sidecar.load(sidecar_path(out, shard)), each_shard(plan))


def _in_threads(function: Callable[[PlannedShard], _T], shards: Iterable[PlannedShard]) -> Iterator[_T]:
    """`map` in threads that takes in a batch at a time, where an executor's own would take in everything."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="sidecars") as pool:
        waiting = iter(shards)
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(function, batch)
