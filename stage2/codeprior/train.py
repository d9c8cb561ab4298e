"""Training a prior from token shards: the step, the loop around it, and exact resume.

Axes: B batch, T image codes of a sequence.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from codeprior import checkpoint as ckpt
from codeprior.config import PriorError, TrainConfig
from codeprior.data import (
    Batch,
    CodeBatches,
    CodeData,
    entropy_nats,
    sequence_from_dataset,
    unigram_nll_nats,
)
from codeprior.interrupt import GracefulStop
from codeprior.model import Prior
from codeprior.optim import (
    learning_rate_at,
    make_autocast,
    make_optimizer,
    resolve_device,
    resolve_precision,
)
from codeshards.format import ShardDataset, Where

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


def train_step(
    prior: Prior,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    learning_rate: float,
    grad_clip: float,
    autocast: torch.autocast,
) -> Tensor:
    """One update of the weights from one batch.

    Args:
        prior: in train mode.
        optimizer: over the prior's parameters.
        batch: on the prior's device.
        learning_rate: of this update, for every parameter group.
        grad_clip: largest global gradient norm, 0 for no clipping.
        autocast: precision of the forward pass, see :func:`codeprior.optim.make_autocast`.

    Returns:
        Mean negative log-likelihood of the image codes in nats, before the update: a detached scalar that
        is still on the device, so that the caller decides when to wait for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with autocast:
        nll = prior.nll(batch.condition_BC, batch.codes_BT).mean()
    optimizer.zero_grad(set_to_none=True)
    nll.backward()  # type: ignore[no-untyped-call]
    if grad_clip > 0:
        nn.utils.clip_grad_norm_(prior.parameters(), grad_clip)
    optimizer.step()
    return nll.detach()


