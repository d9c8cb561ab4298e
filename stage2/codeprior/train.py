"""Training a prior from token shards: the loop around the step, with evaluation, logs and exact resume.

Axes: T image codes of a sequence.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codeprior import checkpoint as ckpt
from codeprior import distributed
from codeprior.config import PriorError, TrainConfig
from codeprior.data import CodeData, checked, pixel_dims, sequence_from_dataset
from codeprior.interrupt import GracefulStop
from codeprior.model import Prior
from codeprior.optim import learning_rate_at, resolve_device
from codeprior.speed import peak_flops, step_flops_per_sequence
from codeprior.trainer import Trainer
from codeprior.unigram import code_counts, entropy_nats, unigram_nll_nats
from codeshards.format import ShardDataset, Where
from runkit.checkpoints import checkpoints, newest_intact, remove_old, save_checkpoint
from runkit.compiling import check_compiler
from runkit.folders import check_apart, held
from runkit.progress import tqdm
from runkit.runlog import RunLog

logger = logging.getLogger(__name__)


class _StopError(Exception):
    """A signal came during an evaluation."""


@torch.no_grad()
def evaluate(
    prior: Prior,
    data: CodeData,
    *,
    batch_size: int,
    autocast: torch.autocast,
    before_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Mean negative log-likelihood in nats at each position of the sequence, [T], over all rows.

    Each rank takes its part of every batch; the result is the same on all.

    Args:
        prior: What is evaluated.
        data: On these rows.
        batch_size: Rows at once, of all ranks together.
        autocast: The precision.
        before_batch: Called before every batch; what it raises, on all ranks alike, ends the evaluation.
    """
    was_training = prior.training
    prior.eval()
    rank, world = distributed.rank(), distributed.world()
    total_T = torch.zeros(prior.sequence.length, dtype=torch.float32, device=prior.device).double()
    batches = range(0, data.rows, batch_size)
    for start in tqdm(batches, desc="evaluate", leave=False, disable=True if rank else None):
        before_batch()
        mine = np.arange(start, min(start + batch_size, data.rows))[rank::world]
        # With FSDP all ranks must enter every forward pass: one without rows takes the first and does not count it.
        batch = checked(data.take(mine if len(mine) else np.zeros(1, np.int64)), data.sequence).to(prior.device)
        with autocast:
            nll_BT = prior.nll(**batch.tensors())
        if len(mine):
            total_T += nll_BT.double().sum(dim=0)
    prior.train(was_training)
    return (distributed.total(total_T) / data.rows).cpu().numpy()


