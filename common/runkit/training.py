"""The loop of a training run around its steps: progress, metrics, checkpoints, evaluations, resuming and stopping.

A checkpoint is written before the evaluation of its step. A run that is killed in the evaluation resumes with it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runkit.checkpoints import SUMMARY, save_checkpoint
from runkit.compiling import check_compiler
from runkit.devices import Autocast, Precision, rank_device
from runkit.errors import UserError
from runkit.progress import tqdm
from runkit.ranks import barrier, check_batch_size, from_rank_0, host_group, min_over_ranks, rank, world_size
from runkit.runlog import RunLog
from runkit.runs import RunFolder
from runkit.signals import GracefulStop
from runkit.trackers import TrackerName

log = logging.getLogger(__name__)
SECONDS_PER_LINE = 60
"""Time between lines of the log about the progress, where output goes to a file and there is no bar."""


class _StopRequestedError(Exception):
    """A signal arrived during an evaluation."""


class TrainingLoop(ABC):
    """One run, of which a stage defines the step, the metrics, the checkpoint and the evaluation.

    Args:
        folder: The run's folder.
        steps: Steps of the whole run.
        log_every: Steps between lines of training metrics.
        eval_every: Steps between evaluations; there is one at the end too.
        checkpoint_every: Steps between checkpoints; there is one at the end too.
        keep: Number of checkpoints that are kept.
        tracker: Where metrics go besides the folder.
    """

    def __init__(
        self, folder: RunFolder, *, steps: int, log_every: int, eval_every: int, checkpoint_every: int, keep: int,
        tracker: TrackerName,
    ) -> None:  # fmt: skip
        self.folder, self.steps, self.keep, self._tracker = folder, steps, keep, tracker
        self._log_every, self._eval_every, self._checkpoint_every = log_every, eval_every, checkpoint_every
        self.first = rank() == 0
        self.log: RunLog | None = None
        """Of rank 0."""
        self._stop = GracefulStop()
        self._hosts = host_group()

    @property
    @abstractmethod
    def step(self) -> int:
        """Number of steps that are done."""

    @abstractmethod
    def check(self, checkpoint: Path) -> None:
        """Raise DamagedError for a damaged checkpoint, and other errors if the run cannot continue from it."""

    @abstractmethod
    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint that :meth:`check` has accepted."""

    @abstractmethod
    def advance(self) -> None:
        """Do one step."""

    @abstractmethod
    def metrics(self) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """Return the training metrics since the last call, and those for the progress bar."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the config, weights, tensors and scalars of a checkpoint, as save_checkpoint takes them."""

    @abstractmethod
    def evaluate(self, check_stop: Callable[[], None]) -> None:
        """Evaluate and log; call `check_stop` often, on all ranks alike, and let through what it raises."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Publish the final weights and the summary, and return the summary."""

    def resume(self, checkpoint: Path | None, config: Any) -> None:
        """Continue from a checkpoint, or start; a tracker gets the config."""
        if checkpoint is not None:
            self.load(checkpoint)
            log.info("continuing %s from step %d", self.folder.path, self.step)
        if self.first:
            self.log = self.folder.open_log(
                self.step, evaluates=self._is_due(self._eval_every), tracker=self._tracker, config=config
            )

    def close(self) -> None:
        """Close the log, however the run ends."""
        if self.log is not None:
            self.log.close()

    def fit(self) -> None:
        """Train up to the last step.

        Raises:
            StoppedError: after a signal, with a checkpoint saved.
        """
        with GracefulStop() as self._stop:
            stopping = self.step > 0 and self._is_due(self._eval_every) and not self._evaluate()
            bar = tqdm(
                total=self.steps, initial=self.step, desc=self.folder.command, unit="step",
                disable=None if self.first else True,
            )  # fmt: skip
            next_line = time.monotonic() + SECONDS_PER_LINE
            with bar:
                while self.step < self.steps and not stopping:
                    self.advance()
                    bar.update()
                    stopping = self._stop_requested()
                    if self._is_due(self._log_every):
                        bar.set_postfix(shown := self._log_metrics())
                        if bar.disable and self.first and time.monotonic() >= next_line:
                            log.info("step %d of %d: %s", self.step, self.steps, _in_one_line(shown))
                            next_line = time.monotonic() + SECONDS_PER_LINE
                    if saved := self._is_due(self._checkpoint_every) or stopping:
                        self._save()
                    if self._is_due(self._eval_every) and not stopping:
                        stopping = not self._evaluate()
                        if stopping and not saved:
                            self._save()
            if stopping:
                message = f"stopped at step {self.step}; the same command resumes there"
                log.warning(message)
                self._stop.raise_stopped(message)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _log_metrics(self) -> Mapping[str, str]:
        figures, shown = self.metrics()
        if self.log is not None:
            self.log.write(self.step, figures)
        return shown

    def _save(self) -> None:
        state = self.state()
        if self.first:
            save_checkpoint(self.folder.path, self.step, keep=self.keep, **state)
        barrier()

    def _evaluate(self) -> bool:
        """Evaluate; return False if a signal arrived, because an evaluation may take longer than its sender waits."""
        try:
            self.evaluate(self._check_stop)
        except _StopRequestedError:
            return False
        return True

    def _check_stop(self) -> None:
        if self._stop_requested():
            raise _StopRequestedError

    def _stop_requested(self) -> bool:
        """Return whether any rank was asked to stop.

        The ranks ask each other after every step, because torchrun kills them 30 s after its SIGTERM. They ask in main
        memory, which takes a fraction of a millisecond and does not wait for a GPU.
        """
        if world_size() == 1:
            return bool(self._stop.signal)
        highest = torch.tensor(self._stop.signal or 0)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=self._hosts)
        if agreed := int(highest):  # a signal that arrives during the reduction counts at the next one
            self._stop.signal = agreed
        return agreed > 0