@torch.no_grad()
def evaluate(prior: Prior, data: CodeData, *, batch_size: int, autocast: torch.autocast) -> NDArray[np.float64]:
    """Mean negative log-likelihood in nats at each position of the sequence, [T], over all rows."""
    was_training = prior.training
    prior.eval()
    total_T = torch.zeros(prior.sequence.length, dtype=torch.float64, device=prior.device)
    batches = -(-data.rows // batch_size)
    for batch in tqdm(data.in_order(batch_size), total=batches, desc="evaluate", leave=False, disable=None):
        on_device = batch.to(prior.device)
        with autocast:
            nll_BT = prior.nll(on_device.condition_BC, on_device.codes_BT)
        total_T += nll_BT.double().sum(dim=0)
    prior.train(was_training)
    return (total_T / data.rows).cpu().numpy()


class Trainer:
    """One run: model, optimizer, data and position, on one device."""

    def __init__(self, run: ckpt.RunConfig, dataset: ShardDataset, out: Path) -> None:
        self.run, self.config, self.out = run, run.train, out
        self.device = resolve_device(self.config.device)
        self.precision = resolve_precision(self.config, self.device)
        self.autocast = make_autocast(self.device, self.precision)
        self.train_data = CodeData.open(dataset, "train", run.sequence)
        self.val_data = CodeData.open(dataset, "val", run.sequence) if "val" in dataset.splits else None
        self.batches = CodeBatches(self.train_data, batch_size=self.config.batch_size, seed=self.config.seed)
        torch.manual_seed(self.config.seed)
        self.prior = Prior(self.config.model, run.sequence).to(self.device)
        self.optimizer = make_optimizer(self.prior, self.config)
        self.recent_nll: list[Tensor] = []
        """Losses of the steps since the last line of metrics, still on the device."""
        self.train_seconds = 0.0
        self.val_nll_T: NDArray[np.float64] | None = None
        """Validation loss at each position, where it was measured at this very step."""
        self._timed_steps, self._interval_s, self._mark_s = 0, 0.0, 0.0
        self.tokens_per_s = 0.0

    @property
    def step(self) -> int:
        """Updates done."""
        return self.batches.step

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that, with the weights, decide everything that follows."""
        tensors = {"rng_cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        for name, parameter in self.prior.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"{key}/{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        metrics = self.out / METRICS
        scalars = {
            "loader": self.batches.state_dict(),
            "recent_nll_nats": [float(nll) for nll in self.recent_nll],
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
            "train_seconds": self.train_seconds + self._interval_s,
        }
        return tensors, scalars

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint as if the run had never stopped.

        Raises:
            ShardError: the checkpoint is damaged or belongs to another config or dataset.
        """
        ckpt.check_same_run(ckpt.RunConfig.load(checkpoint / ckpt.CONFIG), self.run, checkpoint)
        ckpt.load_weights(self.prior, checkpoint / ckpt.WEIGHTS)
        tensors, scalars = ckpt.load_state(checkpoint)
        try:
            self._load_state_dict(tensors, scalars)
        except KeyError as error:
            raise PriorError(f"{checkpoint} lacks {error}: delete it to resume from the one before") from error
        if self.step > self.config.steps:
            raise PriorError(
                f"steps = {self.config.steps}: {self.out} is already at step {self.step}; use at least that, "
                "or another output folder"
            )
        logger.info("resumed from %s", checkpoint)

    def _load_state_dict(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        self.batches.load_state_dict(scalars["loader"])
        for name, parameter in self.prior.named_parameters():
            moments = {key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step), device=parameter.device),
                **{key: moment.to(parameter.device) for key, moment in moments.items()},
            }
        torch.set_rng_state(tensors["rng_cpu"])
        if self.device.type == "cuda" and "rng_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng_cuda"], self.device)
        self.recent_nll = [torch.tensor(nll, device=self.device) for nll in scalars["recent_nll_nats"]]
        self.train_seconds = scalars["train_seconds"]
        metrics = self.out / METRICS
        if metrics.exists() and metrics.stat().st_size > scalars["metrics_bytes"]:
            # Lines after the checkpoint tell of steps that are about to be done again.
            with metrics.open("r+b") as file:
                file.truncate(scalars["metrics_bytes"])

    def fit(self, stop: GracefulStop) -> None:
        """Train up to `config.steps`.

        Raises:
            PriorError: the loss stopped being a finite number.
            SystemExit, KeyboardInterrupt: after a signal, with a checkpoint saved.
        """
        self.prior.train()
        self._mark_s = time.perf_counter()
        if self.step > 0 and self._is_due(self.config.eval_every):
            self._evaluate()  # a checkpoint is written before the evaluation of its step
        with tqdm(total=self.config.steps, initial=self.step, desc="train", unit="step", disable=None) as bar:
            while self.step < self.config.steps:
                self._advance()
                bar.update()
                if self._is_due(self.config.log_every):
                    nll = self._log()
                    bar.set_postfix(nll=f"{nll:.3f}", tokens_per_s=f"{self.tokens_per_s:.0f}")
                if self._is_due(self.config.checkpoint_every) or stop.signal:
                    self._save()
                if self._is_due(self.config.eval_every) and not stop.signal:
                    self._evaluate()
                if stop.signal:
                    self._save()
                    logger.warning("stopped at step %d; the same command resumes there", self.step)
                    stop.leave()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _advance(self) -> None:
        rate = learning_rate_at(self.config, self.step)
        batch = next(self.batches).to(self.device)
        nll = train_step(
            self.prior,
            self.optimizer,
            batch,
            learning_rate=rate,
            grad_clip=self.config.grad_clip,
            autocast=self.autocast,
        )
        self.recent_nll.append(nll)
        self._timed_steps += 1
        self.val_nll_T = None

    def _settle(self) -> list[float]:
        """Wait for the device, stop the clock, and refuse losses that are not finite."""
        losses = torch.stack(self.recent_nll).tolist() if self.recent_nll else []
        now_s = time.perf_counter()
        self._interval_s += now_s - self._mark_s
        self._mark_s = now_s
        first = self.step - len(losses) + 1
        for step, nll in enumerate(losses, start=first):
            if not math.isfinite(nll):
                raise PriorError(
                    f"the loss is {nll} at step {step}: lower learning_rate, lengthen warmup_steps or use "
                    "precision 'float32', and start over or train in another output folder"
                )
        return losses

    def _log(self) -> float:
        nll = float(np.mean(self._settle()))
        self.tokens_per_s = self._timed_steps * self.config.batch_size * self.run.sequence.length / self._interval_s
        line = {
            "step": self.step,
            "train_nll_nats": nll,
            "lr": learning_rate_at(self.config, self.step - 1),
            "tokens_per_s": round(self.tokens_per_s, 1),
        }
        ckpt.append_json_line(self.out / METRICS, line)
        self.train_seconds += self._interval_s
        self.recent_nll, self._timed_steps, self._interval_s = [], 0, 0.0
        return nll

    def _save(self) -> None:
        self._settle()
        saved = ckpt.checkpoints(self.out)
        if not saved or saved[-1].name != f"step-{self.step:08d}":
            tensors, scalars = self.state_dict()
            ckpt.save_checkpoint(
                self.out,
                self.run,
                self.prior,
                step=self.step,
                tensors=tensors,
                scalars=scalars,
                keep=self.config.keep_checkpoints,
            )
        self._mark_s = time.perf_counter()  # disk time is not training time

    def _evaluate(self) -> None:
        if self.val_data is None:
            return
        self._settle()
        batch_size = self.config.batch_size
        self.val_nll_T = evaluate(self.prior, self.val_data, batch_size=batch_size, autocast=self.autocast)
        nll = float(self.val_nll_T.mean())
        line = {"step": self.step, "val_nll_nats": nll, "val_bits_per_code": nll / math.log(2)}
        ckpt.append_json_line(self.out / METRICS, line)
        self._mark_s = time.perf_counter()

    def summary(self) -> dict[str, Any]:
        """What the finished run reached. Losses are means per image code; without a val split, None."""
        size = self.run.sequence.codebook_size
        counts = self.train_data.code_counts(size)
        trained = self.step * self.config.batch_size
        val: dict[str, Any] = dict.fromkeys(
            ("val_nll_nats", "val_bits_per_code", "val_nll_nats_by_position", "unigram_val_nll_nats")
        )
        if self.val_data is not None and self.val_nll_T is not None:
            nll = float(self.val_nll_T.mean())
            val = {
                "val_nll_nats": nll,
                "val_bits_per_code": nll / math.log(2),
                "val_nll_nats_by_position": self.val_nll_T.tolist(),
                "unigram_val_nll_nats": unigram_nll_nats(counts, self.val_data.code_counts(size)),
            }
        return {
            "steps": self.step,
            "epochs": self.step / self.batches.batches_per_epoch,
            "parameters": self.prior.parameter_count,
            "train_rows": self.train_data.rows,
            "val_rows": self.val_data.rows if self.val_data else 0,
            **val,
            "unigram_entropy_nats": entropy_nats(counts),
            "train_seconds": round(self.train_seconds, 3),
            "tokens_per_s": round(trained * self.run.sequence.length / self.train_seconds, 1),
            "device": self.device.type,
            "precision": self.precision,
        }


