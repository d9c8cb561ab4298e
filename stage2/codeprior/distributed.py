"""Several processes as one: with a single process every function here is the identity.

DDP keeps a copy of the model on each rank; FSDP2 shares weights, gradients and optimizer state out over the ranks.
Either way a checkpoint holds whole tensors, so it loads into any number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from codeprior.model import Prior
from runkit.ranks import barrier, from_first, process_group, rank, total, world

__all__ = [
    "barrier", "from_first", "gathered", "gradients_stay_local", "host_group", "least", "placed_like", "process_group",
    "rank", "replicate", "shard", "total", "whole", "world",
]  # fmt: skip


def least(value: float, device: torch.device) -> float:
    """The smallest of what all ranks pass."""
    tensor = torch.tensor(value, device=device)
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return float(tensor)


def host_group() -> dist.ProcessGroup | None:
    """A further group of all ranks, for tensors in main memory whatever the first one's backend; None for one process.

    Every rank must call it.
    """
    if world() == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # what ranks outside the group get is no group
    return group


def shard(prior: Prior) -> None:
    """Share the prior's weights out over the ranks, a block at a time (FSDP2).

    They are gathered in float32, as DDP has them, also for bfloat16: the residual stream stays in float32 so.
    """
    mesh = init_device_mesh(prior.device.type, (world(),))
    for block in prior.blocks:
        fully_shard(block, mesh=mesh)
    # Resharded also after the outermost forward: an evaluation must not leave whole weights behind.
    fully_shard(prior, mesh=mesh, reshard_after_forward=True)


def replicate(loss: nn.Module, device: torch.device) -> nn.Module:
    """Average the gradients over the ranks while the backward pass still runs (DDP)."""
    ids = [device.index or torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(loss, device_ids=ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def gradients_stay_local(loss: nn.Module, local: bool) -> Iterator[None]:
    """Leave gradients unaveraged in all but the last part of an accumulated batch."""
    if isinstance(loss, DistributedDataParallel) and local:
        with loss.no_sync():
            yield
        return
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(not local, recurse=False)
    yield


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all ranks; every rank must call it. Plain tensors come back as they are."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Named tensors on rank 0, nothing on the others; every rank must call it.

    What is shared out is made whole one tensor at a time and goes to main memory: a model that fills the GPUs together
    must not have to fit on each of them.
    """
    found = {}
    for name, tensor in tensors:
        complete = whole(tensor)
        if rank() == 0:
            found[name] = complete.cpu() if isinstance(tensor, DTensor) else complete
    return found


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor where `like` is: on its device, and this rank's part of it where it is shared out."""
    tensor = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor
