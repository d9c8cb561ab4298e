"""Saving and loading. A model is a folder with config.json and model.safetensors; nothing is pickled.

RUN/                     see :mod:`runkit.runs`
  checkpoints/           config.json is a TrainConfig; state.safetensors holds the discriminator, the optimisers'
                         tensors and the random state
  best/                  the tokenizer with the lowest validation loss, and its metrics
  non-finite-step-…/     every rank's batch of the step that failed, and the weights before it
  reconstructions/       originals above reconstructions
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
from runkit.checkpoints import UNFINISHED, DamagedError, new_folder, read_object
from runkit.configs import from_dict
from runkit.errors import UserError
from runkit.files import TEMP_MARK, pretty_json, write_json
from runkit.folders import check_publish, publish
from runkit.runs import BEST, RESERVED, RunFolder
from runkit.tensors import bare_tensors, check_finite, load_tensors, pack_tensors, save_tensors
from vqgan.config import LossConfig, ModelConfig, TrainConfig, inapplicable
from vqgan.errors import InputError
from vqgan.model import VQGAN, TokenizerModel, build_model
from vqgan.plugin_tokenizer import interface, load_plugin, plugin_name

FORMAT_VERSION = 1
CONFIG, WEIGHTS, SUMMARY = stored.CONFIG, stored.WEIGHTS, stored.SUMMARY
PICTURES, FIGURES = "reconstructions", "figures.json"
BEST_FILES = (CONFIG, WEIGHTS, FIGURES, UNFINISHED)

FREE_ON_RESUME = frozenset(
    {
        "steps", "eval_every", "eval_images", "checkpoint_every", "keep_checkpoints", "reader_threads", "device",
        "compile", "tracker", "init",
    }
)  # fmt: skip
"""Fields of TrainConfig that a resumed run may change: none alters what a step computes. The tokenizer in `init` is
identified by `init_fingerprint`.

The cosine decay and the restarts of codes depend on `steps`, so a resume with another number warns.
"""
_FIRST_FIELDS = {
    "modality", "n_labels", "resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels",
    "embed_dim", "quantizer", "codebook_size",
}  # fmt: skip
"""Fields of ModelConfig that are part of every fingerprint. A new one would change stored fingerprints."""


def saved_config(config: TrainConfig) -> dict[str, Any]:
    """Return the content of config.json."""
    return {"format_version": FORMAT_VERSION, **dataclasses.asdict(config)}


def save_model(folder: Path, config: TrainConfig, model: TokenizerModel) -> None:
    """Write config.json and model.safetensors into a folder of a run, each atomically, the config last.

    :func:`publish_model` writes into other folders, where it replaces no foreign file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, model.state_dict(), InputError)
    write_json(folder / CONFIG, saved_config(config))


def check_model_folder(folder: Path, command: str) -> None:
    """Make sure that :func:`publish_model` may write a folder; call it before the work.

    Raises:
        InputError: It holds a model of another origin, or cannot be written.
    """
    check_files(folder, (WEIGHTS, CONFIG), command)


def publish_model(
    folder: Path, config: ModelConfig, model: TokenizerModel, command: str, loss: LossConfig | None = None
) -> None:
    """Write config.json and model.safetensors into a folder, in place of those that the same command wrote there.

    Args:
        folder: The folder, which is created.
        config: The architecture.
        model: The weights.
        command: Name of the command.
        loss: Its training loss; None if it is unknown.

    Raises:
        InputError: As :func:`check_model_folder`.
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
        InputError: The folder holds no tokenizer, a damaged one, or one of another version.
    """
    if name := plugin_name(folder):
        net = dataclasses.asdict(interface(load_plugin(name), name))
        return parse_config({"format_version": FORMAT_VERSION, "model": net}, folder)
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"no tokenizer in {folder} ({CONFIG} is missing): train one there, or choose another folder")
    try:
        return parse_config(read_object(path), path)
    except DamagedError as error:
        raise InputError(str(error)) from error


def parse_config(data: Mapping[str, Any], path: Path) -> TrainConfig:
    """Return the config of a config.json at `path`, given its content.

    Raises:
        InputError: It is of another version, or does not describe a tokenizer.
    """
    version, fields = data.get("format_version"), {name: data[name] for name in data if name != "format_version"}
    if "sequence" in data:
        raise InputError(f"{path} describes a prior: pass the folder of a tokenizer")
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    try:
        config: TrainConfig = from_dict(TrainConfig, _as_trained(fields), InputError)
    except InputError as error:
        raise InputError(f"{path} does not describe a tokenizer: {error}") from error
    return config


