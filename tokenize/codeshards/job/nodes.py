"""The nodes of a Ray cluster and how many workers fit on each, looked at again while a job runs."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from codeshards.job.session import Session
from runkit.errors import user_message

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSize:
    """What a worker takes of a node."""

    device: str
    """cpu or cuda."""
    threads: int
    """Cores of a worker on the CPU."""
    decode_threads: int
    """Cores of a worker with a GPU; 0: its share of the node's."""

    def fits(self, cpus: int, gpus: int) -> tuple[int, dict[str, int]]:
        """How many workers a node of this size runs, and what each takes of it.

        A node with fewer cores than a worker wants still gets one: more threads than cores are only slower.
        """
        if self.device == "cuda":
            share = self.decode_threads or max(1, cpus // max(gpus, 1))
            return gpus, {"num_gpus": 1, "num_cpus": min(share, cpus // gpus if gpus else 0)}
        return (max(1, cpus // self.threads) if cpus else 0), {"num_cpus": min(self.threads, cpus)}

    def __str__(self) -> str:
        return "a GPU" if self.device == "cuda" else f"{self.threads} cores"


@dataclass(slots=True)
class _Node:
    name: str
    slots: int
    resources: dict[str, int]
    alive: bool = True


class Cluster:
    """The nodes as last looked at."""

    def __init__(self, session: Session, size: WorkerSize, workers: int) -> None:
        self.session = session
        self._size, self._limit = size, workers
        self._nodes: dict[str, _Node] = {}
        self._refused: Counter[str] = Counter()
        self._out: set[str] = set()
        self._reason = ""
        self.bug: Exception | None = None
        """What a worker's own code raised as it started, where no person's setting or node is to blame."""
        self._asked_autoscaler = False

    def look(self) -> list[tuple[str, str]]:
        """Look at the nodes; returns what changed: ("node_joined" or "node_left", its name)."""
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
        if self._limit > self._slots() and not self._asked_autoscaler:
            self._ask_autoscaler()
        return changes

    def _slots(self) -> int:
        return sum(node.slots for node in self._nodes.values() if node.alive)

    def _ask_autoscaler(self) -> None:
        """Tell an autoscaler, where there is one, how many workers are wanted: ours are bound to nodes that exist."""
        self._asked_autoscaler = True
        bundle = {"GPU": 1} if self._size.device == "cuda" else {"CPU": self._size.threads}
        with contextlib.suppress(Exception):  # a cluster without an autoscaler has nobody to ask
            from ray.autoscaler.sdk import request_resources

            request_resources(bundles=[bundle] * self._limit)

    def room(self, taken: Sequence[str], wanted: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where to start actors: (node's id, the actor's options), spread over the nodes.

        Args:
            taken: Node of each actor that there is.
            wanted: Actors that have something to do, at most.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        counts, missing = Counter(taken), min(self._limit or wanted, wanted) - len(taken)
        free = {
            node_id: node.slots - counts[node_id]
            for node_id, node in self._nodes.items()
            if node.alive and node_id not in self._out
        }
        while missing > 0 and max(free.values(), default=0) > 0:
            node_id = max(free, key=lambda name: free[name])
            free[node_id] -= 1
            missing -= 1
            affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
            yield node_id, {**self._nodes[node_id].resources, "scheduling_strategy": affinity}

    def refuse(self, node_id: str, error: Exception, attempts: int) -> None:
        """Note that a worker could not start on a node; one that cannot at all is left out."""
        self._refused[node_id] += 1
        cause = getattr(error, "cause", None)  # of an error in a worker's constructor
        message = user_message(cause) if cause is not None else None
        self._reason = message or str(error).strip().splitlines()[-1]
        lacks = isinstance(cause, ImportError)  # a package that the others may have
        self.bug = None if cause is None or message or lacks else error
        if self._refused[node_id] >= attempts:
            self._out.add(node_id)
            log.warning("workers cannot start on %s, it is left out: %s", self.name(node_id), self._reason)

    def name(self, node_id: str) -> str:
        """What people call the node."""
        return self._nodes[node_id].name

    def is_alive(self, node_id: str) -> bool:
        """Whether the node is there, as Ray knows now."""
        return any(node["NodeID"] == node_id for node in self.session.nodes())

    def hopeless(self) -> bool:
        """Whether waiting is no use: no node can run a worker, and no one was asked for more nodes."""
        usable = any(n.alive and n.slots and i not in self._out for i, n in self._nodes.items())
        lost = any(not node.alive for node in self._nodes.values())
        more = not self.session.is_own and (lost or self._limit > self._slots())
        return not usable and (bool(self._out) or not more)

    def why_no_worker(self) -> str:
        """What to tell a person."""
        if self._out:
            return f"workers cannot start on any node: {self._reason}"
        if self.session.is_own:
            return f"this machine has no room for a worker, which takes {self._size}: choose another device"
        return (
            f"the {len(self._nodes)} nodes of the cluster have no room for a worker, which takes {self._size}: "
            "add such a node, or name a number of workers so that an autoscaler does"
        )

    def why_late(self, node_ids: Sequence[str]) -> str:
        """What may keep workers on these nodes from starting."""
        if self.session.is_own:
            return "is this machine short of memory, or its disk slow?"
        return f"do others hold the cores of {', '.join(sorted({self.name(node_id) for node_id in node_ids}))}?"

    def close(self) -> None:
        """Take back what the autoscaler was asked for."""
        if self._asked_autoscaler:
            from ray.autoscaler.sdk import request_resources

            request_resources(num_cpus=0)