class Run:
    """The loop of one run: what happens around the steps."""

    def __init__(self, trainer: Trainer, dataset: ShardDataset) -> None:
        self.trainer, self.dataset, self.config = trainer, dataset, trainer.config
        sequence = trainer.run.sequence
        self.val_data = CodeData.open(dataset, "val", sequence) if "val" in dataset.splits else None
        self.first = distributed.rank() == 0
        self._hidden = None if self.first else True  # of progress bars
        self.log: RunLog | None = None
        """Of the first rank."""
        self._hosts = distributed.host_group()
        self.recent: list[tuple[Tensor, Tensor]] = []
        """Loss and gradient norm of the steps since the last line of metrics, still on the device."""
        self.train_seconds = 0.0
        self.best_nats = math.inf
        self.val_nll_T: NDArray[np.float64] | None = None
        """Validation loss at each position, where it was measured at this very step."""
        self._timed_steps, self._interval_s, self._mark_s = 0, 0.0, 0.0
        self._flops_per_step = self.config.batch_size * step_flops_per_sequence(trainer.prior)

    def resume(self, checkpoint: Path | None) -> None:
        """Continue from a checkpoint, or begin."""
        length_bytes = 0
        if checkpoint is not None:
            values, device = self.trainer.load(checkpoint), self.trainer.device
            self.recent = [tuple(torch.tensor(x, device=device) for x in pair) for pair in values["recent"]]  # type: ignore[misc]
            self.train_seconds, length_bytes = values["train_seconds"], values["metrics_bytes"]
            self.best_nats = math.inf if values["best_nats"] is None else values["best_nats"]
            logger.info("resumed from %s", checkpoint)
        if self.first:
            self.log = ckpt.run_log(self.trainer.out, self.trainer.step, length_bytes)

    def fit(self, stop: GracefulStop) -> None:
        """Train up to `config.steps`.

        Raises:
            PriorError: the loss stopped being a finite number.
            SystemExit, KeyboardInterrupt: after a signal, with a checkpoint saved.
        """
        trainer, config = self.trainer, self.config
        trainer.prior.train()
        self._mark_s = time.perf_counter()
        if trainer.step > 0 and self._is_due(config.eval_every) and not self._evaluate(stop):
            self._leave(stop)  # a checkpoint is written before the evaluation of its step
        with tqdm(total=config.steps, initial=trainer.step, desc="train", unit="step", disable=self._hidden) as bar:
            while trainer.step < config.steps:
                self.recent.append(trainer.advance())
                self._timed_steps += 1
                self.val_nll_T = None
                bar.update()
                stopping = self._agree_to_stop(stop)
                if self._is_due(config.log_every):
                    bar.set_postfix(self._log())
                if self._is_due(config.checkpoint_every) or stopping:
                    self._save()
                if self._is_due(config.eval_every) and not stopping and not self._evaluate(stop):
                    stopping = True
                    if not self._is_due(config.checkpoint_every):
                        self._save()
                if stopping:
                    self._leave(stop)

    def _leave(self, stop: GracefulStop) -> None:
        logger.warning("stopped at step %d; the same command resumes there", self.trainer.step)
        stop.leave()

    def _is_due(self, every: int) -> bool:
        return self.trainer.step % every == 0 or self.trainer.step == self.config.steps

    def _agree_to_stop(self, stop: GracefulStop) -> bool:
        """Whether any rank was asked to stop.

        The ranks ask each other after every step, for torchrun kills them 30 s after its SIGTERM; in main memory, where
        it takes a fraction of a millisecond and waits for no GPU.
        """
        if distributed.world() == 1:
            return bool(stop.signal)
        highest = torch.tensor(stop.signal or 0)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=self._hosts)
        agreed = int(highest)
        if agreed:  # a signal that came while the others were asked counts at the next agreement
            stop.signal = agreed
        return agreed > 0

    def _settle(self) -> tuple[list[float], list[float]]:
        """Wait for the device, stop the clock, and refuse losses that are not finite; losses and gradient norms."""
        if not self.recent:
            return [], []
        losses_T, norms_T = (torch.stack(column) for column in zip(*self.recent, strict=True))
        # The norm is the same on all ranks: it is that of the averaged gradient.
        losses, norms = (distributed.total(losses_T.clone()) / distributed.world()).tolist(), norms_T.tolist()
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

    def _log(self) -> dict[str, str]:
        losses, norms = self._settle()
        steps_per_s = self._timed_steps / self._interval_s
        figures = {
            "train_nll_nats": float(np.mean(losses)),
            "grad_norm": float(np.mean(norms)),
            "lr": learning_rate_at(self.config, self.trainer.step - 1),
            "tokens_per_s": round(steps_per_s * self.config.batch_size * self.trainer.run.sequence.length, 1),
        }
        if self.first:
            peak = peak_flops(self.trainer.device, self.trainer.precision)
            processes = distributed.world() if self.trainer.device.type == "cuda" else 1  # CPU ranks share the cores
            figures["mfu"] = round(steps_per_s * self._flops_per_step / (peak * processes), 4)
        if self.log is not None:
            self.log.write(self.trainer.step, figures)
        self.train_seconds += self._interval_s
        self.recent, self._timed_steps, self._interval_s = [], 0, 0.0
        self._mark_s = time.perf_counter()
        shown = {"nll": f"{figures['train_nll_nats']:.3f}", "tokens_per_s": f"{figures['tokens_per_s']:.0f}"}
        return shown | ({"mfu": f"{figures['mfu']:.0%}"} if "mfu" in figures else {})

    def _save(self) -> None:
        losses, norms = self._settle()
        tensors, scalars = self.trainer.state_dict()
        weights = self.trainer.weights()
        scalars |= {
            # Means over the ranks, so that after a resume their mean over however many ranks is the same.
            "recent": [list(pair) for pair in zip(losses, norms, strict=True)],
            "metrics_bytes": self.log.bytes if self.log is not None else 0,
            "train_seconds": self.train_seconds + self._interval_s,
            "best_nats": self.best_nats if math.isfinite(self.best_nats) else None,
        }
        if self.first:
            save_checkpoint(
                self.trainer.out,
                self.trainer.step,
                config=asdict(self.trainer.run),
                weights=weights,
                tensors=tensors,
                scalars=scalars,
                keep=self.config.keep_checkpoints,
            )
        distributed.barrier()
        self._mark_s = time.perf_counter()  # disk time is not training time

    def _evaluate(self, stop: GracefulStop) -> bool:
        """Validate; False where a signal came meanwhile: over many rows that may take longer than who sent it waits."""
        if self.val_data is None:
            return True
        self._settle()
        trainer = self.trainer
        # As many rows at once as a step reads: what trains within memory must not run out of it here.
        rows = self.config.batch_size // self.config.accumulate

        def look_for_signals() -> None:
            if self._agree_to_stop(stop):
                raise _StopError

        try:
            self.val_nll_T = evaluate(
                trainer.shipped, self.val_data, batch_size=rows, autocast=trainer.autocast,
                before_batch=look_for_signals,
            )  # fmt: skip
        except _StopError:
            return False
        figures = self._val_figures(float(self.val_nll_T.mean()))
        if self.log is not None:
            self.log.write(trainer.step, figures)
        if figures["val_nll_nats"] < self.best_nats:
            self.best_nats = figures["val_nll_nats"]
            weights = trainer.weights()
            if self.first:
                by_position = {"val_nll_nats_by_position": self.val_nll_T.tolist()}
                ckpt.save_best(trainer.out, trainer.run, weights, {"step": trainer.step, **figures, **by_position})
        distributed.barrier()
        self._mark_s = time.perf_counter()
        return True

    def _val_figures(self, nll: float) -> dict[str, float]:
        figures = {"val_nll_nats": nll, "val_bits_per_code": nll / math.log(2)}
        dims = pixel_dims(self.dataset)
        if dims is not None:
            figures["val_bits_per_dim"] = nll * self.trainer.run.sequence.length / (math.log(2) * dims)
        return figures

    def summary(self) -> dict[str, Any]:
        """What the finished run reached. Losses are means per image code; without a val split, None."""
        trainer, sequence = self.trainer, self.trainer.run.sequence
        counts = self._count("train", trainer.batches.codes())
        trained = trainer.step * self.config.batch_size
        val: dict[str, Any] = dict.fromkeys(
            ("val_nll_nats", "val_bits_per_code", "val_nll_nats_by_position", "unigram_val_nll_nats")
        )
        if self.val_data is not None and self.val_nll_T is not None:
            val_counts = self._count("val", self.val_data.codes(distributed.rank(), distributed.world()))
            val = {
                **self._val_figures(float(self.val_nll_T.mean())),
                "val_nll_nats_by_position": self.val_nll_T.tolist(),
                "unigram_val_nll_nats": unigram_nll_nats(counts, val_counts),
            }
        return {
            "steps": trainer.step,
            "epochs": trainer.step / trainer.batches.batches_per_epoch,
            "parameters": trainer.parameter_count,
            "train_rows": self.dataset.rows("train"),
            "val_rows": self.val_data.rows if self.val_data else 0,
            **val,
            "unigram_entropy_nats": entropy_nats(counts),
            "train_seconds": round(self.train_seconds, 3),
            "tokens_per_s": round(trained * sequence.length / self.train_seconds, 1),
            "device": trainer.device.type,
            "processes": distributed.world(),
            "precision": trainer.precision,
        }

    def _count(self, split: str, mine: Iterable[NDArray[np.uint16]]) -> NDArray[np.int64]:
        """How often each image code occurs in a split, of which every rank counts its part."""
        sequence = self.trainer.run.sequence
        total = self.dataset.rows(split) * sequence.length // distributed.world()
        with tqdm(total=total, desc=f"count {split}", unit="code", unit_scale=True, disable=self._hidden) as bar:
            counts = torch.from_numpy(code_counts(_shown(mine, bar), sequence.codebook_size))
        return distributed.total(counts.to(self.trainer.device)).cpu().numpy()


