"""Training a prior from token shards: the loop around the step, with its metrics and evaluation.

Axes: S datasets of a blend, T image codes of a sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codeprior import checkpoint as ckpt
from codeprior.blend import Blend, Shards, places
from codeprior.config import PriorError, TrainConfig
from codeprior.data import CodeData, checked, pixel_dims
from codeprior.model import Prior
from codeprior.optim import learning_rate_at
from codeprior.speed import peak_flops, step_flops_per_sequence
from codeprior.trainer import Trainer
from codeprior.unigram import code_counts, entropy_nats, mixed, unigram_nll_nats
from codeshards.format import OrderName
from runkit.checkpoints import checkpoints
from runkit.codes import Codes
from runkit.folders import check_apart
from runkit.progress import tqdm
from runkit.ranks import barrier, process_group, rank, sum_over_ranks, world_size
from runkit.trackers import check_tracker
from runkit.training import TrainingLoop, run_training


@torch.no_grad()
def evaluate(
    prior: Prior,
    data: CodeData,
    *,
    batch_size: int,
    autocast: torch.autocast,
    order: OrderName | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Return the mean negative log-likelihood in nats at each position of the sequence, [T], over all rows.

    Each rank evaluates its part of every batch; the result is the same on all ranks.

    Args:
        prior: The prior.
        data: The rows.
        batch_size: Rows per batch, over all ranks.
        autocast: The precision.
        order: The order of the codes, for a prior of any order; default: the prior's own.
        before_batch: Called before every batch; an exception that it raises on all ranks ends the evaluation.
    """
    was_training = prior.training
    prior.eval()
    first = rank() == 0
    indices_T = None if order is None else torch.from_numpy(prior.sequence.indices(order)).to(prior.device)
    total_T = torch.zeros(prior.sequence.length, dtype=torch.float32, device=prior.device).double()
    batches = range(0, data.rows, batch_size)
    for start in tqdm(batches, desc="evaluate", leave=False, disable=None if first else True):
        before_batch()
        mine = np.arange(start, min(start + batch_size, data.rows))[rank() :: world_size()]
        # With FSDP all ranks must run every forward pass: one without rows takes the first row and does not count it.
        batch = checked(data.take(mine if len(mine) else np.zeros(1, np.int64)), data.sequence).to(prior.device)
        if indices_T is not None:
            positions_BT = indices_T.expand(len(batch.codes_BT), -1)
            batch = replace(batch, codes_BT=batch.codes_BT[:, indices_T], positions_BT=positions_BT)
        with autocast:
            nll_BT = prior.nll(**batch.tensors())
        if len(mine):
            total_T += nll_BT.double().sum(dim=0)
    prior.train(was_training)
    return (sum_over_ranks(total_T) / data.rows).cpu().numpy()


