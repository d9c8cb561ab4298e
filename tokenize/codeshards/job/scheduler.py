"""Run planned shards on disposable Ray actors; the driver requeues the shards of an actor that dies.

A job is `open_job` (which shards are missing), `run_shards`, `close_job` (what was made). Actors never restart by
themselves, because with unlimited restarts a lost node stalls the job. A worker class has a method `run(task)`, after
which a shard is either complete (its sidecar exists) or must be made again. It may count its finished samples in an
attribute `samples_done`, which the live view shows.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from codeshards.format.errors import ShardError
from codeshards.format.plan import PlannedShard
from codeshards.job.actors import ActorHandle, ActorHost
from codeshards.job.nodes import Cluster, WorkerSize
from codeshards.job.progress import EventLog, LiveView
from runkit.errors import is_out_of_memory, user_message
from runkit.ray_session import connected
from runkit.retries import PassingError

log = logging.getLogger(__name__)

_MISSING_MODULE = re.compile(r"No module named '([^']+)'")
_POLL_S = 1.0
"""Seconds between two queries of the nodes and of the workers' progress."""
_KILL_S = 20.0
"""Seconds that killed workers may take to exit."""
_START_S = 120.0
"""Seconds that workers may take to start before a warning: they import torch and load a tokenizer."""
_PAUSE_S = 10.0
"""Seconds without new shards after one whose input or output was unavailable; doubled each further time."""
_NO_WORKER_S = 600.0
"""Seconds without any worker before the job fails: an autoscaler takes minutes to add nodes."""
_REMEDY = (
    "Use fewer workers and run again: finished shards are kept. A smaller batch_size makes other shards, in another "
    "output folder"
)


class WorkerSettings(Protocol):
    """The fields of a job's config that the scheduler reads."""

    @property
    def workers(self) -> int:
        """Number of processes; 0: as many as fit, one per `threads` cores. An autoscaler is asked for this many."""

    @property
    def threads(self) -> int:
        """Torch threads of a worker; without a GPU also its cores."""

    @property
    def decode_threads(self) -> int:
        """Cores of a worker with a GPU; 0: its share of the node's cores."""

    @property
    def max_attempts(self) -> int:
        """How often a shard may lose its worker, or its input or output be unavailable."""


def run_shards(
    shards: Collection[PlannedShard],
    task_of: Callable[[PlannedShard], Any],
    worker: type[Any],
    arguments: tuple[Any, ...],
    *,
    name: str,
    device: str,
    settings: WorkerSettings,
    packages: Sequence[str] = (),
    shards_at_once: int = 1,
    workers_per_gpu: int = 1,
    events: EventLog | None = None,
    on_done: Callable[[PlannedShard, Any], dict[str, int]] | None = None,
) -> None:
    """Run `worker(*arguments).run(task_of(shard))` for every shard, on the cluster RAY_ADDRESS or on a local Ray.

    Nodes may join and leave at any time; a node with fewer cores or GPUs gets workers that fit it. SIGTERM and Ctrl-C
    kill the workers and end the process.

    Args:
        shards: What to make; iterated as workers become free, so that it may be larger than memory.
        task_of: Makes the task of a shard; called when its turn comes, so that few tasks are in memory.
        worker: Class of the actors' workers.
        arguments: Arguments of its constructor.
        name: Name of the job in the progress bar.
        device: With cuda each worker gets its share of a GPU and of the node's cores, with cpu it gets `threads` cores.
        settings: Number and size of the workers.
        packages: Packages beside vqgan and codeshards that the nodes of a cluster get from here.
        shards_at_once: Concurrent calls of `run` per worker, in threads: with 2, one shard is read while another is
            encoded.
        workers_per_gpu: Workers that share a GPU.
        events: Where to log events.
        on_done: Called with each shard and the result of `run`; returns the shard's failures by kind.

    Raises:
        ShardError: A shard's workers died repeatedly, its input or output stayed unavailable, a worker raised an error
            that a person can fix, or no node can run a worker.
        UserError: There is no Ray, or it has died.
    """
    size = WorkerSize(
        device=device, threads=settings.threads, decode_threads=settings.decode_threads, per_gpu=workers_per_gpu
    )
    with connected(settings.workers * settings.threads, ("vqgan", "codeshards", *packages)) as session:
        scheduler = Scheduler(
            Cluster(session, size, settings.workers),
            (worker, arguments),
            task_of=task_of,
            name=name,
            shards=shards,
            max_attempts=settings.max_attempts,
            shards_at_once=shards_at_once,
            events=events or EventLog(None),
            on_done=on_done or (lambda shard, result: {}),
        )
        try:
            scheduler.run()
        finally:
            scheduler.close()


