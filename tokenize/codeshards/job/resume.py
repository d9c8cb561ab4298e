"""What of a plan is made already: found again after whatever happened, without holding every shard in memory."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from codeshards.format import (
    PLAN_FILE,
    TOKENIZER_FOLDERS,
    Plan,
    PlannedShard,
    ShardError,
    ShardSpec,
    Sidecar,
    Where,
    open_store,
    read_json,
    remove_stale_temps,
    save_or_match,
    shard_is_done,
    sidecar_path,
)
from codeshards.job.progress import kind_of
from runkit.folders import held

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


@contextlib.contextmanager
def held_store(out: Where, command: str) -> Iterator[None]:
    """Hold a dataset's folder for one process of a command; an object store has no locks.

    Raises:
        UserError: Another process works there, or the folder cannot be made.
    """
    path = open_store(out).local
    with held(path, command) if path else contextlib.nullcontext():
        yield


def open_job(
    plan: Plan, out: Where, *, retry_failed: bool = False, check_name: Callable[[str], object] | None = None
) -> MissingShards:
    """Write the plan into `out`, or match the one there; returns the shards that are still to be made.

    Made is a shard with a sidecar of this plan whose files are there with their sizes.

    Args:
        plan: The plan.
        out: The dataset's folder; nobody else writes there now.
        retry_failed: Count shards with failures as missing.
        check_name: As :meth:`Sidecar.load`.

    Raises:
        ShardError: `out` holds another plan.
    """
    store, plan_hash = open_store(out), plan.hash
    if save_or_match(plan, store):
        log.info("%s holds this plan already: only what is missing is made", store)
    remove_temps(plan, store)

    def is_missing(shard: PlannedShard) -> bool:
        if not shard_is_done(store, plan_hash, shard, check_name=check_name):
            return True
        return retry_failed and bool(Sidecar.load(sidecar_path(store, shard), check_name=check_name).failures)

    if not any((store / split).files() for split in plan.splits):
        return MissingShards(plan, np.ones(sum(plan.shard_count(split) for split in plan.splits), bool))
    return MissingShards(plan, np.fromiter(_in_threads(is_missing, plan.each_shard()), bool))


def planned_spec(out: Where) -> ShardSpec | None:
    """What the shards in `out` are planned to hold; None where no plan there says so."""
    try:
        return ShardSpec.from_json(read_json(open_store(out) / PLAN_FILE)["plan"]["settings"]["spec"])
    except (ShardError, KeyError, TypeError):
        return None


def remove_temps(plan: Plan, out: Where) -> None:
    """Remove half files that killed workers and drivers left in `out`; nobody else writes there now."""
    store = open_store(out)
    for folder in (store, *(store / name for name in (*plan.splits, *TOKENIZER_FOLDERS))):
        remove_stale_temps(folder)


def close_job(
    plan: Plan, out: Where, max_failure_rate: float, *, check_name: Callable[[str], object] | None = None
) -> Iterator[Sidecar]:
    """The sidecars of all shards, in planned order, one after another; samples that were left out are logged.

    Raises:
        ShardError: a sidecar is missing, or (after the last one) more samples failed than `max_failure_rate` allows.
    """
    samples, first, kinds = 0, "", Counter[str]()

    def load(shard: PlannedShard) -> Sidecar:
        return Sidecar.load(sidecar_path(out, shard), check_name=check_name)

    for sidecar in _in_threads(load, plan.each_shard()):
        samples += sidecar.samples + len(sidecar.failures)
        for failure in sidecar.failures:
            if kinds.total() < _NAMED:
                log.warning("left out: %s: %s", failure.key, failure.reason)
            first = first or f"{failure.key}: {failure.reason}"
            kinds[kind_of(failure.reason)] += 1
        yield sidecar
    if kinds.total() > max_failure_rate * samples:
        found = "; ".join(f"{count}× {kind}" for kind, count in kinds.most_common(5))
        raise ShardError(
            f"{kinds.total()} of {samples} samples failed, more than max_failure_rate = {max_failure_rate} (first: "
            f"{first}; by kind: {found}). The sidecars in {out} name them all. Retry the failed ones (retry_failed) if "
            "they may succeed now, or raise max_failure_rate"
        )


def _in_threads(function: Callable[[PlannedShard], _T], shards: Iterable[PlannedShard]) -> Iterator[_T]:
    """`map` in threads that takes in a batch at a time, where an executor's own would take in everything."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="sidecars") as pool:
        waiting = iter(shards)
        while batch := list(islice(waiting, _BATCH)):
            yield from pool.map(function, batch)
