"""Planned shards worked off by disposable Ray actors; the driver requeues what a dead actor held.

A job is `open_job` (what is still to be made), `run_shards`, `close_job` (what became of it). Actors never restart by
themselves: with endless restarts a lost node stalls the job. A worker class has a method `run(task)`, which leaves a
shard either whole (its sidecar is there) or to be made again, and may count the samples it has done in an attribute
`samples_done`, which the live view shows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from codeshards.format import PlannedShard, ShardError
from codeshards.job.nodes import Cluster, WorkerSize
from codeshards.job.progress import EventLog, LiveView
from codeshards.job.session import connected
from runkit.errors import is_out_of_memory, user_message
from runkit.retries import PassingError, is_passing

log = logging.getLogger(__name__)

_MISSING_MODULE = re.compile(r"No module named '([^']+)'")
_POLL_S = 1.0
"""Seconds between two looks at the nodes and at what the workers have done."""
_KILL_S = 20.0
"""Seconds that killed workers may take to be gone."""
_START_S = 120.0
"""Seconds that workers may take to start before a person is told: they import torch and load a tokenizer."""
_REST_S = 10.0
"""Seconds in which no shard is handed out after one whose input or output was away; twice as many each further time."""
_PATIENCE_S = 600.0
"""Seconds without any worker before the job gives up: an autoscaler's nodes take minutes to come."""


def run_shards(
    shards: Collection[PlannedShard],
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
    shards_at_once: int = 1,
    events: EventLog | None = None,
    on_done: Callable[[PlannedShard, Any], dict[str, int]] | None = None,
) -> None:
    """Run `worker(*arguments).run(task_of(shard))` for every shard, on RAY_ADDRESS or on a Ray of our own.

    Nodes are looked at again and again: one that joins late gets workers, one with fewer cores or GPUs gets
    workers that fit it, and what a lost one held is done by another. SIGTERM and Ctrl-C kill the workers and end
    the process.

    Args:
        shards: What to make; gone through as workers ask, so that it may be longer than memory.
        task_of: Makes what a worker gets for a shard; called when its turn comes, so that few tasks are in memory.
        worker: Class of the actors.
        arguments: Of its constructor.
        name: What the progress bar calls the job.
        device: cuda gives every worker a GPU and its share of the node's cores, cpu gives it `threads` cores.
        workers: Processes; 0: one per GPU, or per `threads` cores. An autoscaler is asked for that many.
        threads: Torch threads of a worker.
        decode_threads: Cores of a worker with a GPU; 0: its share of the node.
        max_attempts: Times that a shard may lose its worker, or its input or output be away.
        shards_at_once: Calls of `run` that a worker gets at the same time, in threads: with 2, one shard is read
            while another is encoded.
        events: Where to log what happens.
        on_done: Called with each shard and what `run` returned; gives the shard's failures by kind.

    Raises:
        ShardError: a shard's workers kept dying, its input or output stayed away, a worker raised an error that a
            person can mend, or no node can run one.
    """
    size = WorkerSize(device=device, threads=threads, decode_threads=decode_threads)
    with connected(workers * threads) as session:
        pool = _Pool(
            Cluster(session, size, workers),
            _Host,
            (worker, arguments),
            task_of=task_of,
            name=name,
            shards=shards,
            max_attempts=max_attempts,
            shards_at_once=shards_at_once,
            events=events or EventLog(None),
            on_done=on_done or (lambda shard, result: {}),
        )
        try:
            pool.drain()
        finally:
            pool.close()


class _Host:
    """What an actor runs: the worker, made once, and the driver's questions beside it."""

    def __init__(self, worker: type[Any], arguments: tuple[Any, ...]) -> None:
        self._error: Exception | None = None
        try:
            self._worker = worker(*arguments)
        except Exception as error:  # noqa: BLE001 - raised in answer to `pid`: of a constructor's Ray keeps the text alone
            self._error = error

    def pid(self) -> int:
        """The process; answers when the worker is made, and raises why it could not be made."""
        if self._error is not None:
            raise self._error
        return os.getpid()

    def run(self, task: Any) -> Any:
        """Make a shard."""
        try:
            return self._worker.run(task)
        except Exception as error:
            if is_passing(error):  # said by its class: what it was raised from does not travel
                raise PassingError(str(error)) from error
            raise

    def samples_done(self) -> int:
        """Samples done since the process started."""
        return int(getattr(self._worker, "samples_done", 0))


@dataclass(slots=True, eq=False)
class _Hand:
    """One actor as the driver sees it."""

    actor: Any
    node: str
    """Id of its node."""
    running: dict[Any, PlannedShard] = field(default_factory=dict)
    """Reference of a call → its shard."""
    ready: bool = False
    asked: Any = None
    """Reference of the open question: its pid, later how far it is."""
    samples: int = 0
    """Samples it says it has done."""
    finished: int = 0
    """Samples of the shards it has finished."""


