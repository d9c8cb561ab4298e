"""Verify shards: one, many in threads of this process, or many on Ray.

The scheduler of the tokenize job also serves here, because it finds the cores of one machine and of a cluster alike
and replaces lost workers. Ray takes seconds to start, so a single worker is this process.

Axes: N rows of a shard, L codes of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from codeshards.format.entries import ShardEntry
from codeshards.format.errors import ShardError
from codeshards.format.files import FileRecord
from codeshards.format.manifest import Sidecar, sidecar_path
from codeshards.format.orders import OrderName, inverse
from codeshards.format.plan import PlannedShard
from codeshards.format.schema import ShardSpec, column_to_numpy, row_key
from codeshards.format.shardfile import read_table
from codeshards.job.scheduler import run_shards
from runkit.codes import Codes
from runkit.places import Store
from runkit.progress import tqdm

_THREADS = 4
"""Shards that one process reads at once: hashing and decoding release the interpreter's lock."""
_AHEAD = 32
"""Shards that are handed to the threads at once."""


class Expected(NamedTuple):
    """What plan and manifest say of all shards."""

    store: Store
    """The dataset."""
    spec: ShardSpec
    """Columns of the shards."""
    plan_hash: str
    """Hash of their plan."""
    views: int
    """Views per sample."""
    classes: int
    """Number of classes; 0: labels are not checked."""


class ShardToCheck(NamedTuple):
    """What plan and manifest say of one shard."""

    shard: PlannedShard
    """The shard."""
    entry: ShardEntry
    """Its entry in the manifest."""
    keys: list[str]
    """Keys of its samples; a slice of an Arrow array would be sent to a worker with the keys of all shards."""


class _Workers(NamedTuple):
    """The settings that the scheduler reads."""

    workers: int
    threads: int = 1
    decode_threads: int = 1
    max_attempts: int = 3


def check_shards(
    shards: Collection[PlannedShard],
    task_of: Callable[[PlannedShard], ShardToCheck],
    expected: Expected,
    on_done: Callable[[PlannedShard, list[str]], None],
    workers: int,
) -> None:
    """Check shards and pass the problems of each to `on_done`, in any sequence.

    Args:
        shards: The shards.
        task_of: Makes the task of a shard; called when its turn comes.
        expected: What all shards have in common.
        on_done: Called in this thread with each shard and its problems.
        workers: Processes on Ray, on this machine or the cluster RAY_ADDRESS; 0: one per core, 1: this process.

    Raises:
        ShardError: The workers of a shard died repeatedly, or none can run.
        UserError: There is no Ray, or it has died.
    """
    if workers == 1:
        for shard, problems in _in_threads(ShardChecker(expected), map(task_of, shards), len(shards)):
            on_done(shard, problems)
    elif shards:

        def count(shard: PlannedShard, problems: list[str]) -> dict[str, int]:
            on_done(shard, problems)
            return {"checks": len(problems)} if problems else {}

        run_shards(
            shards, task_of, _Worker, (expected,), name="verify", device="cpu", settings=_Workers(workers),
            shards_at_once=2, on_done=count,
        )  # fmt: skip


def _in_threads(
    checker: ShardChecker, tasks: Iterable[ShardToCheck], count: int
) -> Iterator[tuple[PlannedShard, list[str]]]:
    waiting = iter(tasks)
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(total=count, desc="verify", unit="shard", disable=None) as bar:
        while some := list(islice(waiting, _AHEAD)):
            for task, problems in zip(some, pool.map(checker.run, some), strict=True):
                bar.update()
                yield task.shard, problems


class ShardChecker:
    """Checks shards, one per call."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected

    def run(self, task: ShardToCheck) -> list[str]:
        """Return the problems of one shard: of its sidecar, the bytes of its files, and their contents."""
        return list(self._problems(*task))

    def _problems(self, shard: PlannedShard, entry: ShardEntry, keys: list[str]) -> Iterator[str]:
        store, spec = self._expected.store, self._expected.spec
        path = sidecar_path(store, shard)
        if not path.exists():
            yield f"{path} is missing, or no file"
            return
        try:
            sidecar = Sidecar.load(path)
        except ShardError as error:
            yield str(error)
            return
        made = (sidecar.plan_hash, sidecar.split, sidecar.index, sidecar.rows, sidecar.files)
        if made != (self._expected.plan_hash, shard.split, shard.index, entry.rows, entry.files):
            yield f"{path} and dataset.json differ about this shard"
            return
        row_keys = _row_keys(keys, {failure.key for failure in sidecar.failures}, self._expected.views)
        tables: dict[Store, pa.Table] = {}
        for name, record in entry.files.items():
            file = store / shard.split / name
            try:
                content = _intact_content(file, record)
                if content is None:
                    yield f"{file} is missing, or its sha256 is not the one of dataset.json"
                    continue
                tables[file] = read_table(file, spec, entry.rows, content)
            except (ShardError, OSError) as error:  # a failing disk is a problem to report
                yield f"{file}: {error}"
                continue
            for problem in _table_problems(tables[file], self._expected, row_keys):
                yield f"{file}: {problem}"
        if any(not table.equals(next(iter(tables.values()))) for table in tables.values()):
            yield f"{' and '.join(map(str, tables))} hold different rows"


class _Worker(ShardChecker):
    """A checker in an actor, which has one core."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        pa.set_cpu_count(1)


def _intact_content(file: Store, record: FileRecord) -> bytes | None:
    """The content of a file that has the recorded size and hash, else None; read once, for hash and rows."""
    if file.size() != record.bytes:
        return None
    content = file.read_bytes()
    return content if hashlib.sha256(content).hexdigest() == record.sha256 else None


def _row_keys(keys: Sequence[str], failed: Collection[str], views: int) -> Any:
    """Arrow array of the keys of all rows: those of the samples without the failed ones, each once per view."""
    return pa.array([row_key(key, view) for key in keys if key not in failed for view in range(views)], pa.string())


def _table_problems(table: pa.Table, expected: Expected, keys: Any) -> Iterator[str]:
    spec = expected.spec
    if not table.column("key").combine_chunks().equals(keys):
        yield "keys are not those of the plan without the failures"
    checked = ("view", "label", *spec.code_grids)
    values = {name: column_to_numpy(table.column(name).combine_chunks()) for name in checked}
    if not np.array_equal(values["view"], np.arange(len(keys)) % expected.views):
        yield f"views are not 0 … {expected.views - 1} for each sample in turn"
    if expected.classes and values["label"].max(initial=0) >= expected.classes:
        yield f"label {values['label'].max()} is beyond the {expected.classes} classes"
    for name, grid in spec.code_grids.items():
        if values[name].max(initial=0) >= grid.codebook_size:
            yield f"{name} has code {values[name].max()}, beyond the codebook of {grid.codebook_size}"
    first, *others = spec.orders
    raster_NL = _raster(values, spec, first)
    for order in others:
        wrong = np.flatnonzero((_raster(values, spec, order) != raster_NL).any(1))
        if len(wrong):
            key = table.column("key")[int(wrong[0])].as_py()
            yield f"codes_{order} and codes_{first} show different pictures in {len(wrong)} rows, first {key!r}"


def _raster(columns: dict[str, Any], spec: ShardSpec, name: OrderName) -> Codes:
    return np.asarray(columns[f"codes_{name}"][:, inverse(name, spec.image.height, spec.image.width)])
