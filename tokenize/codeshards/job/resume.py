"""Resume a job: find the missing shards of a plan, without holding all shards in memory."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from codeshards.format.checked import CheckedShards
from codeshards.format.contents import TOKENIZER_FOLDERS, save_or_match
from codeshards.format.errors import ShardError
from codeshards.format.files import FileRecord, read_json, remove_stale_temps
from codeshards.format.manifest import Sidecar, finished_sidecar, sidecar_path
from codeshards.format.plan import PLAN_FILE, Plan, PlannedShard
from codeshards.format.schema import ShardSpec
from codeshards.job.progress import kind_of
from runkit.folders import held
from runkit.places import Listed, Store, Where, open_store

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_THREADS = 32
"""Sidecars read at once: on a network file system or an object store each costs a round trip."""
_BATCH = 1024
_PROBED = 64
"""Sidecars read one after another to measure the storage."""
_SLOW_READ_S = 0.0005
"""Seconds per sidecar above which threads are worthwhile: a read of a local disk takes a tenth."""
_MAX_LOGGED = 10
"""Failures that are logged one by one."""


class MissingShards(Collection[PlannedShard]):
    """The planned shards that are missing, in planned order, stored as one flag per shard."""

    def __init__(self, plan: Plan, missing: npt.NDArray[np.bool_]) -> None:
        self._plan, self._missing = plan, missing

    def __len__(self) -> int:
        return int(self._missing.sum())

    def __iter__(self) -> Iterator[PlannedShard]:
        return (shard for shard, missing in zip(self._plan.each_shard(), self._missing, strict=True) if missing)

    def __contains__(self, shard: object) -> bool:
        return any(shard == mine for mine in self)


@contextlib.contextmanager
def locked_store(out: Where, command: str) -> Iterator[None]:
    """Lock a dataset's folder for one process of a command; an object store has no locks.

    Raises:
        UserError: Another process uses the folder, or it cannot be made.
    """
    path = open_store(out).local
    with held(path, command) if path else contextlib.nullcontext():
        yield


def open_job(
    plan: Plan, out: Where, *, retry_failed: bool = False, check_name: Callable[[str], object] | None = None
) -> MissingShards:
    """Write the plan into `out`, or compare it with the plan that is there; returns the missing shards.

    A shard is finished if its sidecar belongs to this plan and its files exist with the recorded sizes.

    Args:
        plan: The plan.
        out: Folder of the dataset; no other process may write there.
        retry_failed: Count shards with failures as missing.
        check_name: As :meth:`Sidecar.load`.

    Raises:
        ShardError: `out` holds another plan.
    """
    store = open_store(out)
    if save_or_match(plan, store):
        log.info("%s has this plan already: only missing shards are made", store)
    remove_temps(plan, store)
    return missing_shards(plan, store, retry_failed=retry_failed, check_name=check_name)


def missing_shards(
    plan: Plan, store: Store, *, retry_failed: bool = False, check_name: Callable[[str], object] | None = None
) -> MissingShards:
    """The shards that :func:`open_job` finds missing. Nothing is written."""
    found = _sidecars(plan, store, check_name)
    missing = (sidecar is None or (retry_failed and bool(sidecar.failures)) for sidecar in found)
    return MissingShards(plan, np.fromiter(missing, bool))


def planned_spec(out: Where) -> ShardSpec | None:
    """The spec in the plan of `out`; None where there is no plan or it has no spec."""
    try:
        return ShardSpec.from_json(read_json(open_store(out) / PLAN_FILE)["plan"]["settings"]["spec"])
    except (ShardError, KeyError, TypeError):
        return None


def remove_temps(plan: Plan, out: Where) -> None:
    """Remove temporary files of killed workers and drivers from `out`; no other process may write there."""
    store = open_store(out)
    for folder in (store, *(store / name for name in (*plan.splits, *TOKENIZER_FOLDERS))):
        remove_stale_temps(folder)


def close_job(
    plan: Plan, out: Where, max_failure_rate: float, *, check_name: Callable[[str], object] | None = None
) -> Iterator[Sidecar]:
    """The sidecars of all shards in planned order; the first failures are logged.

    Raises:
        ShardError: A sidecar is missing, or (after the last one) more samples failed than `max_failure_rate` allows.
    """
    samples, first, kinds = 0, "", Counter[str]()
    for shard, listed in zip(plan.each_shard(), _sidecars(plan, open_store(out), check_name), strict=True):
        # A network file system lists new files with a delay; a sidecar that does not fit is refused by the manifest.
        sidecar = listed or Sidecar.load(sidecar_path(out, shard), check_name=check_name)
        samples += sidecar.samples + len(sidecar.failures)
        for failure in sidecar.failures:
            if kinds.total() < _MAX_LOGGED:
                log.warning("left out: %s: %s", failure.key, failure.reason)
            first = first or f"{failure.key}: {failure.reason}"
            kinds[kind_of(failure.reason)] += 1
        yield sidecar
    if kinds.total() > max_failure_rate * samples:
        found = "; ".join(f"{count}× {kind}" for kind, count in kinds.most_common(5))
        raise ShardError(
            f"{kinds.total()} of {samples} samples failed, more than max_failure_rate = {max_failure_rate} (first: "
            f"{first}; by kind: {found}). The sidecars in {out} list all of them. Retry the failed ones (retry_failed) "
            "if they may succeed now, or raise max_failure_rate"
        )
    _cache(open_store(out), plan.hash).delete()


def _cache(store: Store, plan_hash: str) -> CheckedShards:
    """The sidecars of an unfinished job, which the driver adds when it sees them; only sizes and times are looked up.

    At 100,000 shards, this takes a third of the time of reading the sidecars.
    """
    return CheckedShards(store, "finished", plan_hash)


def _sidecars(plan: Plan, store: Store, check_name: Callable[[str], object] | None) -> Iterator[Sidecar | None]:
    """The sidecar of each planned shard, None if the shard is missing: cached, if its files have not changed."""
    plan_hash = plan.hash
    listings = {split: (store / split).listing() for split in plan.splits}
    if not any(listings.values()):
        yield from itertools.repeat(None, sum(map(plan.shard_count, plan.splits)))
        return
    cache = _cache(store, plan_hash).read()

    def find(shard: PlannedShard) -> Sidecar | None:
        listing = listings[shard.split]
        if known := cache.get(shard, listing):
            return _from_cache(known, plan_hash, shard)
        return finished_sidecar(store, plan_hash, shard, listing=listing, check_name=check_name)

    yield from _each(find, plan, store)


def _from_cache(content: Any, plan_hash: str, shard: PlannedShard) -> Sidecar:
    rows, samples, files = content
    return Sidecar(
        plan_hash=plan_hash, split=shard.split, index=shard.index, rows=rows, samples=samples,
        files={name: FileRecord(*record) for name, record in files.items()},
    )  # fmt: skip


def _each(function: Callable[[PlannedShard], _T], plan: Plan, store: Store) -> Iterator[_T]:
    """The results of a function that reads one sidecar, for all shards in planned order.

    Threads read where each file costs a round trip. On a fast disk one thread reads four times as fast as several,
    because they wait for the interpreter's lock instead.
    """
    shards = plan.each_shard()
    start = time.perf_counter()
    first = [function(shard) for shard in itertools.islice(shards, _PROBED if store.local else 0)]
    seconds = time.perf_counter() - start
    yield from first
    if store.local and seconds < _SLOW_READ_S * len(first):
        yield from map(function, shards)
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sidecars") as pool:
        while batch := list(itertools.islice(shards, _BATCH)):  # an executor's own `map` consumes all items first
            yield from pool.map(function, batch)


class Arrivals:
    """Finished shards that are not yet visible in the output folder; those that are, are added to the cache.

    A shard that never becomes visible is on another disk, and all work on that node would be lost. Network file systems
    show new files with a delay, so that a missing shard is an error only after `timeout_s`.
    """

    def __init__(self, out: Store, plan_hash: str | None, timeout_s: float = 300.0) -> None:
        """Start with no shards.

        Args:
            out: Output folder.
            plan_hash: Hash of the plan for the cache; None keeps none, for side-car shards, each with its own hash.
            timeout_s: Seconds until a missing shard is an error.
        """
        self._out, self._timeout_s = out, timeout_s
        self._unseen: deque[tuple[float, PlannedShard, Sidecar]] = deque()
        self._cache = None if plan_hash is None else _cache(out, plan_hash)

    def expect(self, shard: PlannedShard, sidecar: Sidecar) -> None:
        """Add a finished shard and check the earlier ones.

        Raises:
            ShardError: One has not become visible in time.
        """
        if self._out.local is None:
            return
        self._unseen.append((time.monotonic(), shard, sidecar))
        while self._unseen:
            since_s, first, written = self._unseen[0]
            if not sidecar_path(self._out, first).exists():
                if time.monotonic() - since_s > self._timeout_s:
                    raise ShardError(
                        f"{first.split}/{first.name} was made {self._timeout_s:.0f} s ago and is not in {self._out}: "
                        "nodes must share that folder (a network file system), or it must be a URL of an object store"
                    )
                return
            self._unseen.popleft()
            self._remember(self._out.local / first.split, first, written)

    def _remember(self, folder: Path, shard: PlannedShard, sidecar: Sidecar) -> None:
        """Cache a sidecar without its durations; one with failures is long and rare, and is read again."""
        names = (f"{shard.name}.json", *sidecar.files)
        if self._cache and not sidecar.failures:
            with contextlib.suppress(OSError):  # a file is not visible yet
                listing = {name: Listed.of((folder / name).stat()) for name in names}
                self._cache.add(shard, names, listing, (sidecar.rows, sidecar.samples, sidecar.files))

    def close(self) -> None:
        """Close the cache."""
        if self._cache:
            self._cache.close()
