"""The mean of tensors over all ranks; with one process it is the identity.

Gradients are averaged once per step in one flat buffer. That gives up the overlap of DistributedDataParallel; in return
a step can differentiate its terms one by one, which the adaptive weight of the discriminator requires.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from runkit.ranks import world_size


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over all ranks, in place."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
