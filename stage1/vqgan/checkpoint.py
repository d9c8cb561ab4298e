"""Saving and loading: a model is a folder with config.json and model.safetensors; nothing is pickled.

RUN/
  checkpoints/           see :mod:`runkit.checkpoints`; config.json is a TrainConfig, and state.safetensors has the
                         discriminator, the optimisers' tensors and the random state
  best/                  the tokenizer with the lowest validation loss, and its figures
  non-finite-step-…/     every rank's batch of the step that failed, and the weights before it
  reconstructions/       originals above reconstructions
  metrics.jsonl          and tensorboard/: the same figures as curves
  model.safetensors      of the finished run
  config.json
  summary.json           written last: the run is complete
  .train-vqgan.lock      held while a process trains here
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runkit import checkpoints as stored
from runkit.checkpoints import FOLDER, UNFINISHED, DamagedError, checkpoints, new_folder, read_finished, read_object
from runkit.errors import UserError
from runkit.files import TEMP_MARK, pretty_json, write_file
from runkit.folders import check_publish, publish
from runkit.jsonfiles import finite_or_none
from runkit.tensors import bare_tensors, check_finite, load_tensors, pack_tensors, save_tensors
from vqgan.config import LossConfig, ModelConfig, TrainConfig, from_dict, inapplicable
from vqgan.errors import InputError
from vqgan.model import VQGAN, TokenizerModel, build_model

FORMAT_VERSION = 1
CONFIG, WEIGHTS, SUMMARY = stored.CONFIG, stored.WEIGHTS, stored.SUMMARY
METRICS, CURVES, BEST, PICTURES = "metrics.jsonl", "tensorboard", "best", "reconstructions"
FIGURES = "figures.json"
RESERVED = (SUMMARY, CONFIG, WEIGHTS, METRICS, CURVES, BEST, PICTURES, FOLDER, "non-finite-step-*")
"""Names of what a run writes into its folder, but for hidden files."""
BEST_FILES = (CONFIG, WEIGHTS, FIGURES, UNFINISHED)

FREE_TO_CHANGE = {
    "steps", "eval_every", "eval_images", "checkpoint_every", "keep_checkpoints", "reader_threads", "device", "compile",
}  # fmt: skip
"""Fields that a continued run may change: they decide how long and where it runs, not what it computes."""
_FIRST_FIELDS = {
    "modality", "n_labels", "resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels",
    "embed_dim", "quantizer", "codebook_size",
}  # fmt: skip
"""Fields of ModelConfig that are part of every fingerprint. Never add one: stored fingerprints would change."""


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; numbers that are not finite become null."""
    write_file(path, pretty_json(finite_or_none(data)))


def saved_config(config: TrainConfig) -> dict[str, Any]:
    """What config.json holds."""
    return {"format_version": FORMAT_VERSION, **dataclasses.asdict(config)}


def save_model(folder: Path, config: TrainConfig, model: TokenizerModel) -> None:
    """Write config.json and model.safetensors into a folder of ours, each whole or not at all, the config last.

    A folder that a person has named is written by :func:`publish_model`, which replaces nothing foreign.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, model.state_dict(), InputError)
    write_json(folder / CONFIG, saved_config(config))


def check_model_folder(folder: Path, command: str) -> None:
    """Make sure that :func:`publish_model` may write a folder; call it before the work.

    Raises:
        InputError: it holds a model that the command has not made, or cannot be written.
    """
    check_files(folder, (WEIGHTS, CONFIG), command)


def publish_model(
    folder: Path, config: ModelConfig, model: TokenizerModel, command: str, loss: LossConfig | None = None
) -> None:
    """Write config.json and model.safetensors into a folder, in place of those that the same command wrote there.

    Args:
        folder: The folder; it is made.
        config: The architecture.
        model: The weights.
        command: Name of the command.
        loss: What it was trained with; None where that is not known.

    Raises:
        InputError: as :func:`check_model_folder`.
    """
    known = {"model": dataclasses.asdict(config)} | ({"loss": dataclasses.asdict(loss)} if loss else {})
    values = pretty_json({"format_version": FORMAT_VERSION, **known})
    publish_files(folder, {WEIGHTS: pack_tensors(model.state_dict()), CONFIG: values}, command)


def check_files(folder: Path, names: tuple[str, ...], command: str) -> None:
    """Make sure that :func:`publish_files` may write these files; errors as :func:`check_model_folder`."""
    with _as_input_error():
        check_publish(folder, names, command)


def publish_files(folder: Path, files: Mapping[str, bytes], command: str) -> None:
    """Write files into a folder in place of those that the command wrote there, config.json last."""
    with _as_input_error():
        publish(folder, files, command, last=CONFIG)


@contextlib.contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise InputError(str(error)) from error


def load_config(folder: Path) -> TrainConfig:
    """Read a tokenizer's config.

    Raises:
        InputError: the folder holds no tokenizer, a damaged one, or one of another version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"no tokenizer in {folder} ({CONFIG} is missing): train one there, or choose another folder")
    try:
        return parse_config(read_object(path), path)
    except DamagedError as error:
        raise InputError(str(error)) from error


def parse_config(data: Mapping[str, Any], path: Path) -> TrainConfig:
    """The config that a config.json at `path` holds.

    Raises:
        InputError: it is of another version, or does not describe a tokenizer.
    """
    version, fields = data.get("format_version"), {name: data[name] for name in data if name != "format_version"}
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    try:
        config: TrainConfig = from_dict(TrainConfig, _as_trained(fields))
    except InputError as error:
        raise InputError(f"{path} does not describe a tokenizer: {error}") from error
    return config


