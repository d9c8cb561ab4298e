"""The nodes of a Ray cluster and how many workers fit on each; refreshed while a job runs."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runkit.errors import user_message
from runkit.ray_session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSize:
    """The resources of a node that one worker takes."""

    device: str
    """cpu or cuda."""
    threads: int
    """Cores of a worker on the CPU."""
    decode_threads: int
    """Cores of a worker with a GPU; 0: its share of the node's cores."""
    per_gpu: int = 1
    """Workers that share a GPU."""

    def fits(self, cpus: int, gpus: int) -> tuple[int, dict[str, float]]:
        """How many workers a node of this size runs, and the Ray resources of each.

        A node with fewer cores than a worker requires still gets one: more threads than cores are only slower.
        """
        if self.device == "cuda":
            slots = gpus * self.per_gpu
            share = self.decode_threads or max(1, cpus // max(slots, 1))
            return slots, {"num_gpus": 1 / self.per_gpu, "num_cpus": min(share, cpus // slots if slots else 0)}
        return (max(1, cpus // self.threads) if cpus else 0), {"num_cpus": min(self.threads, cpus)}

    def __str__(self) -> str:
        return "a GPU" if self.device == "cuda" else f"{self.threads} cores"


@dataclass(slots=True)
class _Node:
    name: str
    slots: int
    resources: dict[str, float]
    alive: bool = True


class Cluster:
    """The nodes as of the last refresh."""

    def __init__(self, session: Session, size: WorkerSize, max_workers: int) -> None:
        self.session = session
        self._size, self._max_workers = size, max_workers
        self._nodes: dict[str, _Node] = {}
        self._start_failures: Counter[str] = Counter()
        self._excluded: set[str] = set()
        self._last_failure = ""
        self.bug: Exception | None = None
        """The error of a worker that could not start, if it is neither a setting's nor a node's fault."""
        self._autoscaler_asked = False

    def refresh(self) -> list[tuple[str, str]]:
        """Update the list of nodes; returns the changes: ("node_joined" or "node_left", name of the node)."""
        changes = []
        alive = {node["NodeID"]: node for node in self.session.nodes()}
        for node_id, found in alive.items():
            if node_id not in self._nodes:
                slots, resources = self._size.fits(
                    int(found["Resources"].get("CPU", 0)), int(found["Resources"].get("GPU", 0))
                )
                name = f"{found['NodeManagerHostname']}-{node_id[:6]}"
                self._nodes[node_id] = _Node(name, slots, resources)
                changes.append(("node_joined", name))
        for node_id, node in self._nodes.items():
            if node.alive and node_id not in alive:
                node.alive = False
                changes.append(("node_left", node.name))
        if self._max_workers > self._total_slots() and not self._autoscaler_asked:
            self._ask_autoscaler()
        return changes

    def _total_slots(self) -> int:
        return sum(node.slots for node in self._nodes.values() if node.alive)

    def _ask_autoscaler(self) -> None:
        """Request the resources of all workers: an autoscaler does not see ours, which are bound to existing nodes."""
        self._autoscaler_asked = True
        bundle = {"GPU": 1 / self._size.per_gpu} if self._size.device == "cuda" else {"CPU": self._size.threads}
        with contextlib.suppress(Exception):  # the cluster has no autoscaler
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[bundle] * self._max_workers)

    def free_slots(self, occupied: Sequence[str], useful: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where to start actors: (id of the node, options of the actor), spread over the nodes.

        Args:
            occupied: Node of each existing actor.
            useful: Largest number of actors that would have work.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        counts, missing = Counter(occupied), min(self._max_workers or useful, useful) - len(occupied)
        free = {
            node_id: node.slots - counts[node_id]
            for node_id, node in self._nodes.items()
            if node.alive and node_id not in self._excluded
        }
        while missing > 0 and max(free.values(), default=0) > 0:
            node_id = max(free, key=lambda name: free[name])
            free[node_id] -= 1
            missing -= 1
            affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
            yield node_id, {**self._nodes[node_id].resources, "scheduling_strategy": affinity}

    def mark_failed(self, node_id: str, error: Exception, max_attempts: int) -> None:
        """Record that a worker could not start on a node; after `max_attempts` the node is excluded."""
        self._start_failures[node_id] += 1
        cause = getattr(error, "cause", None)  # of an error in a worker's constructor
        message = user_message(cause) if cause is not None else None
        self._last_failure = message or str(error).strip().splitlines()[-1]
        is_missing_package = isinstance(cause, ImportError)  # other nodes may have it
        self.bug = None if cause is None or message or is_missing_package else error
        if self._start_failures[node_id] >= max_attempts:
            self._excluded.add(node_id)
            log.warning("workers cannot start on %s, it is left out: %s", self.name(node_id), self._last_failure)

    def name(self, node_id: str) -> str:
        """Name of a node in logs and events."""
        return self._nodes[node_id].name

    def is_alive(self, node_id: str) -> bool:
        """Whether Ray knows the node as alive now."""
        return any(node["NodeID"] == node_id for node in self.session.nodes())

    def is_unschedulable(self) -> bool:
        """Whether waiting is useless: no node can run a worker, and no further nodes are expected."""
        usable = any(n.alive and n.slots and i not in self._excluded for i, n in self._nodes.items())
        lost = any(not node.alive for node in self._nodes.values())
        expected = not self.session.is_local and (lost or self._max_workers > self._total_slots())
        return not usable and (bool(self._excluded) or not expected)

    def no_worker_reason(self) -> str:
        """Why no worker runs, and what to do."""
        if self._excluded:
            return f"workers cannot start on any node: {self._last_failure}"
        if self.session.is_local:
            return f"this machine has no capacity for a worker, which requires {self._size}: choose another device"
        return (
            f"the {len(self._nodes)} nodes of the cluster have no capacity for a worker, which requires {self._size}: "
            "add such a node, or set a number of workers so that an autoscaler does"
        )

    def slow_start_reason(self, node_ids: Sequence[str]) -> str:
        """What may delay the start of workers on these nodes."""
        if self.session.is_local:
            return "is this machine short of memory, or its disk slow?"
        names = sorted({self.name(node_id) for node_id in node_ids})
        return f"are the cores of {', '.join(names)} in use by other jobs?"

    def close(self) -> None:
        """Withdraw the request to the autoscaler."""
        if self._autoscaler_asked:
            from ray.autoscaler.sdk import request_resources

            request_resources(num_cpus=0)
