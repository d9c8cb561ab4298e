"""What a run leaves on disk, and how it is read back. Nothing here is pickled.

RUN/
  checkpoints/step-00000500/
    config.json          RunConfig: what was trained, on what
    model.safetensors    the weights; with ema_decay their moving average
    state.safetensors    AdamW's moments; with ema_decay also the weights that are trained
    state.json           step, loader position and other plain values
  best/                  config, weights and summary of the evaluation with the lowest loss
  non-finite-step-…/     config and weights from which that step failed, its number, and every rank's batch
  metrics.jsonl          and tensorboard/: the same figures as curves
  config.json            of the finished run
  model.safetensors
  summary.json           written last: the run is complete
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import dacite
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from codeprior.config import PriorError, SequenceSpec, TrainConfig
from codeprior.distributed import placed_like
from codeprior.model import Prior
from codeshards.format import WriteError, atomic_write, atomic_write_json, fsync_path, read_json, remove_stale_temps

FORMAT_VERSION = 2
"""Raised when older code would misread a checkpoint."""

CONFIG, WEIGHTS, TENSORS, SCALARS = "config.json", "model.safetensors", "state.safetensors", "state.json"
SUMMARY = "summary.json"
_TEMP_PREFIX = ".tmp-"

BEST = "best"

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

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `config.json`.

        Raises:
            ShardError: missing or damaged, of another version, or with keys that are unknown or missing.
        """
        value = read_json(path)
        if value.get("format_version") != FORMAT_VERSION:
            raise PriorError(
                f"{path}: format_version is {value.get('format_version')!r}, "
                f"this code reads {FORMAT_VERSION}; use the version of the code that wrote it"
            )
        # JSON has no tuples, and writes the float 1.0 of a config given as 1 without its point.
        strict = dacite.Config(strict=True, cast=[tuple], type_hooks={float: float})
        try:
            return dacite.from_dict(cls, value, strict)
        except (dacite.DaciteError, PriorError) as error:
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
            f"{where} was trained differently: {'; '.join(differing)}. "
            "Use the same settings, another output folder, or remove this one to start over"
        )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return leaves


def save_checkpoint(
    run: Path,
    config: RunConfig,
    weights: Mapping[str, Tensor],
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write RUN/checkpoints/step-NNNNNNNN, whole or not at all, then remove all but the last `keep`."""
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step-{step:08d}"
    temp = root / f"{_TEMP_PREFIX}{final.name}-{os.getpid()}"
    temp.mkdir()
    write_weights(temp, config, weights)
    atomic_write_json(temp / SCALARS, {"step": step, **scalars})
    _write_tensors(temp / TENSORS, tensors)
    fsync_path(temp)
    temp.rename(final)
    fsync_path(root)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def save_best(run: Path, config: RunConfig, weights: Mapping[str, Tensor], figures: Mapping[str, Any]) -> None:
    """Replace RUN/best, which :func:`load_prior` reads like a finished run."""
    temp = run / f"{_TEMP_PREFIX}{BEST}"
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    write_weights(temp, config, weights)
    atomic_write_json(temp / SUMMARY, figures)
    shutil.rmtree(run / BEST, ignore_errors=True)
    temp.rename(run / BEST)
    fsync_path(run)


def write_weights(folder: Path, config: RunConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the two files that :func:`load_prior` needs into an existing folder."""
    atomic_write_json(folder / CONFIG, asdict(config))
    _write_tensors(folder / WEIGHTS, weights)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        fsync_path(path)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"cannot write {path}: {error}; earlier checkpoints are kept") from error


def checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name))


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process left half-written. Call it only from the run's one trainer."""
    for temp in (*(run / "checkpoints").glob(f"{_TEMP_PREFIX}*"), *run.glob(f"{_TEMP_PREFIX}*")):
        shutil.rmtree(temp)
    remove_stale_temps(run)


def load_state(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and plain values that :func:`save_checkpoint` was given, and the step."""
    return _load_tensors(checkpoint / TENSORS, torch.device("cpu")), read_json(checkpoint / SCALARS)


def load_weights(prior: Prior, path: Path) -> None:
    """Replace the prior's weights by those of a safetensors file, on the prior's device.

    Raises:
        PriorError: the file is damaged, or its tensors are not exactly this prior's.
    """
    weights, expected = _load_tensors(path, torch.device("cpu")), prior.state_dict()
    for what, names in (("lacks", expected.keys() - weights), ("has unknown", weights.keys() - expected)):
        if names:
            raise PriorError(f"{path} {what} {', '.join(sorted(names))}: it is not a prior of this config")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise PriorError(f"{path}: {name} is {list(tensor.shape)}, expected {list(expected[name].shape)}")
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(placed_like(weights[name], target))


def finish_run(run: Path, checkpoint: Path, summary: Mapping[str, Any]) -> None:
    """Publish the last checkpoint as RUN/config.json and RUN/model.safetensors, then the summary."""
    for name in (CONFIG, WEIGHTS):
        with (checkpoint / name).open("rb") as source, atomic_write(run / name) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    atomic_write_json(run / SUMMARY, summary)


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
    """The summary of a finished run, None while it is not finished."""
    return read_json(run / SUMMARY) if (run / SUMMARY).exists() else None


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one line to a .jsonl file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def _load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise PriorError(f"{path} cannot be read: {error}") from error
