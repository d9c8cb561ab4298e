"""The Ray actors of a job: what runs in an actor's process, and what the driver knows about an actor."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from codeshards.format.plan import PlannedShard
from runkit.retries import PassingError, is_passing


class ActorHost:
    """The class of all actors: makes the worker once, runs its tasks, and answers the driver meanwhile."""

    def __init__(self, worker: type[Any], arguments: tuple[Any, ...]) -> None:
        self._error: Exception | None = None
        try:
            self._worker = worker(*arguments)
        except Exception as error:  # noqa: BLE001 - `pid` raises it: of an error in a constructor Ray keeps only the text
            self._error = error

    def pid(self) -> int:
        """Id of the process; answers when the worker is made, and raises the error where it cannot be made."""
        if self._error is not None:
            raise self._error
        return os.getpid()

    def run(self, task: Any) -> Any:
        """Make a shard."""
        try:
            return self._worker.run(task)
        except Exception as error:
            if is_passing(error):  # marked by a class of its own, because Ray drops the cause of an error
                raise PassingError(str(error)) from error
            raise

    def samples_done(self) -> int:
        """Number of samples finished since the process started."""
        return int(getattr(self._worker, "samples_done", 0))


@dataclass(slots=True, eq=False)
class ActorHandle:
    """An actor as the driver sees it."""

    actor: Any
    """Ray's handle."""
    node: str
    """Id of its node."""
    running: dict[Any, PlannedShard] = field(default_factory=dict)
    """Reference of a call of `run` → its shard."""
    ready: bool = False
    """Whether its worker is made."""
    query: Any = None
    """Reference of the open query: for the pid first, for the samples done later."""
    samples: int = 0
    """Number of samples that it reports as done."""
    finished: int = 0
    """Number of samples in the shards that it has finished."""


def assigned_cores() -> int:
    """Number of cores that Ray has reserved for the worker that calls this."""
    import ray

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("CPU", 1))
