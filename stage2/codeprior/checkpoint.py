"""The files of a run, and how they are read back. Nothing is pickled.

RUN/                     see :mod:`runkit.runs`
  checkpoints/           config.json is a RunConfig; with ema_decay, model.safetensors is the moving average, and
                         state.safetensors holds the trained weights and AdamW's moments
  best/                  config, weights and summary of the evaluation with the lowest loss
  non-finite-step-…/     config and weights before the step that failed, its number, and the batch of every rank
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from codeprior.config import PriorError, SequenceSpec, TrainConfig
from codeprior.distributed import distribute_like
from codeprior.masked import make_prior
from codeprior.model import Prior
from codeshards.format.files import atomic_write
from runkit import checkpoints as stored
from runkit.checkpoints import (
    FILES,
    UNFINISHED,
    DamagedError,
    checkpoints,
    damaged_checkpoints,
    new_folder,
    read_object,
)
from runkit.configs import check_fields, from_dict
from runkit.files import remove_made, write_json
from runkit.retries import patient
from runkit.runs import BEST, EVIDENCE, METRICS, RunFolder
from runkit.tensors import check_finite, load_tensors, save_tensors

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Raised when earlier versions would misread a checkpoint."""

CONFIG, WEIGHTS, SCALARS, SUMMARY = stored.CONFIG, stored.WEIGHTS, stored.SCALARS, stored.SUMMARY
_BEST_FILES = (CONFIG, WEIGHTS, SUMMARY, UNFINISHED)
_EVIDENCE_FILES = (CONFIG, WEIGHTS, SCALARS, "batch-rank-*.safetensors", UNFINISHED)

FREE_ON_RESUME = frozenset(
    {
        "steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "device", "parallel", "accumulate",
        "compile", "checkpoint_activations", "tracker",
    }
)  # fmt: skip
"""Fields of TrainConfig that a resumed run may change: none alters what a step computes, except for rounding.

The cosine schedule and random_order depend on `steps`, so a resume with another number warns. Dropout draws other masks
with another accumulate, device, compile or number of processes.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All that determines the weights of a run: `config.json`."""

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
            PriorError: It is missing, damaged or of another version, or a key is unknown or missing.
        """
        try:
            return cls.from_values(read_object(path), path)
        except DamagedError as error:
            raise PriorError(str(error)) from error

    @classmethod
    def from_values(cls, value: Mapping[str, Any], path: Path) -> Self:
        """Return the config of a `config.json` at `path`, given its content; errors as :meth:`load`."""
        if "sequence" not in value and "model" in value:
            raise PriorError(f"{path} describes a tokenizer: pass the run folder of a prior")
        if value.get("format_version") != FORMAT_VERSION:
            raise PriorError(
                f"{path}: format_version is {value.get('format_version')!r}, "
                f"this code reads {FORMAT_VERSION}; use the version of the code that wrote it"
            )
        try:
            config: Self = from_dict(cls, value, PriorError)
        except (PriorError, TypeError, ValueError) as error:
            raise PriorError(f"{path} does not describe a prior: {error}") from error
        return config


def run_folder(path: Path) -> RunFolder:
    """Return the folder of a prior's run."""
    return RunFolder(
        path=path, command="train-prior", product="prior", read_config=RunConfig.from_values,
        free_on_resume=FREE_ON_RESUME, best_files=_BEST_FILES, error=PriorError,
    )  # fmt: skip


def dataset_of(run: Path) -> str:
    """Return the fingerprint of the dataset that a prior in `run` is trained on; "" if no config can be read."""
    for place in (*reversed(checkpoints(run)), run):
        try:
            return RunConfig.load(place / CONFIG).data
        except PriorError:
            continue
    return ""


def save_best(run: Path, config: RunConfig, weights: Mapping[str, Tensor], figures: Mapping[str, Any]) -> None:
    """Replace RUN/best, which :func:`load_prior` reads as it reads a finished run."""
    with new_folder(run / BEST, _BEST_FILES) as temp:
        write_weights(temp, config, weights)
        write_json(temp / SUMMARY, figures)


def write_weights(folder: Path, config: RunConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the two files that :func:`load_prior` reads into an existing folder."""
    write_json(folder / CONFIG, asdict(config))
    save_tensors(folder / WEIGHTS, weights, PriorError)


def remove_run(run: Path) -> None:
    """Remove the files that a run wrote, one by one; other files in its folder are kept."""
    # The summary first: without it the rest is not mistaken for a finished run.
    for name in (SUMMARY, CONFIG, WEIGHTS, METRICS):
        (run / name).unlink(missing_ok=True)
    run_folder(run).remove_curves()
    remove_made(run / BEST, _BEST_FILES)
    for folder in run.glob(EVIDENCE):
        remove_made(folder, _EVIDENCE_FILES)
    for folder in (*checkpoints(run), *damaged_checkpoints(run)):
        remove_made(folder, FILES)


def load_weights(prior: Prior, path: Path) -> None:
    """Replace the prior's weights by those of a safetensors file, on the prior's device.

    Raises:
        PriorError: The file is damaged, or its tensors are not exactly those of this prior.
    """
    weights = load_tensors(path, PriorError)
    check_finite(weights, path, PriorError)
    set_weights(prior, weights, path)


def set_weights(prior: Prior, weights: Mapping[str, Tensor], path: Path) -> None:
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
            target.copy_(distribute_like(weights[name], target))


@patient
def finish_run(run: Path, checkpoint: Path, summary: Mapping[str, Any]) -> None:
    """Publish the last checkpoint as RUN/config.json and RUN/model.safetensors, then the summary."""
    for name in (CONFIG, WEIGHTS):
        with (checkpoint / name).open("rb") as source, atomic_write(run / name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    write_json(run / SUMMARY, summary)


def prior_folder(path: Path) -> Path:
    """Return the folder of the weights: that of a finished run, else its latest checkpoint.

    Raises:
        PriorError: There are no weights.
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
        path: A run (its final weights, or its latest checkpoint if it is unfinished) or a checkpoint.
        device: Device of the weights.

    Returns:
        The prior in eval mode; `prior.sequence` describes its codes.

    Raises:
        ShardError: There is no prior, or its files are damaged or do not fit each other.
    """
    folder = prior_folder(Path(path))
    config = RunConfig.load(folder / CONFIG)
    # The initial weights are replaced; drawing them must not change the random state of the caller.
    with torch.random.fork_rng(devices=[]):
        # For one code at a time, torch's attention is as fast as any other, and it runs on every device.
        prior = make_prior(replace(config.train.model, attention="sdpa"), config.sequence)
    load_weights(prior, folder / WEIGHTS)
    return prior.to(device).eval()


def load_summary(run: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None if it is unfinished or cannot be read."""
    try:
        return read_object(run / SUMMARY) if (run / SUMMARY).exists() else None
    except DamagedError as error:
        logger.warning("%s: the run counts as unfinished", error)
        return None
