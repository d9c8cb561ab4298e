"""Saving and loading: a model is a folder with config.json and model.safetensors; nothing is pickled.

A training checkpoint adds state.safetensors (optimiser tensors, random state) and state.json (counters).
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqgan.config import TrainConfig, from_dict
from vqgan.errors import InputError
from vqgan.model import VQGAN, Palette, build_model

FORMAT_VERSION = 1


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w") as file:
        file.write(json.dumps(data, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_model(folder: Path, config: TrainConfig, model: VQGAN | Palette) -> None:
    """Write config.json and model.safetensors into `folder`, each atomically, the config last."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".model.tmp-{os.getpid()}"
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, temporary)
    temporary.replace(folder / "model.safetensors")
    write_json(folder / "config.json", {"format_version": FORMAT_VERSION, **dataclasses.asdict(config)})


def load_config(folder: Path) -> TrainConfig:
    """Read a tokenizer's config.

    Raises:
        InputError: the folder holds no tokenizer, or one of another version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"no tokenizer in {folder} (config.json is missing): train one with `imagepriors train-vqgan`")
    data = json.loads(path.read_text())
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    config: TrainConfig = from_dict(TrainConfig, data)
    return config


def load_model(folder: Path) -> tuple[TrainConfig, VQGAN | Palette]:
    """Read a tokenizer's config and weights, strictly, in evaluation mode on the CPU.

    Raises:
        InputError: as load_config; or the weights do not fit the config.
    """
    config = load_config(folder)
    model = build_model(config.model, config.loss)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from error
    return config, model.eval()


def fingerprint(folder: Path) -> str:
    """Identity of a tokenizer: sha256 over its architecture and weights, 16 hex digits."""
    config = load_config(folder)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config.model), sort_keys=True).encode())
    digest.update((folder / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]


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


def save_checkpoint(
    run: Path,
    step: int,
    config: TrainConfig,
    model: VQGAN,
    tensors: dict[str, Tensor],
) -> None:
    """Write RUN/checkpoints/step-NNNNNNNN whole or not at all, then drop all but the newest ones."""
    folder = run / "checkpoints"
    temporary = folder / f".step-{step:08d}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    save_model(temporary, config, model)
    state = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    save_file(state, temporary / "state.safetensors")
    write_json(temporary / "state.json", {"step": step})
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in list_checkpoints(run)[: -config.keep_checkpoints]:
        shutil.rmtree(old)


def list_checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))
