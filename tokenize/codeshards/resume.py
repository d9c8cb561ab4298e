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

from codeshards.format import (
    Plan,
    PlannedShard,
    ShardError,
    Sidecar,
    Store,
    remove_stale_temps,
    save_or_match,
    shard_is_done,
    sidecar_path,
)
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
        return (shard for shard, missing in zip(self._plan.each_shard(), self._missing, strict=True) if missing)

    def __contains__(self, shard: object) -> bool:
        return any(shard == mine for mine in self)


def open_job(plan: Plan, out: Store, *, retry_failed: bool = False) -> MissingShards:
    """Write the plan into `out`, or match the one there; returns the shards that are still to be made.

    Args:
        plan: The plan.
        out: The job's folder.
        retry_failed: Count shards with failures among them.

    Raises:
        ShardError: `out` holds another plan.
    """
    if save_or_match(plan, out):
        log.info("%s holds this plan already: only what is missing is made", out)
    remove_temps(plan, out)
    return missing_shards(out, plan, retry_failed=retry_failed)


def close_job(plan: Plan, out: Store, max_failure_rate: float) -> list[Sidecar]:
    """The sidecars of all shards, in planned order; samples that were left out are logged.

    Raises:
        ShardError: a sidecar is missing, or more samples failed than `max_failure_rate` allows.
    """
    failures = Failures()
    sidecars = list(failures.watch(load_sidecars(out, plan)))
    failures.check(max_failure_rate, out)
    return sidecars


def remove_temps(plan: Plan, out: Store) -> None:
    """Remove what killed writers have left in `out`."""
    for folder in (out, *(out / split for split in plan.splits)):
        remove_stale_temps(folder)


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
        return MissingShards(plan, np.ones(sum(1 for _ in plan.each_shard()), bool))
    return MissingShards(plan, np.fromiter(_in_threads(is_missing, plan.each_shard()), bool))


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
    return _in_threads(lambda shard: Sidecar.load(sidecar_path(out, shard)), plan.each_shard())


def _in_threads(function: Callable[[PlannedShard], _T], shards: Iterable[PlannedShard]) -> Iterator[_T]:
    """`map` in threads that takes in a batch at a time, where an executor's own would take in everything."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="sidecars") as pool:
        waiting = iter(shards)
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(function, batch)