def _as_trained(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a config without inapplicable terms of the loss: earlier versions saved but did not use them."""
    model, loss = fields.get("model", {}), fields.get("loss", {})
    if not isinstance(model, dict) or not isinstance(loss, dict):
        return fields  # it is refused later
    return {**fields, "loss": applicable(from_dict(ModelConfig, model, InputError), loss)}


def applicable(model: ModelConfig, loss: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a loss with the terms that do not apply to a model disabled.

    Raises:
        InputError: They are no fields of a loss.
    """
    asked = inapplicable(model, from_dict(LossConfig, loss, InputError))
    return {**loss, **{name: off for name, (off, _) in asked.items()}}


def trained_against(folder: Path) -> str | None:
    """Return the perceptual network of a tokenizer's training loss, or "none"; None if it is unknown.

    Raises:
        InputError: As load_config.
    """
    config = load_config(folder)
    if config.model.quantizer == "palette":
        return "none"
    if config.model.kind or "loss" not in read_object(folder / CONFIG):
        return None
    return config.loss.perceptual if config.loss.perceptual_weight else "none"


def load_model(folder: Path) -> tuple[TrainConfig, TokenizerModel]:
    """Read a tokenizer's config and weights, strictly, in evaluation mode on the CPU.

    Raises:
        InputError: As load_config; or the weights are damaged, not finite or do not fit the config.
    """
    config, path = load_config(folder), folder / WEIGHTS
    if config.model.kind:
        raise InputError(
            f"{folder} is the tokenizer {config.model.kind!r} of another package: it encodes and decodes, but is "
            "neither trained nor exported here"
        )
    weights = load_tensors(path, InputError)
    check_finite(weights, path, InputError)
    model = build_model(config.model, config.loss)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit its {CONFIG}: {error}") from error
    return config, model.eval()


def fingerprint(folder: Path, known: str = "") -> str:
    """Return the fingerprint of a tokenizer: sha256 over its architecture and tensors, 16 hex digits.

    It depends neither on how the weights were saved nor on later fields of ModelConfig with their default values.

    Args:
        folder: The tokenizer.
        known: A stored fingerprint. Earlier versions hashed the file of weights with its metadata; if `known` is the
            fingerprint of this tokenizer by that rule, it is returned.

    Raises:
        InputError: The folder holds no tokenizer, or its weights cannot be read.
    """
    model, path = load_config(folder).model, folder / WEIGHTS
    if model.kind:
        return model.plugin_fingerprint
    architecture = architecture_of(model)
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
    """Return the part of a config that a fingerprint covers; later fields are covered if they are not the default."""
    usual = dataclasses.asdict(type(model)())
    values = {
        name: value
        for name, value in dataclasses.asdict(model).items()
        if name in _FIRST_FIELDS or value != usual[name]
    }
    return json.dumps(values, sort_keys=True).encode()


def describe_plugin(folder: Path) -> dict[str, bytes]:
    """Return the files that stand for a tokenizer of another package beside its codes; {} for a tokenizer's folder.

    They name it and hold no weights, because these are the package's.
    """
    if not plugin_name(folder):
        return {}
    known = {"format_version": FORMAT_VERSION, "model": dataclasses.asdict(load_config(folder).model)}
    return {CONFIG: pretty_json(known), WEIGHTS: pack_tensors({})}


def run_folder(path: Path) -> RunFolder:
    """Return the folder of a tokenizer's run."""
    return RunFolder(
        path=path, command="train-vqgan", product="tokenizer", read_config=parse_config, free_on_resume=FREE_ON_RESUME,
        best_files=BEST_FILES, error=InputError, reserved=(*RESERVED, PICTURES),
        temporary=(f"{PICTURES}/.step-*.png{TEMP_MARK}*", ".model.tmp-[0-9]*"),  # the second is of earlier versions
    )  # fmt: skip


def save_best(run: Path, config: TrainConfig, model: VQGAN, figures: Mapping[str, Any]) -> None:
    """Replace RUN/best if these metrics are better."""
    try:
        lowest = read_object(run / BEST / FIGURES).get("val_loss")
    except DamagedError:  # missing, or to be replaced
        lowest = None
    if isinstance(lowest, int | float) and not figures["val_loss"] < lowest:
        return
    with new_folder(run / BEST, BEST_FILES) as temp:
        save_model(temp, config, model)
        write_json(temp / FIGURES, figures)


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as flat tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": value.cpu() for i, part in state.items() for name, value in part.items()}


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".")
            like = parameters[int(index)]
            if value.shape == like.shape:
                # The fused kernel ignores strides, so a moment must have those of its parameter.
                value = torch.empty_like(like).copy_(value)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