def train_prior(config: TrainConfig, shards: Where, out: str | Path, *, resume: bool = True) -> dict[str, Any]:
    """Train a prior from a dataset of shards; run it again to go on where it stopped.

    Args:
        config: the run. On resume only steps, device and the logging, evaluation and checkpoint intervals
            may differ; more steps continue a finished run.
        shards: folder or URL of a finished dataset.
        out: the run's folder, see :mod:`codeprior.checkpoint`.
        resume: False removes an earlier run in `out` and starts over.

    Returns:
        The summary, which is also RUN/summary.json. A run that is complete already is not run again.

    Raises:
        ShardError: the dataset, the config or the earlier run in `out` does not allow it.
        SystemExit, KeyboardInterrupt: stopped by SIGTERM or Ctrl-C, after a checkpoint.
    """
    dataset, out = ShardDataset.open(shards), Path(out)
    sequence = sequence_from_dataset(dataset, config.order, config.condition)
    run = ckpt.RunConfig(train=config, sequence=sequence, data=dataset.fingerprint)
    if not resume:
        _remove_run(out)
    summary = ckpt.load_summary(out)
    if summary is not None:
        ckpt.check_same_run(ckpt.RunConfig.load(out / ckpt.CONFIG), run, out)
        if summary["steps"] == config.steps:
            logger.info("%s is complete", out)
            return summary
    out.mkdir(parents=True, exist_ok=True)
    ckpt.remove_unfinished(out)
    trainer = Trainer(run, dataset, out)
    saved = ckpt.checkpoints(out)
    if saved:
        trainer.load(saved[-1])
    elif summary is not None:
        raise PriorError(f"{out} is complete, but its checkpoints are gone: train in another output folder")
    else:
        (out / METRICS).unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    (out / ckpt.SUMMARY).unlink(missing_ok=True)
    with GracefulStop() as stop:
        trainer.fit(stop)
    summary = trainer.summary()
    ckpt.finish_run(out, ckpt.checkpoints(out)[-1], summary)
    return summary


def _remove_run(out: Path) -> None:
    # The summary goes first: without it nothing takes the rest for a finished run.
    for name in (ckpt.SUMMARY, ckpt.CONFIG, ckpt.WEIGHTS, METRICS):
        (out / name).unlink(missing_ok=True)
    if (out / "checkpoints").exists():
        shutil.rmtree(out / "checkpoints")
