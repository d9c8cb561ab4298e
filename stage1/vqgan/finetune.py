"""Fine-tuning: a run that starts from the weights of a tokenizer, trained or imported."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from vqgan.checkpoint import applicable, fingerprint, load_config, load_model
from vqgan.config import TrainConfig
from vqgan.errors import InputError
from vqgan.model import VQGAN
from vqgan.quantize import VectorQuantizer

_FREE = frozenset({"resolution", "geometry", "attn_resolutions"})
"""Fields of the architecture that may differ from those of the tokenizer; attention follows the resolution."""


def initial_fields(folder: Path, fields: dict[str, Any], freeze: str = "none") -> dict[str, Any]:
    """Return the fields of a TrainConfig with the architecture of a tokenizer, and `init` its folder.

    What the fields ask for in training codes is disabled if the quantiser does not have it, or the codes are frozen.

    Raises:
        InputError: The folder holds no tokenizer, or a field of the loss is not allowed.
    """
    model = _start(folder).model
    found = {**fields, "init": str(folder), "model": dataclasses.asdict(model)}
    if "loss" in fields:
        found["loss"] = applicable(model, fields["loss"])
    if freeze == "encoder":
        found["loss"] = {**found.get("loss", {}), "codebook_decay": 0.0}
    trains_codes = freeze == "none" and model.quantizer in ("vq", "l2")
    return found if trains_codes else {**found, "restart_every": 0}


def completed(config: TrainConfig) -> TrainConfig:
    """Return a config with what follows from the tokenizer that it starts from; unchanged if it starts from none.

    Attention stays at the levels of the network where it was trained, and the fingerprints are filled in.

    Raises:
        InputError: The folder holds no tokenizer, or one that cannot be trained or has another architecture.
    """
    if not config.init:
        return dataclasses.replace(config, init_fingerprint="", codes_of="")
    folder = Path(config.init)
    start, model = _start(folder), config.model
    if start.model.quantizer in ("gumbel", "palette") or start.model.kind:
        found = start.model.kind or start.model.quantizer
        raise InputError(
            f"init is {folder}, a tokenizer of kind {found!r}, which cannot be trained: choose another one"
        )
    before = dataclasses.asdict(start.model)
    for name, value in dataclasses.asdict(model).items():
        if name not in _FREE and value != before[name]:
            raise InputError(
                f"model.{name} is {value!r}, but the tokenizer in {folder} has {before[name]!r}: leave it out "
                f"(only resolution and geometry may differ)"
            )
    mark = fingerprint(folder)
    same_pictures = (model.resolution, model.geometry) == (start.model.resolution, start.model.geometry)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(start.model.at_resolution(model.resolution), geometry=model.geometry),
        init_fingerprint=mark,
        codes_of=(start.codes_of or mark) if config.freeze == "encoder" and same_pictures else "",
    )


def _start(folder: Path) -> TrainConfig:
    """Return the config of the tokenizer that a run starts from."""
    try:
        return load_config(folder)
    except InputError as error:
        raise InputError(f"init: {error}; a run that resumes requires the tokenizer from which it started") from error


@torch.no_grad()
def load_initial(model: VQGAN, config: TrainConfig) -> None:
    """Set the weights of a run that starts.

    Raises:
        InputError: They are damaged, or the tokenizer is not the one of the config any more.
    """
    if fingerprint(Path(config.init)) != config.init_fingerprint:
        raise InputError(f"{config.init} has changed since this run was planned: run the command again")
    model.load_state_dict(load_model(Path(config.init))[1].state_dict())
    quantizer = model.quantize
    if isinstance(quantizer, VectorQuantizer):
        # As if each code had been the mean of its equal part of a batch: without a weight, an average would ignore it.
        quantizer.counts_K.fill_(config.batch_size * math.prod(config.model.grid) / config.model.codebook_size)
        quantizer.sums_KD.copy_(quantizer.embedding.weight * quantizer.counts_K[:, None])


def freeze(model: VQGAN) -> None:
    """Exclude encoder and codes from training, so that every picture keeps its codes."""
    for part in (model.encoder, model.quant_conv, model.quantize):
        part.requires_grad_(False)