def _shown(pieces: Iterable[NDArray[np.uint16]], bar: tqdm) -> Iterator[NDArray[np.uint16]]:
    for piece in pieces:
        yield piece
        bar.update(piece.size)


def train_prior(config: TrainConfig, shards: Where, out: str | Path, *, resume: bool = True) -> dict[str, Any]:
    """Train a prior from a dataset of shards; run it again to go on where it stopped.

    Under `torchrun`, or in a process group that exists already, each process trains on its part of every batch.

    Args:
        config: the run. On resume only the fields in `checkpoint.FREE_ON_RESUME` may differ; more steps continue a
            finished run, as another run than one of so many steps from the start where its schedule counts them.
        shards: folder or URL of a finished dataset.
        out: the run's folder, see :mod:`codeprior.checkpoint`; all processes must see it.
        resume: False removes an earlier run in `out`, file by file, and starts over.

    Returns:
        The summary, which is also RUN/summary.json. A run that is complete already is not run again.

    Raises:
        UserError: `out` is, holds or is in the shards' folder.
        ShardError: the dataset, the config or the earlier run in `out` does not allow it; another process trains in
            `out`; or `out` holds files of these names that no training has made.
        SystemExit, KeyboardInterrupt: stopped by SIGTERM or Ctrl-C, after a checkpoint.
    """
    check_apart(out, shards=shards)
    with distributed.process_group(), contextlib.ExitStack() as stack:
        out = Path(out)
        dataset = ShardDataset.open(shards, known=ckpt.dataset_of(out) if resume else "")
        sequence = sequence_from_dataset(dataset, config.order, config.condition, scales=config.multiscale)
        run = ckpt.RunConfig(train=config, sequence=sequence, data=dataset.fingerprint)
        summary = distributed.from_first(lambda: ckpt.finished_summary(out, run) if resume else None, PriorError)
        if summary is not None:
            logger.info("%s is complete", out)
            return summary
        if config.compile:
            check_compiler(resolve_device(config.device).type, PriorError)
        distributed.from_first(lambda: stack.enter_context(_held(out)), PriorError)
        trainer = Trainer(run, dataset, out)
        saved = distributed.from_first(lambda: _starting_point(trainer, resume), PriorError)
        return _train(Run(trainer, dataset), saved)


