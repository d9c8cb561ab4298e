"""Data parallelism in a few lines: with one process every function here is the identity.

Gradients are averaged once a step in one flat buffer. That gives up the overlap of DistributedDataParallel, and in
turn the step may differentiate its terms one by one, which the adaptive weight of the discriminator wants.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from runkit.ranks import barrier, from_first, process_group, rank, total, world

__all__ = ["average", "barrier", "from_first", "process_group", "rank", "total", "world"]


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
