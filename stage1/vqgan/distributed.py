"""Data parallelism in a few lines: with one process every function here is the identity.

Gradients are averaged once a step in one flat buffer. That gives up the overlap of DistributedDataParallel, and in
turn the step may differentiate its terms one by one, which the adaptive weight of the discriminator wants.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process, 0 … world() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all ranks, in place."""
    tensors = list(tensors)
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def total(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


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