def _held(out: Path) -> contextlib.AbstractContextManager[None]:
    return held(out, "train-prior", reserved=ckpt.RESERVED, is_ours=lambda: ckpt.is_run(out))


def _starting_point(trainer: Trainer, resume: bool) -> Path | None:
    """The checkpoint to continue from, if any; what killed processes left is removed."""
    out = trainer.out
    if not resume:
        ckpt.remove_run(out)
    ckpt.remove_unfinished(out)
    saved = newest_intact(out, trainer.check)
    if saved is None:
        if (out / ckpt.WEIGHTS).exists():
            raise PriorError(f"{out} holds a trained prior, but its checkpoints are gone: use another output folder")
        ckpt.remove_curves(out)  # of a run that was killed before its first checkpoint
    remove_old(out, trainer.config.keep_checkpoints)  # of a run that ended between writing one and that
    return saved


def _train(run: Run, checkpoint: Path | None) -> dict[str, Any]:
    out = run.trainer.out
    run.resume(checkpoint)
    if run.first:
        (out / ckpt.SUMMARY).unlink(missing_ok=True)
    with GracefulStop() as stop:
        run.fit(stop)
    summary = run.summary()
    if run.first:
        ckpt.finish_run(out, checkpoints(out)[-1], summary)
    distributed.barrier()
    return summary