class Run(TrainingLoop):
    """The loop of one prior's run."""

    def __init__(self, trainer: Trainer, blend: Blend) -> None:
        self.trainer, self.blend, self.config = trainer, blend, trainer.config
        config, sequence = trainer.config, trainer.run.sequence
        super().__init__(
            trainer.folder, steps=config.steps, log_every=config.log_every, eval_every=config.eval_every,
            checkpoint_every=config.checkpoint_every, keep=config.keep_checkpoints, tracker=config.tracker,
        )  # fmt: skip
        self.val_data = {
            number: CodeData.open(dataset, "val", sequence)
            for number, dataset in enumerate(blend.datasets)
            if "val" in dataset.splits
        }
        """Validation split of each dataset that has one, by its number."""
        self.recent: list[tuple[Tensor, Tensor]] = []
        """Loss and gradient norm of the steps since the last line of metrics, on the device."""
        self.train_seconds = 0.0
        self.best_nats = math.inf
        self.val_nll_ST: NDArray[np.float64] | None = None
        """Validation loss of each dataset at each position, if it was measured at this step."""
        self._timed_steps, self._interval_s, self._mark_s = 0, 0.0, 0.0
        self._flops_per_step = config.batch_size * step_flops_per_sequence(trainer.prior)

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return self.trainer.step

    def check(self, checkpoint: Path) -> None:
        """Refuse a checkpoint from which the run cannot continue; see :meth:`Trainer.check`."""
        self.trainer.check(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        values, device = self.trainer.load(checkpoint), self.trainer.device
        self.recent = [tuple(torch.tensor(x, device=device) for x in pair) for pair in values["recent"]]  # type: ignore[misc]
        self.train_seconds = values["train_seconds"]
        self.best_nats = math.inf if values["best_nats"] is None else values["best_nats"]

    def fit(self) -> None:
        """Train up to the last step.

        Raises:
            PriorError: A loss is not finite.
            StoppedError: after a signal, with a checkpoint saved.
        """
        self.trainer.prior.train()
        self._mark_s = time.perf_counter()
        super().fit()

    def advance(self) -> None:
        """Do one step."""
        self.recent.append(self.trainer.advance())
        self._timed_steps += 1
        self.val_nll_ST = None

    def _synchronize(self) -> tuple[list[float], list[float]]:
        """Wait for the device, stop the clock, refuse losses that are not finite; return losses and gradient norms."""
        if not self.recent:
            return [], []
        losses_T, norms_T = (torch.stack(column) for column in zip(*self.recent, strict=True))
        # The norm, that of the averaged gradient, is the same on all ranks.
        losses, norms = (sum_over_ranks(losses_T.clone()) / world_size()).tolist(), norms_T.tolist()
        now_s = time.perf_counter()
        self._interval_s += now_s - self._mark_s
        self._mark_s = now_s
        first = self.trainer.step - len(losses) + 1
        for step, (nll, norm) in enumerate(zip(losses, norms, strict=True), start=first):
            if not (math.isfinite(nll) and math.isfinite(norm)):
                raise PriorError(
                    f"the loss is {nll} at step {step} (gradient norm {norm}): lower learning_rate, lengthen "
                    "warmup_steps or use precision 'float32', and start over or train in another output folder. The "
                    f"batch and the weights that led to it are in {self.trainer.save_evidence(step - 1)}"
                )
        return losses, norms

    def metrics(self) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """Return the metrics since the last call, and those for the progress bar."""
        losses, norms = self._synchronize()
        steps_per_s = self._timed_steps / self._interval_s
        figures = {
            "train_nll_nats": float(np.mean(losses)),
            "grad_norm": float(np.mean(norms)),
            "lr": learning_rate_at(self.config, self.trainer.step - 1),
            "tokens_per_s": round(steps_per_s * self.config.batch_size * self.trainer.run.sequence.length, 1),
        }
        if self.first:
            peak = peak_flops(self.trainer.device, self.trainer.precision)
            processes = world_size() if self.trainer.device.type == "cuda" else 1  # ranks on CPUs share the cores
            figures["mfu"] = round(steps_per_s * self._flops_per_step / (peak * processes), 4)
        self.train_seconds += self._interval_s
        self.recent, self._timed_steps, self._interval_s = [], 0, 0.0
        self._mark_s = time.perf_counter()
        shown = {"nll": f"{figures['train_nll_nats']:.3f}", "tokens_per_s": f"{figures['tokens_per_s']:.0f}"}
        return figures, shown | ({"mfu": f"{figures['mfu']:.0%}"} if "mfu" in figures else {})

    def state(self) -> dict[str, Any]:
        """Return the config, weights, tensors and scalars of a checkpoint."""
        losses, norms = self._synchronize()
        tensors, scalars = self.trainer.state_dict()
        scalars |= {
            # Means over the ranks, so that their mean after a resume is the same with any number of ranks.
            "recent": [list(pair) for pair in zip(losses, norms, strict=True)],
            "train_seconds": self.train_seconds + self._interval_s,
            "best_nats": self.best_nats if math.isfinite(self.best_nats) else None,
        }
        config = asdict(self.trainer.run)
        return {"config": config, "weights": self.trainer.weights(), "tensors": tensors, "scalars": scalars}

    def _save(self) -> None:
        super()._save()
        self._mark_s = time.perf_counter()  # writing is not training time

    def evaluate(self, check_stop: Callable[[], None]) -> None:
        """Evaluate on the validation split, and keep the weights if they are the best."""
        if not self.val_data:
            return
        self._synchronize()
        trainer = self.trainer
        # As many rows per batch as a step reads, so that a run that trains within the memory also evaluates within it.
        rows = self.config.batch_size // self.config.accumulate
        self.val_nll_ST = np.stack([
            evaluate(trainer.shipped, data, batch_size=rows, autocast=trainer.autocast, before_batch=check_stop)
            for data in self.val_data.values()
        ])  # fmt: skip
        figures, val_nll_T = self._val_figures(self.val_nll_ST)
        if self.log is not None:
            self.log.write(trainer.step, figures)
        if figures["val_nll_nats"] < self.best_nats:
            self.best_nats = figures["val_nll_nats"]
            weights = trainer.weights()
            if self.first:
                by_position = {"val_nll_nats_by_position": val_nll_T.tolist()}
                summary = {"step": trainer.step, **figures, **by_position}
                ckpt.save_best(self.folder.path, trainer.run, weights, summary)
        barrier()
        self._mark_s = time.perf_counter()

    def finish(self) -> dict[str, Any]:
        """Publish the weights of the last checkpoint and the summary, and return the summary."""
        summary = self.summary()
        if self.first:
            ckpt.finish_run(self.folder.path, checkpoints(self.folder.path)[-1], summary)
        return summary

    def _val_shares(self) -> NDArray[np.float64]:
        """Return the weight of each validation split: the proportions of the training rows, which sum to one."""
        shares = [self.blend.proportions[number] for number in self.val_data]
        return np.array(shares) / sum(shares)

    def _val_figures(self, nll_ST: NDArray[np.float64]) -> tuple[dict[str, float], NDArray[np.float64]]:
        """Return the figures of an evaluation, and the loss at each position."""
        nll_T = (self._val_shares()[:, None] * nll_ST).sum(axis=0)
        nll = float(nll_T.mean())
        figures = {"val_nll_nats": nll, "val_bits_per_code": nll / math.log(2)}
        dims = pixel_dims(self.blend.datasets[0])
        if dims is not None:
            figures["val_bits_per_dim"] = nll * self.trainer.run.sequence.length / (math.log(2) * dims)
        if len(self.blend.datasets) > 1:
            for number, one_T in zip(self.val_data, nll_ST, strict=True):
                figures[f"val_nll_nats_{number + 1}"] = float(one_T.mean())
        return figures, nll_T

    def summary(self) -> dict[str, Any]:
        """Return the results of the finished run. Losses are means per image code, and None without a val split."""
        trainer, sequence, blend = self.trainer, self.trainer.run.sequence, self.blend
        sources = zip(blend.datasets, trainer.batches.sources, strict=True)
        counts = mixed(
            [self._count("train", source.codes(), dataset.rows("train")) for dataset, source in sources],
            blend.proportions,
        )
        trained = trainer.step * self.config.batch_size
        val: dict[str, Any] = dict.fromkeys(
            ("val_nll_nats", "val_bits_per_code", "val_nll_nats_by_position", "unigram_val_nll_nats")
        )
        if self.val_nll_ST is not None:
            val_counts = [
                self._count("val", data.codes(rank(), world_size()), data.rows) for data in self.val_data.values()
            ]
            figures, nll_T = self._val_figures(self.val_nll_ST)
            val = {
                **figures,
                "val_nll_nats_by_position": nll_T.tolist(),
                "unigram_val_nll_nats": unigram_nll_nats(counts, mixed(val_counts, self._val_shares())),
            }
        first = blend.datasets[0].path
        return {
            "steps": trainer.step,
            "epochs": trainer.step / trainer.batches.batches_per_epoch,
            "parameters": trainer.parameter_count,
            **({"shards": str(first)} if first.local is None else {}),
            **({"blend": self._blend_figures(trained)} if len(blend.datasets) > 1 else {}),
            "train_rows": blend.rows("train"),
            "val_rows": sum(data.rows for data in self.val_data.values()),
            **val,
            "unigram_entropy_nats": entropy_nats(counts),
            "train_seconds": round(self.train_seconds, 3),
            "tokens_per_s": round(trained * sequence.length / self.train_seconds, 1),
            "device": trainer.device.type,
            "processes": world_size(),
            "precision": trainer.precision,
        }

    def _blend_figures(self, trained: int) -> list[dict[str, Any]]:
        """Return what each dataset of a blend contributed to so many rows."""
        blend, sources = self.blend, self.trainer.batches.sources
        return [
            {
                "shards": str(dataset.path), "weight": weight, "proportion": share,
                "epochs": trained * share / source.epoch_rows,
            }
            for dataset, weight, share, source in zip(
                blend.datasets, blend.rows_per_cycle, blend.proportions, sources, strict=True
            )
        ]  # fmt: skip

    def _count(self, split: str, pieces: Iterable[Codes], rows: int) -> NDArray[np.int64]:
        """Return how often each image code occurs in a split, of which every rank counts its part."""
        sequence = self.trainer.run.sequence
        total = rows * sequence.length // world_size()
        hidden = None if self.first else True
        with tqdm(total=total, desc=f"count {split}", unit="code", unit_scale=True, disable=hidden) as bar:
            counts = torch.from_numpy(code_counts(_with_progress(pieces, bar), sequence.codebook_size))
        return sum_over_ranks(counts.to(self.trainer.device)).cpu().numpy()


def _with_progress(pieces: Iterable[Codes], bar: tqdm) -> Iterator[Codes]:
    for piece in pieces:
        yield piece
        bar.update(piece.size)


def train_prior(config: TrainConfig, shards: Shards, out: str | Path, *, resume: bool = True) -> dict[str, Any]:
    """Train a prior from a dataset of shards, or from a blend of several, or resume a run that was stopped.

    Under `torchrun`, or in a process group that exists already, each process trains on its part of every batch.

    Args:
        config: The run. On resume only the fields in `checkpoint.FREE_ON_RESUME` may differ. With more steps a finished
            run continues; if its schedule depends on the steps, the result is not that of as many steps from the start.
        shards: Folder or URL of a finished dataset, or a mapping from several to their weights: positive numbers, in
            whose proportions each batch takes their rows.
        out: The run's folder, see :mod:`codeprior.checkpoint`; all processes must see it.
        resume: False removes an earlier run in `out`, file by file, and starts over.

    Returns:
        The summary, which is also RUN/summary.json. A run that is complete is not run again.

    Raises:
        UserError: `out` is, holds or is in the shards' folder.
        ShardError: The dataset, the config or the earlier run in `out` does not allow it; another process trains in
            `out`; or `out` holds files of these names that were not made by training.
        StoppedError: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    check_apart(out, shards=places(shards))
    check_tracker(config.tracker, PriorError)
    with process_group():
        out = Path(out)
        blend = Blend.open(shards, known=ckpt.dataset_of(out) if resume else "")
        run = ckpt.RunConfig(train=config, sequence=blend.sequence(config), data=blend.fingerprint)
        return run_training(
            ckpt.run_folder(out),
            run,
            config.steps,
            lambda: Run(Trainer(run, blend, out), blend),
            clear=None if resume else lambda: ckpt.remove_run(out),
        )
