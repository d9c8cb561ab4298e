"""Planned shards worked off by disposable Ray actors; the driver requeues what a dead actor held.

A job is `open_job` (what is still to be made), `run_shards`, `close_job` (what became of it). Actors never restart by
themselves: with endless restarts a lost node stalls the job. A worker class has one method, `run(task)`, which leaves a
shard either whole (its sidecar is there) or to be made again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from codeshards.format import (
    Plan,
    PlannedShard,
    ShardError,
    Sidecar,
    remove_stale_temps,
    save_or_match,
    shard_is_done,
    sidecar_path,
)

log = logging.getLogger(__name__)

# glibc would otherwise return every large activation to the kernel and fault its pages in anew: 1.7× slower.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def open_job(plan: Plan, out: Path) -> list[PlannedShard]:
    """Write the plan into `out`, or match the one there; returns the shards that are still to be made.

    Raises:
        ShardError: `out` holds another plan.
    """
    if save_or_match(plan, out):
        log.info("%s holds this plan already: only what is missing is made", out)
    for folder in (out, *(out / split for split in plan.splits)):
        if folder.is_dir():
            remove_stale_temps(folder)
    return [shard for shard in plan.shards if not shard_is_done(out, plan, shard)]


def close_job(plan: Plan, out: Path, max_failure_rate: float) -> list[Sidecar]:
    """The sidecars of all shards, in planned order; samples that were left out are logged.

    Raises:
        ShardError: a sidecar is missing, or more samples failed than `max_failure_rate` allows.
    """
    sidecars = [Sidecar.load(sidecar_path(out, shard)) for shard in plan.shards]
    failures = [failure for sidecar in sidecars for failure in sidecar.failures]
    total = len(failures) + sum(sidecar.samples for sidecar in sidecars)
    for failure in failures[:10]:
        log.warning("left out: %s: %s", failure.key, failure.reason)
    if len(failures) > max_failure_rate * total:
        first = f"{failures[0].key}: {failures[0].reason}"
        raise ShardError(
            f"{len(failures)} of {total} samples failed, more than max_failure_rate = {max_failure_rate} (first: "
            f"{first}). The sidecars in {out} name them all. Raise --max-failure-rate, or mend the data and use "
            "--overwrite"
        )
    return sidecars


def run_shards(
    shards: Sequence[PlannedShard],
    task_of: Callable[[PlannedShard], Any],
    worker: type[Any],
    arguments: tuple[Any, ...],
    *,
    name: str,
    device: str,
    workers: int,
    threads: int,
    decode_threads: int,
    max_attempts: int,
) -> None:
    """Run `worker(*arguments).run(task_of(shard))` for every shard, on RAY_ADDRESS or on a Ray of our own.

    Args:
        shards: What to make.
        task_of: Makes what a worker gets for a shard; called when its turn comes, so that few tasks are in memory.
        worker: Class of the actors.
        arguments: Of its constructor.
        name: What the progress bar calls the job.
        device: cuda gives every worker a GPU and `decode_threads` cores, cpu gives it `threads` cores.
        workers: Processes; 0: one per GPU, or per `threads` cores.
        threads: Torch threads of a worker.
        decode_threads: Threads of a worker that read images.
        max_attempts: Times that a shard may lose its worker.

    Raises:
        ShardError: a shard's workers kept dying, or a worker raised an error.
    """
    with _connected(workers * threads) as ray:
        resources = {"num_gpus": 1, "num_cpus": decode_threads} if device == "cuda" else {"num_cpus": threads}
        # A machine with fewer cores than `threads` still gets a worker: more threads than cores are only slower.
        resources["num_cpus"] = int(max(1, min(resources["num_cpus"], ray.cluster_resources().get("CPU", 1))))
        actor = ray.remote(max_restarts=0, max_task_retries=0, **resources)(worker)
        pool = _Pool(ray, actor, arguments)
        try:
            _drain(pool, deque(shards), task_of, workers or _worker_count(ray, device, resources), max_attempts, name)
        finally:
            pool.kill()


class _Pool:
    """Actors and the shards that they hold."""

    def __init__(self, ray: Any, actor: Any, arguments: tuple[Any, ...]) -> None:
        self.ray, self._actor, self._arguments = ray, actor, arguments
        self.running: dict[Any, tuple[Any, PlannedShard]] = {}

    def start(self, shard: PlannedShard, task: Any, worker: Any | None = None) -> None:
        worker = worker or self._actor.remote(*self._arguments)
        self.running[worker.run.remote(task)] = (worker, shard)

    def next_done(self) -> tuple[Any, Any, PlannedShard]:
        """Wait for one shard: (result reference, its worker, the shard)."""
        (reference, *_), _ = self.ray.wait(list(self.running), num_returns=1)
        return (reference, *self.running.pop(reference))

    def kill(self) -> None:
        for worker, _ in self.running.values():
            self.ray.kill(worker)


def _drain(
    pool: _Pool,
    queue: deque[PlannedShard],
    task_of: Callable[[PlannedShard], Any],
    workers: int,
    max_attempts: int,
    name: str,
) -> None:
    """Run all shards; the shard of a worker that died goes back into the queue, with a new worker."""
    deaths: Counter[PlannedShard] = Counter()
    errors = pool.ray.exceptions
    with tqdm(total=sum(shard.samples for shard in queue), desc=name, unit="image", disable=None) as bar:
        while queue or pool.running:
            while queue and len(pool.running) < workers:
                shard = queue.popleft()
                pool.start(shard, task_of(shard))
            reference, worker, shard = pool.next_done()
            try:
                pool.ray.get(reference)
            except errors.RayActorError as error:
                deaths[shard] += 1
                if deaths[shard] >= max_attempts:
                    raise ShardError(
                        f"the worker of {shard.split}/{shard.name} died {deaths[shard]} times (out of memory?): "
                        "use fewer workers or a smaller batch_size, and run again; finished shards are kept"
                    ) from error
                log.warning("a worker died; %s/%s goes to another", shard.split, shard.name)
                queue.appendleft(shard)
            except errors.RayTaskError as error:
                raise ShardError(f"{shard.split}/{shard.name}: {error.cause}") from error
            else:
                bar.update(shard.samples)
                if queue:
                    shard = queue.popleft()
                    pool.start(shard, task_of(shard), worker)


def _worker_count(ray: Any, device: str, resources: Mapping[str, int]) -> int:
    total = ray.cluster_resources()
    if device == "cuda":
        return max(1, int(total.get("GPU", 0)))
    return max(1, int(total.get("CPU", 1)) // resources["num_cpus"])


@contextlib.contextmanager
def _connected(least_cores: int) -> Iterator[Any]:
    """Ray, connected to what the caller has started, else to RAY_ADDRESS, else started here for the job's length."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ShardError("this job needs Ray: pip install 'ray[default]'") from error
    if ray.is_initialized():
        yield ray
        return
    environment: dict[str, Any] = {"env_vars": _ALLOCATOR}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS"):
        loaded = [sys.modules[name] for name in ("vqgan", "codeshards", "imagepriors") if name in sys.modules]
        environment["py_modules"] = [str(Path(str(module.__file__)).parent) for module in loaded]
        ray.init(runtime_env=environment, **quiet)
    else:
        cores = max(os.cpu_count() or 1, least_cores)
        ray.init(
            address="local",  # else Ray joins whatever cluster somebody runs on this machine
            runtime_env=environment,
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            **quiet,
        )
    try:
        yield ray
    finally:
        ray.shutdown()