def _as_trained(fields: dict[str, Any]) -> dict[str, Any]:
    """A config without the terms of a loss that cannot apply: earlier versions saved them, and trained without."""
    model, loss = fields.get("model", {}), fields.get("loss", {})
    if not isinstance(model, dict) or not isinstance(loss, dict):
        return fields  # which is refused
    asked = inapplicable(from_dict(ModelConfig, model), from_dict(LossConfig, loss))
    return {**fields, "loss": {**loss, **{name: off for name, (off, _) in asked.items()}}}


def trained_against(folder: Path) -> str | None:
    """The perceptual network in a tokenizer's training loss, or "none"; None where its config does not tell.

    Raises:
        InputError: as load_config.
    """
    config = load_config(folder)
    if config.model.quantizer == "palette":
        return "none"
    if "loss" not in read_object(folder / CONFIG):
        return None
    return config.loss.perceptual if config.loss.perceptual_weight else "none"


def load_model(folder: Path) -> tuple[TrainConfig, TokenizerModel]:
    """Read a tokenizer's config and weights, strictly, in evaluation mode on the CPU.

    Raises:
        InputError: as load_config; or the weights are damaged, not finite or do not fit the config.
    """
    config, path = load_config(folder), folder / WEIGHTS
    weights = load_tensors(path, InputError)
    check_finite(weights, path, InputError)
    model = build_model(config.model, config.loss)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its {CONFIG}: {error}") from error
    return config, model.eval()


def fingerprint(folder: Path, known: str = "") -> str:
    """Identity of a tokenizer: sha256 over its architecture and tensors, 16 hex digits.

    It is the same for the same weights, however they were saved, and in a version whose ModelConfig has more fields.

    Args:
        folder: The tokenizer.
        known: A fingerprint that a dataset, a plan or a prior has stored. Earlier versions hashed the bytes of the
            file of weights, metadata included; where `known` is this tokenizer's by that rule, it is returned.

    Raises:
        InputError: no tokenizer there, or its weights cannot be read.
    """
    architecture, path = architecture_of(load_config(folder).model), folder / WEIGHTS
    tensors = load_tensors(path, InputError)
    forms: tuple[Callable[[], bytes], ...] = (
        lambda: bare_tensors(tensors), lambda: pack_tensors(tensors), path.read_bytes,
    )  # fmt: skip
    found = ""
    for content in forms if known else forms[:1]:
        digest = hashlib.sha256(architecture + content()).hexdigest()[:16]
        if digest == known:
            return known
        found = found or digest
    return found


def architecture_of(model: ModelConfig) -> bytes:
    """What of a config is part of a fingerprint; a later field is, where its value is not the default."""
    usual = dataclasses.asdict(type(model)())
    values = {
        name: value
        for name, value in dataclasses.asdict(model).items()
        if name in _FIRST_FIELDS or value != usual[name]
    }
    return json.dumps(values, sort_keys=True).encode()


def check_same_run(saved: TrainConfig, wanted: TrainConfig, run: Path) -> None:
    """Refuse to continue a run with another config.

    Raises:
        InputError: naming every field that decides the result and differs.
    """
    before, now = (_flat(dataclasses.asdict(config)) for config in (saved, wanted))
    changed = [name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]]
    if changed:
        parts = ", ".join(f"{name}: {before.get(name)} → {now[name]}" for name in changed)
        raise InputError(f"{run} was started with another config ({parts}): choose another output folder")


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names, so that a message names the field that differs."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def is_run(folder: Path) -> bool:
    """Whether this stage has trained in a folder, also in a version that left no lock file."""
    finished = [folder] if (folder / SUMMARY).is_file() else []
    for place in (*checkpoints(folder), *finished):
        try:
            load_config(place)
            return True
        except InputError:
            continue
    return False


def finished_summary(run: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The summary of a run that has done all its steps and is whole, else None.

    Raises:
        InputError: it is another run.
    """
    found = read_finished(run)
    if found is None:
        return None
    summary, values = found
    check_same_run(parse_config(values, run / CONFIG), config, run)
    return summary if summary.get("steps") == config.steps else None


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process left half-written. Call it only from the process that holds the run."""
    stored.remove_unfinished(run, (SUMMARY, CONFIG, WEIGHTS, METRICS), {BEST: BEST_FILES})
    for pattern in (f"{PICTURES}/.step-*.png{TEMP_MARK}*", ".model.tmp-[0-9]*"):  # the second is of earlier versions
        for temp in run.glob(pattern):
            temp.unlink()


def save_best(run: Path, config: TrainConfig, model: VQGAN, figures: Mapping[str, Any]) -> None:
    """Write RUN/best in place of an earlier one, if these figures are better than its."""
    try:
        lowest = read_object(run / BEST / FIGURES).get("val_loss")
    except DamagedError:  # missing, or to be written anew
        lowest = None
    if isinstance(lowest, int | float) and not figures["val_loss"] < lowest:
        return
    with new_folder(run / BEST, BEST_FILES) as temp:
        save_model(temp, config, model)
        write_json(temp / FIGURES, figures)


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": value.cpu() for i, part in state.items() for name, value in part.items()}


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".")
            like = parameters[int(index)]
            if value.shape == like.shape:
                # The fused kernel walks memory, not indices: a moment must have its parameter's strides.
                value = torch.empty_like(like).copy_(value)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