class Scheduler:
    """The actors, the shards they hold and the shards that wait."""

    def __init__(
        self,
        cluster: Cluster,
        arguments: tuple[Any, ...],
        *,
        task_of: Callable[[PlannedShard], Any],
        name: str,
        shards: Collection[PlannedShard],
        max_attempts: int,
        shards_at_once: int,
        events: EventLog,
        on_done: Callable[[PlannedShard, Any], dict[str, int]],
    ) -> None:
        self._cluster, self._ray = cluster, cluster.session.ray
        self._actor_class = self._ray.remote(
            max_restarts=0, max_task_retries=0, max_concurrency=shards_at_once + 1
        )(ActorHost)  # fmt: skip
        self._arguments = arguments
        self._task_of, self._on_done, self._events = task_of, on_done, events
        self._max_attempts, self._shards_at_once = max_attempts, shards_at_once
        self._new, self._waiting = iter(shards), len(shards)
        self._requeued: deque[PlannedShard] = deque()
        self._deaths: Counter[PlannedShard] = Counter()
        self._outages: Counter[PlannedShard] = Counter()
        self._paused_until_s = 0.0
        self._handles: list[ActorHandle] = []
        self._done_by_node: Counter[str] = Counter()
        self._idle_since_s, self._warned = time.monotonic(), False
        self._view = LiveView(name, shards=len(shards), samples=sum(s.samples for s in shards), events=events)

    def run(self) -> None:
        """Run all shards."""
        next_refresh_s = 0.0
        while self._waiting or any(handle.running for handle in self._handles):
            if time.monotonic() >= next_refresh_s:
                next_refresh_s = time.monotonic() + _POLL_S
                self._start_actors()
                self._check_idle()
                self._query_progress()
            self._assign()
            self._collect()
        self._update_view()

    def _start_actors(self) -> None:
        """Start actors in free slots, as long as shards wait for them."""
        for change, node in self._cluster.refresh():
            self._events.write(change, node=node)
        useful = self._waiting + sum(bool(handle.running) for handle in self._handles)
        for node, options in self._cluster.free_slots([handle.node for handle in self._handles], useful):
            actor = self._actor_class.options(**options).remote(*self._arguments)
            self._handles.append(ActorHandle(actor, node, query=actor.pid.remote()))

    def _check_idle(self) -> None:
        """Warn while no worker is ready, and fail where waiting is useless."""
        idle_s = time.monotonic() - self._idle_since_s
        if any(handle.ready for handle in self._handles):
            self._idle_since_s, self._warned = time.monotonic(), False
        elif not self._handles and (self._cluster.is_unschedulable() or idle_s > _NO_WORKER_S):
            raise self._cluster.bug or ShardError(self._cluster.no_worker_reason())
        elif not self._handles and not self._warned:
            self._warned = True
            log.warning("no node can run a worker now: waiting for one. %s", self._cluster.no_worker_reason())
        elif self._handles and not self._warned and idle_s > _START_S:
            self._warned = True
            reason = self._cluster.slow_start_reason([handle.node for handle in self._handles])
            log.warning("no worker has started for %d s: %s", idle_s, reason)

    def _query_progress(self) -> None:
        for handle in self._handles:
            if handle.query is None:
                handle.query = handle.actor.samples_done.remote()
        self._update_view()

    def _update_view(self) -> None:
        done = Counter(self._done_by_node)
        for handle in self._handles:
            done[self._cluster.name(handle.node)] += max(0, handle.samples - handle.finished)
        self._view.update(dict(done))

    def _assign(self) -> None:
        """Give each ready actor a shard, then a second one to read ahead while enough are left for all."""
        if time.monotonic() < self._paused_until_s:
            return
        ready = [handle for handle in self._handles if handle.ready]
        for held in range(self._shards_at_once):
            if held and self._waiting < len(ready):
                return  # the last shards go to the first actors that are free
            for handle in ready:
                if len(handle.running) == held and self._waiting:
                    self._submit(handle)

    def _submit(self, handle: ActorHandle) -> None:
        # A shard that has lost a worker runs alone: if the worker dies again, this shard is the cause.
        is_suspect = bool(self._requeued) and self._deaths[self._requeued[0]] > 0
        if handle.running and (is_suspect or any(self._deaths[shard] for shard in handle.running.values())):
            return
        shard = self._requeued.popleft() if self._requeued else next(self._new)
        self._waiting -= 1
        handle.running[handle.actor.run.remote(self._task_of(shard))] = shard

    def _collect(self) -> None:
        """Wait briefly and process every answer that has arrived."""
        owner_of: dict[Any, ActorHandle] = {}
        for handle in self._handles:
            owner_of.update(dict.fromkeys(handle.running, handle))
            if handle.query is not None:
                owner_of[handle.query] = handle
        if not owner_of:
            time.sleep(_POLL_S / 2)
            return
        references = list(owner_of)
        if self._ray.wait(references, num_returns=1, timeout=_POLL_S)[0]:
            for reference in self._ray.wait(references, num_returns=len(references), timeout=0)[0]:
                if owner_of[reference] in self._handles:
                    self._receive(owner_of[reference], reference)

    def _receive(self, handle: ActorHandle, reference: Any) -> None:
        errors, shard = self._ray.exceptions, handle.running.get(reference)
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            if not handle.ready:
                self._drop(handle, error)
                return
            if shard is not None and isinstance(error.cause, PassingError):
                self._postpone(handle, reference, error.cause)
                return
            if shard is not None and is_out_of_memory(error.cause):
                raise ShardError(f"{_name(shard)}: out of memory ({error.cause}). {_REMEDY}") from error
            if missing := _MISSING_MODULE.search(str(error.cause)):
                raise ShardError(
                    f"the workers cannot import {missing[1]!r}, a module of the dataset: install it on every node, or "
                    "put its folder on PYTHONPATH where Ray is started"
                ) from error
            if shard is None or (message := user_message(error.cause)) is None:
                raise  # a bug keeps its traceback
            raise ShardError(f"{_name(shard)}: {message}") from error
        except errors.RayError as error:
            # The actor died, or its node before it started, or Ray killed it for its memory: all are treated alike.
            self._drop(handle, error)
        else:
            if shard is not None:
                self._finish(handle, reference, answer)
            elif handle.ready:
                handle.query, handle.samples = None, answer
            else:
                handle.query, handle.ready = None, True
                self._events.write("worker_ready", node=self._cluster.name(handle.node), pid=answer)

    def _finish(self, handle: ActorHandle, reference: Any, answer: Any) -> None:
        shard = handle.running.pop(reference)
        handle.finished += shard.samples
        self._done_by_node[self._cluster.name(handle.node)] += shard.samples
        failures = self._on_done(shard, answer)
        self._view.shard_done(failures)
        self._events.write(
            "shard_done",
            split=shard.split,
            index=shard.index,
            samples=shard.samples,
            failures=failures,
            node=self._cluster.name(handle.node),
        )

    def _postpone(self, handle: ActorHandle, reference: Any, error: PassingError) -> None:
        """Requeue a shard whose input or output is unavailable."""
        shard = handle.running.pop(reference)
        self._outages[shard] += 1
        self._events.write("shard_put_off", split=shard.split, index=shard.index, reason=str(error))
        if self._outages[shard] >= self._max_attempts:
            raise ShardError(
                f"{_name(shard)} could not be made in {self._outages[shard]} attempts: {error}. Run again when the "
                "storage is back: finished shards are kept"
            )
        pause_s = _PAUSE_S * 2 ** (self._outages[shard] - 1)
        log.warning("%s; %s is made later, after %.0f s", error, _name(shard), pause_s)
        self._paused_until_s = time.monotonic() + pause_s
        self._requeue(shard)

    def _drop(self, handle: ActorHandle, error: Any) -> None:
        """Remove a dead actor and requeue its shards."""
        self._handles.remove(handle)
        self._ray.kill(handle.actor)  # it may be disconnected and still alive
        node_lost = not self._cluster.is_alive(handle.node) or "node has died" in str(error)
        self._events.write(
            "worker_died",
            node=self._cluster.name(handle.node),
            node_lost=node_lost,
            shards=[_name(shard) for shard in handle.running.values()],
        )
        if not handle.ready and not node_lost:
            self._cluster.mark_failed(handle.node, error, self._max_attempts)
        for shard in handle.running.values():
            log.warning("a %s; %s goes to another worker", "node left" if node_lost else "worker died", _name(shard))
            if not node_lost:
                self._deaths[shard] += 1
            # Of two shards in one worker either may be the cause: each runs alone next time.
            if self._deaths[shard] >= self._max_attempts and len(handle.running) == 1:
                raise ShardError(
                    f"the worker of {_name(shard)} died {self._deaths[shard]} times (out of memory?). {_REMEDY}"
                ) from error
            self._requeue(shard)

    def _requeue(self, shard: PlannedShard) -> None:
        self._requeued.append(shard)
        self._waiting += 1

    def close(self) -> None:
        """Kill the actors and wait until they have exited, so that none writes after this call."""
        running = [reference for handle in self._handles for reference in handle.running]
        if not self._cluster.session.is_dead():  # the workers of a dead Ray end with it, and it answers nothing
            with contextlib.suppress(Exception):
                for handle in self._handles:
                    self._ray.kill(handle.actor)
                if running:
                    self._ray.wait(running, num_returns=len(running), timeout=_KILL_S)
                self._cluster.close()
        self._view.close()


def _name(shard: PlannedShard) -> str:
    return f"{shard.split}/{shard.name}"
