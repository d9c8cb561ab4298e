"""The processes of one training run; with one process every function is the identity. This module imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from runkit.errors import UserError

_T = TypeVar("_T")


def rank() -> int:
    """Return the number of this process, 0 … world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait for all ranks, for as long as the group allows."""
    if world_size() > 1:
        dist.barrier(group)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all ranks, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def min_over_ranks(value: float, device: torch.device) -> float:
    """Return the smallest of the values that the ranks pass."""
    tensor = torch.tensor(value, device=device)
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return float(tensor)


def host_group(timeout: timedelta | None = None) -> dist.ProcessGroup | None:
    """Create a second group of all ranks, for tensors in main memory, whatever the backend of the first one.

    All ranks must call it. With one process it returns None.

    Args:
        timeout: How long a rank waits for the others; None: as long as torch's default, half an hour.
    """
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # only ranks outside the group get something else
    return group


def from_rank_0(work: Callable[[], _T], error: type[UserError] = UserError) -> _T:
    """Call a function on rank 0 only, and return its result on all ranks.

    Args:
        work: Returns something that can be pickled.
        error: Class of the error.

    Raises:
        UserError: that of rank 0, with the same message on every rank.
    """
    found: list[Any] = [None, ""]
    if rank() == 0:
        try:
            found[0] = work()
        except UserError as refusal:
            found[1] = str(refusal)
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    if found[1]:
        raise error(found[1])
    answer: _T = found[0]
    return answer


def check_batch_size(batch_size: int, accumulate: int, error: type[UserError] = UserError) -> None:
    """Refuse a batch that cannot be divided equally among the ranks and their accumulated parts.

    Raises:
        UserError: naming the batch size and its divisor.
    """
    parts = world_size() * accumulate
    if batch_size % parts:
        raise error(
            f"batch_size is {batch_size}: choose a multiple of {parts} "
            f"({world_size()} processes × accumulate = {accumulate})"
        )


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that `torchrun` describes in the environment; without one, or inside one, do nothing."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if (place := int(os.environ.get("LOCAL_RANK", "0"))) < torch.cuda.device_count():
        torch.cuda.set_device(place)
    # Both backends, for a run with device = "cpu" on a machine with GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