def _in_one_line(figures: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


@torch.no_grad()  # else the average would keep the graph of all earlier weights
def update_average(averaged: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Update a moving average of weights after a step.

    The decay is ramped up, so that the first averages are not the random initialisation.
    """
    decay = min(decay, step / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(trained.parameters()), 1 - decay)


def place_run(
    config: Any, resolve_precision: Callable[[Precision, torch.device], Autocast], error: type[UserError]
) -> tuple[torch.device, Autocast]:
    """Check that this machine and the number of processes fit a run, and return its device and precision.

    Args:
        config: The run's batch_size, accumulate, device, precision and compile.
        resolve_precision: Returns the precision that is best on a device; see :func:`runkit.devices.pick_precision`.
        error: Class of the error.

    Raises:
        UserError: The batch is not divisible, a GPU or a compiler is missing.
    """
    check_batch_size(config.batch_size, config.accumulate, error)
    device = rank_device(config.device, error)
    if config.compile:
        check_compiler(device.type, error)
    # Ranks that measure separately may disagree: if one computes in float32, all do.
    is_bfloat16 = min_over_ranks(float(resolve_precision(config.precision, device) == "bfloat16"), device)
    return device, "bfloat16" if is_bfloat16 else "float32"


def run_training(
    folder: RunFolder,
    config: Any,
    steps: int,
    start: Callable[[], TrainingLoop],
    clear: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train in a folder, from its newest intact checkpoint on, unless its run is complete.

    Args:
        folder: The run's folder.
        config: All that decides the result.
        steps: Steps of the whole run.
        start: Creates the loop.
        clear: Removes the earlier run; None to continue it.

    Returns:
        The summary.

    Raises:
        UserError: The folder is in use or holds other files, or its run is another one.
        StoppedError: after a signal, with a checkpoint saved.
    """
    with contextlib.ExitStack() as stack:
        summary = from_rank_0(lambda: None if clear else folder.finished_summary(config, steps), folder.error)
        if summary is not None:
            log.info("%s is complete", folder.path)
            return summary
        from_rank_0(lambda: stack.enter_context(folder.held()), folder.error)
        loop = start()
        if clear:
            from_rank_0(clear, folder.error)
        stack.callback(loop.close)
        loop.resume(from_rank_0(lambda: folder.starting_point(loop.check, loop.keep), folder.error), config)
        if loop.first:
            (folder.path / SUMMARY).unlink(missing_ok=True)
        loop.fit()
        summary = loop.finish()
        barrier()
        return summary
