"""The state of a run (model, optimizer, average, data) and the step that updates it.

Axes: B batch, C condition tokens, T image codes of a sequence.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dacite
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from codeprior import checkpoint as ckpt
from codeprior import distributed
from codeprior.attention import check_attention
from codeprior.augment import augment
from codeprior.blend import Blend
from codeprior.config import PriorError
from codeprior.data import Batch, checked, random_bits
from codeprior.masked import make_prior
from codeprior.model import Prior
from codeprior.optim import learning_rate_at, make_optimizer
from codeprior.speed import resolve_precision
from runkit.checkpoints import TENSORS, DamagedError, check_shapes, read_tensors, read_values
from runkit.devices import Autocast, make_autocast, resumed_precision
from runkit.files import write_json
from runkit.muon import moments_of
from runkit.ranks import barrier, rank, world_size
from runkit.runs import warn_of_other_steps
from runkit.tensors import save_tensors
from runkit.training import place_run, update_average

logger = logging.getLogger(__name__)
_DROPOUT = 21  # the stream of random numbers that seeds a step's dropout


@dataclass(frozen=True, kw_only=True, slots=True)
class _Values:
    """The plain values of a checkpoint, with their types."""

    step: int
    loader: dict[str, Any]
    precision: Autocast
    recent: list[list[float]]
    train_seconds: float
    best_nats: float | None


class SequenceLoss(nn.Module):
    """The mean negative log-likelihood as a module, for DDP and torch.compile."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self,
        condition_BC: Tensor,
        codes_BT: Tensor,
        inputs_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the mean over all image codes of the batch, in nats."""
        return self.prior.nll(condition_BC, codes_BT, inputs_BT=inputs_BT, positions_BT=positions_BT).mean()


def train_step(
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: list[Batch],
    *,
    learning_rate: float,
    grad_clip: float,
    autocast: torch.autocast,
) -> tuple[Tensor, Tensor]:
    """Update the weights from one batch.

    After a gradient that is not finite, neither this step nor later ones with this optimizer change the weights, so
    that they can be examined. Nothing waits for the device to detect it.

    Args:
        loss: A :class:`SequenceLoss` in train mode, or DDP around one.
        optimizer: Fused, over the parameters of the prior.
        parts: Equal parts of this rank's batch, on the device of the prior; gradients are averaged over them.
        learning_rate: That of this update, for every parameter group.
        grad_clip: Largest global norm of the gradient; 0: no clipping.
        autocast: Precision of the forward pass, see :func:`runkit.devices.make_autocast`.

    Returns:
        The mean negative log-likelihood of this rank's image codes in nats, before the update, and the norm of the
        gradient before clipping, as detached scalars on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    nll = torch.zeros((), device=parts[0].codes_BT.device)
    for number, part in enumerate(parts, start=1):
        with distributed.skip_gradient_sync(loss, number < len(parts)):
            with autocast:
                mean = loss(**part.tensors()) / len(parts)
            mean.backward()
        nll += mean.detach()
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    norm = distributed.full_tensor(
        nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    # The fused kernel divides by grad_scale and checks found_inf, so clipping requires no separate pass.
    bad = (~torch.isfinite(norm)).float()
    optimizer.found_inf = torch.maximum(getattr(optimizer, "found_inf", bad), bad)  # type: ignore[attr-defined]
    clip = ((norm + 1e-6) / grad_clip).clamp(min=1.0) if grad_clip > 0 else None
    optimizer.grad_scale = clip  # type: ignore[attr-defined]
    optimizer.step()
    return nll, norm.detach()


class Trainer:
    """All that a step changes, on this rank's device."""

    def __init__(self, run: ckpt.RunConfig, blend: Blend, out: Path) -> None:
        self.run, self.config, self.out = run, run.train, out
        config = run.train
        self.folder = ckpt.run_folder(out)
        self.device, precision = place_run(config, resolve_precision, PriorError)
        check_attention(config.model, self.device, precision)
        self._set_precision(precision)
        self.batches = blend.batches(config, run.sequence, rank=rank(), world_size=world_size())
        torch.manual_seed(config.seed)
        self.prior = make_prior(config.model, run.sequence).to(self.device)
        self.averaged = copy.deepcopy(self.prior).requires_grad_(False) if config.ema_decay else None
        if config.checkpoint_activations:
            for block in self.prior.blocks:
                block.forward = functools.partial(recomputed, block.forward, use_reentrant=False)
        self.parameter_count = self.prior.parameter_count
        self.loss: nn.Module = self._wrap()
        self.optimizer = make_optimizer(self.prior, config, precision)
        self._moments = moments_of(self.optimizer)

    def _wrap(self) -> nn.Module:
        several, loss = world_size() > 1, SequenceLoss(self.prior)
        fsdp = self.config.parallel == "fsdp"
        if several and fsdp:
            for prior in (self.prior, self.averaged):
                if prior is not None:
                    distributed.shard(prior)
        if self.config.compile:
            loss.compile()
        return distributed.replicate(loss, self.device) if several and not fsdp else loss

    @property
    def step(self) -> int:
        """Number of updates that are done."""
        return self.batches.step

    @property
    def shipped(self) -> Prior:
        """The prior that is evaluated and published: the moving average, if there is one."""
        return self.prior if self.averaged is None else self.averaged

    def advance(self) -> tuple[Tensor, Tensor]:
        """Do one update; returns as :func:`train_step`."""
        config, step = self.config, self.step
        parts = self._batch(step).to(self.device).split(config.accumulate)
        if config.model.dropout > 0:
            # Seeded in every step, so that a run resumes with the same dropout without a saved generator.
            torch.manual_seed(int(random_bits(1, config.seed, step, rank(), _DROPOUT)[0] >> 1))
        found = train_step(
            self.loss,
            self.optimizer,
            parts,
            learning_rate=learning_rate_at(config, step),
            grad_clip=config.grad_clip,
            autocast=self.autocast,
        )
        self.batches.step += 1
        if self.averaged is not None:
            update_average(self.averaged, self.prior, config.ema_decay, self.step)
        return found

    def _batch(self, step: int) -> Batch:
        batch = checked(self.batches.at(step), self.run.sequence)
        return augment(batch, self.config, self.run.sequence, step=step, mine=self.batches.mine)

    def weights(self) -> dict[str, Tensor]:
        """Return the published weights on rank 0; every rank must call it."""
        return distributed.gather(self.shipped.state_dict().items())

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors (on rank 0) and plain values that, with the published weights, determine all later steps.

        Every rank must call it.
        """
        moments = (
            (f"{key}/{name}", self.optimizer.state[parameter][key])
            for name, parameter in self.prior.named_parameters()
            for key in self._moments[parameter]
        )
        trained = ((f"trained/{name}", tensor) for name, tensor in self.prior.state_dict().items())
        tensors = distributed.gather(itertools.chain(moments, trained if self.averaged is not None else ()))
        return tensors, {"loader": self.batches.state_dict(), "precision": self.precision}

    def check(self, checkpoint: Path) -> None:
        """Make sure that :meth:`load` can continue from a checkpoint; one rank is enough.

        Raises:
            DamagedError: The checkpoint is damaged.
            PriorError: It belongs to another config or dataset, or to more steps.
        """
        values = self._values(checkpoint)
        weights, tensors = read_tensors(checkpoint)
        check_shapes(weights, self.shipped.state_dict(), checkpoint / ckpt.WEIGHTS)
        expected = {f"{key}/{name}": p for name, p in self.prior.named_parameters() for key in self._moments[p]}
        if self.averaged is not None:
            expected |= {f"trained/{name}": tensor for name, tensor in self.prior.state_dict().items()}
        check_shapes(tensors, expected, checkpoint / TENSORS)
        self.folder.check_steps(values["step"], self.config.steps)

    def _values(self, checkpoint: Path) -> dict[str, Any]:
        config, values = read_values(checkpoint)
        saved = ckpt.RunConfig.from_values(config, checkpoint / ckpt.CONFIG)
        self.folder.check_same_run(saved, self.run, checkpoint)
        try:
            dacite.from_dict(_Values, values)
        except dacite.DaciteError as error:
            raise DamagedError(f"{checkpoint / ckpt.SCALARS} is damaged: {error}") from error
        return {**values, "saved_steps": saved.train.steps}

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Continue exactly from a checkpoint that :meth:`check` has accepted; return its plain values.

        With another number of processes the batches are the same, but dropout is not.

        Raises:
            PriorError: The loader's state belongs to other data.
        """
        values = self._values(checkpoint)
        weights, tensors = read_tensors(checkpoint, verify=False)
        ckpt.set_weights(self.shipped, weights, checkpoint / ckpt.WEIGHTS)
        self._set_precision(resumed_precision(self.config.precision, self.precision, values["precision"]))
        self.batches.load_state_dict(values["loader"])
        if self.averaged is not None:
            for name, target in self.prior.state_dict().items():
                target.copy_(distributed.distribute_like(tensors[f"trained/{name}"], target))
        for name, parameter in self.prior.named_parameters():
            keys = self._moments[parameter]
            moments = {key: distributed.distribute_like(tensors[f"{key}/{name}"], parameter) for key in keys}
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step), device=parameter.device),
                **moments,
            }
        warn_of_other_steps(values["saved_steps"], self.config.steps, self.step, self._depends_on_steps())
        return values

    def _depends_on_steps(self) -> Iterator[str]:
        if self.config.schedule == "cosine":
            yield "the learning rate (schedule 'cosine')"
        if self.config.random_order and self.config.anneal_start < 1:
            yield "the share of permuted sequences (random_order)"

    def _set_precision(self, precision: Autocast) -> None:
        self.precision: Autocast = precision
        self.autocast = make_autocast(self.device, precision)

    def save_evidence(self, step: int) -> Path:
        """Write every rank's batch of an update whose loss is not finite, and the weights, which it has not changed.

        Returns:
            The folder, which :func:`codeprior.checkpoint.load_prior` reads.
        """
        folder = self.out / f"non-finite-step-{step:08d}"
        weights = distributed.gather(self.prior.state_dict().items())
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            ckpt.write_weights(folder, self.run, weights)
            write_json(folder / ckpt.SCALARS, {"step": step, "precision": self.precision})
        barrier()
        batch = {name: tensor.contiguous() for name, tensor in self._batch(step).tensors().items()}
        save_tensors(folder / f"batch-rank-{rank()}.safetensors", batch, PriorError)
        return folder
