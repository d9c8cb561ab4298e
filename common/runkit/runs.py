"""The folder of a training run: whose it is, whether the run is complete, and where it continues.

RUN/
  checkpoints/           see :mod:`runkit.checkpoints`
  best/                  the weights with the lowest validation loss
  non-finite-step-…/     the weights and the batches of a step that failed
  metrics.jsonl          and tensorboard/: the same values as curves
  config.json            of the finished run
  model.safetensors
  summary.json           written last: the run is complete
  .tracker.json          the run's id in a tracker
  .COMMAND.lock          held while a process trains here

This module imports torch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runkit.checkpoints import (
    CONFIG,
    FOLDER,
    SUMMARY,
    WEIGHTS,
    DamagedError,
    checkpoints,
    newest_intact,
    read_finished,
    read_object,
    read_values,
    remove_old,
    remove_unfinished,
)
from runkit.errors import UserError
from runkit.folders import check_ours, held
from runkit.runlog import RunLog
from runkit.trackers import ID_FILE, Tracker, TrackerName

log = logging.getLogger(__name__)

METRICS, CURVES, BEST = "metrics.jsonl", "tensorboard", "best"
EVIDENCE = "non-finite-step-*"
RESERVED = (SUMMARY, CONFIG, WEIGHTS, METRICS, CURVES, BEST, FOLDER, EVIDENCE)
"""Names of what a run writes into its folder, except for hidden files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """A run's folder, and what one stage knows about such folders."""

    path: Path
    """The folder."""
    command: str
    """Name of the command that trains, such as "train-prior"."""
    product: str
    """What it trains, for messages, such as "prior"."""
    read_config: Callable[[Mapping[str, Any], Path], Any]
    """Parses the content of a config.json with this path to a dataclass; raises a UserError if it is no such config."""
    free_on_resume: frozenset[str]
    """Fields of TrainConfig that a resumed run may change."""
    best_files: tuple[str, ...]
    """Names of the files in BEST."""
    error: type[UserError]
    """Class of the errors."""
    reserved: tuple[str, ...] = RESERVED
    """Names of what the run writes."""
    temporary: tuple[str, ...] = ()
    """Further names (glob patterns) of temporary files that a killed process may leave."""

    def is_run(self) -> bool:
        """Return whether the command has trained in the folder, also in a version that left no lock file."""
        finished = [self.path] if (self.path / SUMMARY).is_file() else []
        for place in (*checkpoints(self.path), *finished):
            try:
                self.read_config(read_object(place / CONFIG), place / CONFIG)
                return True
            except UserError:
                continue
        return False

    def held(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; see :func:`runkit.folders.held`."""
        return held(self.path, self.command, reserved=self.reserved, is_ours=self.is_run)

    def check_same_run(self, saved: Any, config: Any, where: Path) -> None:
        """Refuse to continue with another config.

        Args:
            saved: The config of a checkpoint or a finished run.
            config: The config of this run.
            where: Where `saved` was found, for the message.

        Raises:
            UserError: naming each field that may not change and differs.
        """
        before, now = _flat(asdict(saved)), _flat(asdict(config))
        differing = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name.removeprefix("train.") not in self.free_on_resume
        ]
        if differing:
            raise self.error(
                f"{where} was trained differently: {'; '.join(differing)}. Use the same settings, or another output "
                "folder"
            )

    def check_steps(self, step: int, steps: int) -> None:
        """Refuse to continue from a checkpoint that is past the end of the run."""
        if step > steps:
            raise self.error(
                f"steps is {steps}: {self.path} is already at step {step}; choose at least that, or another output "
                "folder"
            )

    def finished_summary(self, config: Any, steps: int) -> dict[str, Any] | None:
        """Return the summary of a run that has done all its steps and whose files are intact, else None.

        Raises:
            UserError: It is a run of another config.
        """
        found = read_finished(self.path)
        if found is None:
            return None
        summary, values = found
        self.check_same_run(self.read_config(values, self.path / CONFIG), config, self.path)
        return summary if summary.get("steps") == steps else None

    def planned_step(self, config: Any, steps: int) -> int:
        """Return the step from which a run would continue, `steps` if it is complete; nothing is written.

        Raises:
            UserError: The folder holds other files, or a run of another config or of more steps.
        """
        check_ours(self.path, self.command, self.reserved, self.is_run)
        if self.finished_summary(config, steps) is not None:
            return steps
        for place in reversed(checkpoints(self.path)):
            with contextlib.suppress(DamagedError):  # then an earlier one is taken
                saved, values = read_values(place)
                self.check_same_run(self.read_config(saved, place / CONFIG), config, self.path)
                self.check_steps(values["step"], steps)
                return int(values["step"])
        return 0

    def starting_point(self, check: Callable[[Path], None], keep: int) -> Path | None:
        """Return the checkpoint to continue from, None if the run starts; remove what killed processes have left.

        Call it only from the process that holds the folder.

        Args:
            check: As in :func:`runkit.checkpoints.newest_intact`.
            keep: Number of checkpoints to keep.

        Raises:
            UserError: No checkpoint is intact, or a finished run has none.
        """
        self._remove_unfinished()
        found = newest_intact(self.path, check)
        if found is None:
            if (self.path / WEIGHTS).exists():
                raise self.error(
                    f"{self.path} holds a trained {self.product}, but its checkpoints are gone: choose another output "
                    "folder"
                )
            self.remove_curves()  # of a run that was killed before its first checkpoint
        remove_old(self.path, keep)  # of a run that was killed between writing a checkpoint and removing the oldest
        return found

    def _remove_unfinished(self) -> None:
        remove_unfinished(self.path, (SUMMARY, CONFIG, WEIGHTS, METRICS), {BEST: self.best_files})
        for pattern in self.temporary:
            for temp in self.path.glob(pattern):
                temp.unlink()

    def remove_curves(self) -> None:
        """Remove TensorBoard's event files, and the id in a tracker."""
        (self.path / ID_FILE).unlink(missing_ok=True)
        for events in (self.path / CURVES).glob("events.out.tfevents.*"):
            events.unlink()

    def open_log(self, step: int, *, evaluates: bool, tracker: TrackerName, config: Any) -> RunLog:
        """Open the log of a run that continues from `step`; see :class:`runkit.runlog.RunLog`."""
        tracked = None if tracker == "none" else Tracker(tracker, self.path, asdict(config))
        return RunLog(self.path / METRICS, self.path / CURVES, step, evaluates=evaluates, tracker=tracked)


def warn_of_other_steps(saved: int, steps: int, step: int, changes: Iterable[str]) -> None:
    """Warn that a resumed run with another number of steps is not the same as one with that number from the start.

    Args:
        saved: Number of steps when the checkpoint was written.
        steps: Number of steps now.
        step: The step of the checkpoint.
        changes: What depends on the number of steps.
    """
    if saved != steps and (changed := list(changes)):
        log.warning(
            "steps was %d and is %d now: from step %d on that changes %s, so the result is not that of %d steps from "
            "the start; for that, train in another output folder",
            saved, steps, step, " and ".join(changed), steps,
        )  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted names, so that a message can name the field that differs."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves
