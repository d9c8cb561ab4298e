"""DDP and FSDP2 for a prior; with a single process every function is the identity.

DDP keeps a copy of the model on each rank; FSDP2 shards weights, gradients and optimizer state over the ranks. In both
cases a checkpoint holds full tensors, so that any number of processes can load it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from codeprior.model import Prior
from runkit.ranks import rank, world_size


def shard(prior: Prior) -> None:
    """Shard the prior's weights over the ranks, block by block (FSDP2).

    They are gathered in float32, as in DDP, also for bfloat16, so that the residual stream is in float32.
    """
    mesh = init_device_mesh(prior.device.type, (world_size(),))
    for block in prior.blocks:
        fully_shard(block, mesh=mesh)
    # Resharded after the outermost forward pass too: an evaluation must not leave full weights on every rank.
    fully_shard(prior, mesh=mesh, reshard_after_forward=True)


def replicate(loss: nn.Module, device: torch.device) -> nn.Module:
    """Average the gradients over the ranks during the backward pass (DDP)."""
    ids = [device.index or torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(loss, device_ids=ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def skip_gradient_sync(loss: nn.Module, skip: bool) -> Iterator[None]:
    """Do not average the gradients in the block; for all but the last part of an accumulated batch."""
    if isinstance(loss, DistributedDataParallel) and skip:
        with loss.no_sync():
            yield
        return
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(not skip, recurse=False)
    yield


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor with the shards of all ranks, which must all call it; a plain tensor is returned as it is."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def gather(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return named full tensors on rank 0, and nothing on the others; every rank must call it.

    Sharded tensors are gathered one at a time and moved to main memory, because a model that fills all GPUs does not
    fit on one of them.
    """
    found = {}
    for name, tensor in tensors:
        complete = full_tensor(tensor)
        if rank() == 0:
            found[name] = complete.cpu() if isinstance(tensor, DTensor) else complete
    return found


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor on the device of `like`, sharded over the ranks if `like` is."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor
