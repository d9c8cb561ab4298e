"""The processes of one training; with one process every function here is the identity. This module imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from runkit.errors import UserError

_T = TypeVar("_T")


def rank() -> int:
    """Number of this process, 0 … world() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(work: Callable[[], _T], error: type[UserError] = UserError) -> _T:
    """What `work` returns on rank 0, on all ranks; the others do not call it.

    Args:
        work: Returns something that can be pickled.
        error: Class of the error.

    Raises:
        UserError: rank 0's, with the same message on every rank.
    """
    found: list[Any] = [None, ""]
    if rank() == 0:
        try:
            found[0] = work()
        except UserError as refusal:
            found[1] = str(refusal)
    if world() > 1:
        dist.broadcast_object_list(found, src=0)
    if found[1]:
        raise error(found[1])
    answer: _T = found[0]
    return answer


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that `torchrun` describes in the environment; does nothing without it or inside one."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if (place := int(os.environ.get("LOCAL_RANK", "0"))) < torch.cuda.device_count():
        torch.cuda.set_device(place)
    # Both, for a run with device = "cpu" on a machine with GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
