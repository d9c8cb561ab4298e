"""What a run leaves on disk, and how it is read back. Nothing here is pickled.

RUN/
  checkpoints/           see :mod:`runkit.checkpoints`; config.json is a RunConfig: what was trained, on what
    step-00000500/       with ema_decay model.safetensors is the moving average, and state.safetensors has the weights
                         that are trained beside AdamW's moments
    damaged-step-…/      one that cannot be read, set aside
  best/                  config, weights and summary of the evaluation with the lowest loss
  non-finite-step-…/     config and weights from which that step failed, its number, and every rank's batch
  metrics.jsonl          and tensorboard/: the same figures as curves
  config.json            of the finished run
  model.safetensors
  summary.json           written last: the run is complete
  .train-prior.lock      held while a process trains here
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import dacite
import torch
from torch import Tensor

from codeprior.config import PriorError, SequenceSpec, TrainConfig
from codeprior.distributed import placed_like
from codeprior.model import Prior
from codeshards.format.files import atomic_write, atomic_write_json
from runkit import checkpoints as stored
from runkit.checkpoints import (
    FILES,
    FOLDER,
    UNFINISHED,
    DamagedError,
    checkpoints,
    damaged_checkpoints,
    new_folder,
    read_finished,
    read_object,
)
from runkit.configs import check_fields
from runkit.files import remove_made
from runkit.jsonfiles import finite_or_none
from runkit.retries import patient
from runkit.runlog import RunLog
from runkit.tensors import check_finite, load_tensors, save_tensors

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Raised when older code would misread a checkpoint."""

CONFIG, WEIGHTS, SCALARS = stored.CONFIG, stored.WEIGHTS, stored.SCALARS
SUMMARY, METRICS, CURVES, BEST = stored.SUMMARY, "metrics.jsonl", "tensorboard", "best"
EVIDENCE = "non-finite-step-*"
RESERVED = (SUMMARY, CONFIG, WEIGHTS, METRICS, CURVES, BEST, FOLDER, EVIDENCE)
"""Names of what a run writes into its folder, but for hidden files."""
_BEST_FILES = (CONFIG, WEIGHTS, SUMMARY, UNFINISHED)
_EVIDENCE_FILES = (CONFIG, WEIGHTS, SCALARS, "batch-rank-*.safetensors", UNFINISHED)

FREE_ON_RESUME = frozenset(
    {
        "steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "device", "parallel", "accumulate",
        "compile", "checkpoint_activations",
    }
)  # fmt: skip
"""Fields of TrainConfig that a resumed run may change: none alters what a step computes, but for rounding.

Except that the cosine schedule and random_order follow the share of `steps` that is done (a resume with others warns),
and that dropout draws other masks with another accumulate, device, compile or number of processes.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All that decides the weights of a run: `config.json`."""

    format_version: int = FORMAT_VERSION
    """Version of the checkpoint's layout."""
    train: TrainConfig
    """How it was trained."""
    sequence: SequenceSpec
    """What its sequences mean."""
    data: str
    """Fingerprint of the dataset of shards."""

    def __post_init__(self) -> None:
        check_fields(self, PriorError)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `config.json`.

        Raises:
            PriorError: missing or damaged, of another version, or with keys that are unknown or missing.
        """
        try:
            return cls.from_values(read_object(path), path)
        except DamagedError as error:
            raise PriorError(str(error)) from error

    @classmethod
    def from_values(cls, value: Mapping[str, Any], path: Path) -> Self:
        """The config that a `config.json` at `path` holds; errors as :meth:`load`."""
        if value.get("format_version") != FORMAT_VERSION:
            raise PriorError(
                f"{path}: format_version is {value.get('format_version')!r}, "
                f"this code reads {FORMAT_VERSION}; use the version of the code that wrote it"
            )
        # JSON has no tuples, and writes the float 1.0 of a config given as 1 without its point.
        strict = dacite.Config(strict=True, cast=[tuple], type_hooks={float: float})
        try:
            return dacite.from_dict(cls, value, strict)
        except (dacite.DaciteError, PriorError, TypeError, ValueError) as error:
            raise PriorError(f"{path} does not describe a prior: {error}") from error


def check_same_run(saved: RunConfig, wanted: RunConfig, where: Path) -> None:
    """Refuse to go on with another config or dataset, naming every field that differs."""
    old, new = _flat(asdict(saved)), _flat(asdict(wanted))
    differing = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name.removeprefix("train.") not in FREE_ON_RESUME
    ]
    if differing:
        raise PriorError(
            f"{where} was trained differently: {'; '.join(differing)}. Use the same settings, or another output folder"
        )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return leaves


def dataset_of(run: Path) -> str:
    """Fingerprint of the dataset that a prior in `run` is trained on; empty where there is none that can be read."""
    for place in (*reversed(checkpoints(run)), run):
        try:
            return RunConfig.load(place / CONFIG).data
        except PriorError:
            continue
    return ""


def save_best(run: Path, config: RunConfig, weights: Mapping[str, Tensor], figures: Mapping[str, Any]) -> None:
    """Replace RUN/best, which :func:`load_prior` reads like a finished run."""
    with new_folder(run / BEST, _BEST_FILES) as temp:
        write_weights(temp, config, weights)
        atomic_write_json(temp / SUMMARY, finite_or_none(dict(figures)))


def write_weights(folder: Path, config: RunConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the two files that :func:`load_prior` needs into an existing folder."""
    atomic_write_json(folder / CONFIG, asdict(config))
    save_tensors(folder / WEIGHTS, weights, PriorError)


