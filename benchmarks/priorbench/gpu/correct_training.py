"""Runs of the prior on the device: in a group of one process, resumed, and out of memory."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from codeprior import distributed
from codeprior.checkpoint import set_weights
from codeprior.config import ModelConfig, SequenceSpec, TrainConfig
from codeprior.data import Batch
from codeprior.model import Prior
from codeprior.optim import make_optimizer
from codeprior.train import train_prior
from codeprior.trainer import SequenceLoss, train_step
from priorbench import shards
from priorbench.gpu.check import Figure, Setup
from priorbench.gpu.correct_prior import distance
from runkit.checkpoints import checkpoints, read_tensors
from runkit.devices import make_autocast
from runkit.errors import user_message

_MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=64, attention="math")
"""Fused attention sums gradients on a GPU in any order, and plain products in the same one each time."""
_ROUNDING = 1e-5
"""Largest distance of what differs by the order of a few sums: in float32 it is about 1e-7."""


def prior_parallel(setup: Setup) -> Iterator[Figure]:
    """Compare three updates under DDP and FSDP2, in a group of one process, with those without a group."""
    start = Prior(_MODEL, _sequence(setup)).to(setup.device)
    expected = _updated(setup, copy.deepcopy(start))
    with _group_of_one(setup.device):
        replica, sharded = copy.deepcopy(start), copy.deepcopy(start)
        distributed.shard(sharded)
        for name, found in (
            ("DDP", _updated(setup, replica, distributed.replicate(SequenceLoss(replica), setup.device))),
            ("FSDP2", _updated(setup, sharded)),
        ):
            yield Figure(f"{name}: losses", distance([found[0]], [expected[0]]), at_most=_ROUNDING)
            yield Figure(f"{name}: gradient norms", distance([found[1]], [expected[1]]), at_most=_ROUNDING)
            yield Figure(f"{name}: weights of a checkpoint", _away(found[2], expected[2]), at_most=_ROUNDING)
        set_weights(sharded, distributed.gather(start.state_dict().items()), Path("weights"))
        read_back = _away(distributed.gather(sharded.state_dict().items()), start.state_dict())
        yield Figure("FSDP2: weights read back", read_back, at_most=0)


@contextmanager
def _group_of_one(device: torch.device) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _sequence(setup: Setup) -> SequenceSpec:
    side = setup.pick(16, 4)
    return SequenceSpec(height=side, width=side, codebook_size=512, order="row_major", fingerprint="check")


def _updated(
    setup: Setup, prior: Prior, loss: torch.nn.Module | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return losses, gradient norms and the weights as a checkpoint has them, of three updates in float32."""
    loss, optimizer = loss or SequenceLoss(prior), make_optimizer(prior, TrainConfig(model=_MODEL))
    numbers = torch.Generator().manual_seed(1)
    codes_BT = torch.randint(512, (8, prior.sequence.length), generator=numbers)
    parts = Batch(condition_BC=torch.zeros(8, 1, dtype=torch.int64), codes_BT=codes_BT).to(setup.device).split(2)
    options: dict[str, Any] = {"learning_rate": 1e-3, "grad_clip": 1.0}
    autocast = make_autocast(setup.device, "float32")
    steps = [train_step(loss, optimizer, parts, **options, autocast=autocast) for _ in range(3)]
    losses, norms = (torch.stack(column) for column in zip(*steps, strict=True))
    return losses, norms, distributed.gather(prior.state_dict().items())


def _away(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return distance([found[name] for name in expected], expected.values())


def prior_resume(setup: Setup) -> Iterator[Figure]:
    """Compare a run that is stopped and resumed with one that is not, bit by bit."""
    half = setup.pick(8, 3)
    cuda = setup.device.type == "cuda"
    config = TrainConfig(
        model=replace(_MODEL, dropout=0.1), batch_size=16, accumulate=2, ema_decay=0.9, warmup_steps=2,
        schedule="constant", steps=2 * half, log_every=half, eval_every=100, checkpoint_every=half,
        device="cuda" if cuda else "cpu", precision="bfloat16" if cuda else "float32",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=setup.work) as name:
        folder = Path(name)
        shards.write(folder / "shards", shards.skewed_codes(100, setup.pick(16, 4)))
        train_prior(config, folder / "shards", folder / "whole")
        train_prior(replace(config, steps=half), folder / "shards", folder / "resumed")
        before = _state(folder / "resumed")
        train_prior(config, folder / "shards", folder / "resumed")
        whole, resumed = _state(folder / "whole"), _state(folder / "resumed")
    equal = [whole.keys() == resumed.keys() and torch.equal(whole[key], resumed[key]) for key in whole]
    yield Figure("weights, average and moments, bit by bit: equal tensors", sum(equal) / len(equal), "%", at_least=1)
    # Each update moves a weight by about the learning rate of 1e-3, and most weights are about 0.02.
    yield Figure("distance that they moved after the resume", _away(before, whole), at_least=1e-3)


def _state(run: Path) -> dict[str, Tensor]:
    """Return all tensors of the last checkpoint."""
    weights, tensors = read_tensors(checkpoints(run)[-1])
    return weights | tensors


def memory_message(setup: Setup) -> Iterator[Figure]:
    """Train with too large a batch: one message says what to change, and the process can still train."""
    prior = Prior(_MODEL, _sequence(setup)).to(setup.device)
    loss, optimizer = SequenceLoss(prior), make_optimizer(prior, TrainConfig(model=_MODEL))
    condition_11 = torch.zeros(1, 1, dtype=torch.int64, device=setup.device)
    codes_1T = torch.randint(512, (1, prior.sequence.length), device=setup.device)
    autocast = make_autocast(setup.device, "float32")

    def step(rows: int) -> float:
        batch = Batch(condition_BC=condition_11.expand(rows, -1), codes_BT=codes_1T.expand(rows, -1))
        nll, _ = train_step(loss, optimizer, [batch], learning_rate=1e-3, grad_clip=1.0, autocast=autocast)
        return float(nll)

    with _gib_of_memory(setup.device):
        # Activations of 4096 sequences take several GiB. No CPU has addresses for 2**50 bytes.
        message = _failure(step, 2**12 if setup.device.type == "cuda" else 2**50)
        names = "choose smaller sizes or batches" in message
        yield Figure("the message names sizes and batches (1: yes)", float(names), at_least=1)
        yield Figure("loss of a small step afterwards, in nats", step(8), at_most=10)  # ln 512 = 6.2 at first


@contextmanager
def _gib_of_memory(device: torch.device) -> Iterator[None]:
    """Let this process allocate one more GiB of a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _failure(step: Callable[[int], float], rows: int) -> str:
    """Return what a command would print about the error of a step."""
    try:
        step(rows)
    except (RuntimeError, MemoryError) as error:
        return user_message(error) or f"a traceback: {error}"
    return "no error"