class _Pool:
    """Actors, the shards that they hold and the shards that wait."""

    def __init__(
        self,
        cluster: Cluster,
        host: type[Any],
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
        self._actor = self._ray.remote(max_restarts=0, max_task_retries=0, max_concurrency=shards_at_once + 1)(host)
        self._arguments = arguments
        self._task_of, self._on_done, self._events = task_of, on_done, events
        self._max_attempts, self._shards_at_once = max_attempts, shards_at_once
        self._fresh, self._left = iter(shards), len(shards)
        self._again: deque[PlannedShard] = deque()
        self._deaths: Counter[PlannedShard] = Counter()
        self._outages: Counter[PlannedShard] = Counter()
        self._rest_until_s = 0.0
        self._hands: list[_Hand] = []
        self._done_by_node: Counter[str] = Counter()
        self._idle_since_s, self._warned = time.monotonic(), False
        self._view = LiveView(name, shards=len(shards), samples=sum(s.samples for s in shards), events=events)

    def drain(self) -> None:
        """Run all shards."""
        next_look_s = 0.0
        while self._left or any(hand.running for hand in self._hands):
            if time.monotonic() >= next_look_s:
                next_look_s = time.monotonic() + _POLL_S
                self._hire()
                self._ask()
            self._assign()
            self._collect()
        self._show()

    def _hire(self) -> None:
        """Start actors where there is room, as long as shards wait for them."""
        for change, node in self._cluster.look():
            self._events.write(change, node=node)
        wanted = self._left + sum(bool(hand.running) for hand in self._hands)
        for node, options in self._cluster.room([hand.node for hand in self._hands], wanted):
            actor = self._actor.options(**options).remote(*self._arguments)
            self._hands.append(_Hand(actor, node, asked=actor.pid.remote()))
        idle_s = time.monotonic() - self._idle_since_s
        if any(hand.ready for hand in self._hands):
            self._idle_since_s, self._warned = time.monotonic(), False
        elif not self._hands and (self._cluster.hopeless() or idle_s > _PATIENCE_S):
            raise self._cluster.bug or ShardError(self._cluster.why_no_worker())
        elif not self._hands and not self._warned:
            self._warned = True
            log.warning("no node can run a worker now: waiting for one. %s", self._cluster.why_no_worker())
        elif self._hands and not self._warned and idle_s > _START_S:
            self._warned = True
            log.warning(
                "no worker has started for %d s: %s",
                idle_s,
                self._cluster.why_late([hand.node for hand in self._hands]),
            )

    def _ask(self) -> None:
        for hand in self._hands:
            if hand.asked is None:
                hand.asked = hand.actor.samples_done.remote()
        self._show()

    def _show(self) -> None:
        partial = Counter(self._done_by_node)
        for hand in self._hands:
            partial[self._cluster.name(hand.node)] += max(0, hand.samples - hand.finished)
        self._view.update(dict(partial))

    def _assign(self) -> None:
        """Hand out shards: every ready actor one, then a second to read ahead where enough are left for all."""
        if time.monotonic() < self._rest_until_s:
            return
        ready = [hand for hand in self._hands if hand.ready]
        for held in range(self._shards_at_once):
            if held and self._left < len(ready):
                return  # the last shards go to whoever is free first
            for hand in ready:
                if len(hand.running) == held and self._left:
                    self._give(hand)

    def _give(self, hand: _Hand) -> None:
        # A shard that has lost a worker runs alone: if it kills again, it and no other is to blame.
        suspect = bool(self._again) and self._deaths[self._again[0]] > 0
        if hand.running and (suspect or any(self._deaths[shard] for shard in hand.running.values())):
            return
        shard = self._again.popleft() if self._again else next(self._fresh)
        self._left -= 1
        hand.running[hand.actor.run.remote(self._task_of(shard))] = shard

    def _collect(self) -> None:
        """Wait for a moment, and take in every answer that is there."""
        owner_of: dict[Any, _Hand] = {}
        for hand in self._hands:
            owner_of.update(dict.fromkeys(hand.running, hand))
            if hand.asked is not None:
                owner_of[hand.asked] = hand
        if not owner_of:
            time.sleep(_POLL_S / 2)
            return
        references = list(owner_of)
        if self._ray.wait(references, num_returns=1, timeout=_POLL_S)[0]:
            for reference in self._ray.wait(references, num_returns=len(references), timeout=0)[0]:
                if owner_of[reference] in self._hands:
                    self._take(owner_of[reference], reference)

    def _take(self, hand: _Hand, reference: Any) -> None:
        errors, shard = self._ray.exceptions, hand.running.get(reference)
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:
            if not hand.ready:
                self._bury(hand, error)
                return
            if shard is not None and isinstance(error.cause, PassingError):
                self._put_off(hand, reference, error.cause)
                return
            if shard is not None and is_out_of_memory(error.cause):
                raise ShardError(f"{shard.split}/{shard.name}: out of memory ({error.cause}). {_LESS}") from error
            if missing := _MISSING_MODULE.search(str(error.cause)):
                raise ShardError(
                    f"the workers cannot import {missing[1]!r}, a module of the dataset: install it on every node, or "
                    "put its folder on PYTHONPATH where Ray is started"
                ) from error
            if shard is None or (message := user_message(error.cause)) is None:
                raise  # a bug: keep its traceback
            raise ShardError(f"{shard.split}/{shard.name}: {message}") from error
        except errors.RayError as error:
            # The actor died, or its node before it started, or Ray killed it for its memory: all the same here.
            self._bury(hand, error)
        else:
            if shard is not None:
                self._finish(hand, reference, answer)
            elif hand.ready:
                hand.asked, hand.samples = None, answer
            else:
                hand.asked, hand.ready = None, True
                self._events.write("worker_ready", node=self._cluster.name(hand.node), pid=answer)

    def _finish(self, hand: _Hand, reference: Any, answer: Any) -> None:
        shard = hand.running.pop(reference)
        hand.finished += shard.samples
        self._done_by_node[self._cluster.name(hand.node)] += shard.samples
        failures = self._on_done(shard, answer)
        self._view.shard_done(failures)
        self._events.write(
            "shard_done",
            split=shard.split,
            index=shard.index,
            samples=shard.samples,
            failures=failures,
            node=self._cluster.name(hand.node),
        )

    def _put_off(self, hand: _Hand, reference: Any, error: PassingError) -> None:
        """Make a shard later whose input or output is away."""
        shard = hand.running.pop(reference)
        self._outages[shard] += 1
        self._events.write("shard_put_off", split=shard.split, index=shard.index, reason=str(error))
        if self._outages[shard] >= self._max_attempts:
            raise ShardError(
                f"{shard.split}/{shard.name} could not be made in {self._outages[shard]} attempts: {error}. Run again "
                "when the storage is back: finished shards are kept"
            )
        rest_s = _REST_S * 2 ** (self._outages[shard] - 1)
        log.warning("%s; %s/%s is made later, after %.0f s", error, *_named(shard), rest_s)
        self._rest_until_s = time.monotonic() + rest_s
        self._again.append(shard)
        self._left += 1

    def _bury(self, hand: _Hand, error: Any) -> None:
        """Forget a dead actor; what it held goes to another."""
        self._hands.remove(hand)
        self._ray.kill(hand.actor)  # it may be cut off and not dead
        node_lost = not self._cluster.is_alive(hand.node) or "node has died" in str(error)
        self._events.write(
            "worker_died",
            node=self._cluster.name(hand.node),
            node_lost=node_lost,
            shards=[f"{shard.split}/{shard.name}" for shard in hand.running.values()],
        )
        if not hand.ready and not node_lost:
            self._cluster.refuse(hand.node, error, self._max_attempts)
        for shard in hand.running.values():
            log.warning("a %s; %s/%s goes to another", "node left" if node_lost else "worker died", *_named(shard))
            if not node_lost:
                self._deaths[shard] += 1
            # With a second shard beside it nobody knows whose fault it was: it runs alone next time.
            if self._deaths[shard] >= self._max_attempts and len(hand.running) == 1:
                raise ShardError(
                    f"the worker of {shard.split}/{shard.name} died {self._deaths[shard]} times (out of memory?). "
                    f"{_LESS}"
                ) from error
            self._again.append(shard)
            self._left += 1

    def close(self) -> None:
        """Kill the actors and wait until they are gone, so that no one writes behind the caller's back."""
        last = [reference for hand in self._hands for reference in hand.running]
        if not self._cluster.session.is_dead():  # whose workers end with it, and who answers nothing
            with contextlib.suppress(Exception):
                for hand in self._hands:
                    self._ray.kill(hand.actor)
                if last:
                    self._ray.wait(last, num_returns=len(last), timeout=_KILL_S)
                self._cluster.close()
        self._view.close()


def assigned_cores() -> int:
    """Cores that Ray has set aside for the worker that asks."""
    import ray

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 1))


_LESS = (
    "Use fewer workers and run again: finished shards are kept. A smaller batch_size makes other shards, in another "
    "output folder"
)


def _named(shard: PlannedShard) -> tuple[str, str]:
    return shard.split, shard.name