def is_run(folder: Path) -> bool:
    """Whether this stage has trained in a folder, also in a version that left no lock file."""
    finished = [folder] if (folder / SUMMARY).is_file() else []
    for place in (*checkpoints(folder), *finished):
        try:
            RunConfig.load(place / CONFIG)
            return True
        except PriorError:
            continue
    return False


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process left half-written. Call it only from the process that holds the run."""
    stored.remove_unfinished(run, (SUMMARY, CONFIG, WEIGHTS, METRICS), {BEST: _BEST_FILES})


def remove_run(run: Path) -> None:
    """Remove what a run wrote, file by file; what else is in its folder stays."""
    # The summary goes first: without it nothing takes the rest for a finished run.
    for name in (SUMMARY, CONFIG, WEIGHTS, METRICS):
        (run / name).unlink(missing_ok=True)
    remove_curves(run)
    remove_made(run / BEST, _BEST_FILES)
    for folder in run.glob(EVIDENCE):
        remove_made(folder, _EVIDENCE_FILES)
    for folder in (*checkpoints(run), *damaged_checkpoints(run)):
        remove_made(folder, FILES)


def remove_curves(run: Path) -> None:
    """Remove the events of a run that begins anew."""
    for events in (run / CURVES).glob("events.out.tfevents.*"):
        events.unlink()


def run_log(out: Path, step: int, length_bytes: int) -> RunLog:
    """Open the log of a run that continues from `step`: its first so many bytes, but for lines that are damaged."""
    left = length_bytes

    def stays(line: bytes) -> bool:
        nonlocal left
        left -= len(line)
        try:
            return left >= 0 and line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            return False

    return RunLog(out / METRICS, out / CURVES, step, stays)


def load_weights(prior: Prior, path: Path) -> None:
    """Replace the prior's weights by those of a safetensors file, on the prior's device.

    Raises:
        PriorError: the file is damaged, or its tensors are not exactly this prior's.
    """
    weights = load_tensors(path, PriorError)
    check_finite(weights, path, PriorError)
    place_weights(prior, weights, path)


def place_weights(prior: Prior, weights: Mapping[str, Tensor], path: Path) -> None:
    """Replace the prior's weights by those that were read from `path`; errors as :func:`load_weights`."""
    expected = prior.state_dict()
    for what, names in (("lacks", expected.keys() - weights.keys()), ("has unknown", weights.keys() - expected)):
        if names:
            raise PriorError(f"{path} {what} {', '.join(sorted(names))}: it is not a prior of this config")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise PriorError(f"{path}: {name} is {list(tensor.shape)}, expected {list(expected[name].shape)}")
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(placed_like(weights[name], target))


@patient
def finish_run(run: Path, checkpoint: Path, summary: Mapping[str, Any]) -> None:
    """Publish the last checkpoint as RUN/config.json and RUN/model.safetensors, then the summary."""
    for name in (CONFIG, WEIGHTS):
        with (checkpoint / name).open("rb") as source, atomic_write(run / name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    atomic_write_json(run / SUMMARY, finite_or_none(dict(summary)))


def finished_summary(run: Path, config: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that has done all its steps and is whole, else None.

    Raises:
        PriorError: it is another run.
    """
    found = read_finished(run)
    if found is None:
        return None
    summary, values = found
    check_same_run(RunConfig.from_values(values, run / CONFIG), config, run)
    return summary if summary.get("steps") == config.train.steps else None


def prior_folder(path: Path) -> Path:
    """The folder that holds the weights: a finished run itself, else the latest checkpoint of the run.

    Raises:
        PriorError: nothing to load there.
    """
    if (path / SUMMARY).exists() or (path / SCALARS).exists():
        return path
    saved = checkpoints(path)
    if not saved:
        raise PriorError(f"{path} holds no prior: neither a finished run nor a checkpoint. Train one there first")
    return saved[-1]


def load_prior(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Prior:
    """Load a trained prior for sampling.

    Args:
        path: a run (its final weights; while it is unfinished, its latest checkpoint) or one checkpoint.
        device: where the weights go.

    Returns:
        The prior in eval mode; `prior.sequence` says what its codes mean.

    Raises:
        ShardError: there is no prior, or its files are damaged or not each other's.
    """
    folder = prior_folder(Path(path))
    config = RunConfig.load(folder / CONFIG)
    # Fresh weights are thrown away at once; drawing them must not disturb the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        # Whatever attention it was trained with: one code at a time, torch's own is as fast and runs everywhere.
        prior = Prior(replace(config.train.model, attention="sdpa"), config.sequence)
    load_weights(prior, folder / WEIGHTS)
    return prior.to(device).eval()


def load_summary(run: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None while it is not finished or where it cannot be read."""
    try:
        return read_object(run / SUMMARY) if (run / SUMMARY).exists() else None
    except DamagedError as error:
        logger.warning("%s: the run counts as unfinished", error)
        return None
