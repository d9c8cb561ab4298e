"""A Ray cluster on this machine whose nodes can be killed and replaced."""

from __future__ import annotations

import random
from typing import Any

_STARTS = 8


class RayCluster:
    """A head without cores, and nodes, by default of one core."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": 80 * 2**20,
                "dashboard_agent_listen_port": 0,  # another Ray of the tests may have the usual one
            },
        )
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    @property
    def address(self) -> str:
        """Value for RAY_ADDRESS."""
        return str(self._cluster.address)

    @property
    def head(self) -> Any:
        """The head's processes."""
        return self._cluster.head_node

    def add(self, cores: int = 1) -> None:
        """Start a node; tried several times, because Ray gives a raylet half a minute."""
        for attempt in range(_STARTS):
            try:
                self._nodes.append(self._cluster.add_node(num_cpus=cores, object_store_memory=80 * 2**20))
                return
            except Exception as error:
                if attempt == _STARTS - 1:
                    raise RuntimeError("a node did not start: the machine is too busy") from error

    def replace(self, rng: random.Random) -> None:
        """Kill a node with its processes, and start another."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self.add()

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()
