"""The tokenizers of a job: whether they fit each other and the data, and what a dataset keeps of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from codeshards.format.errors import ShardError
from codeshards.format.files import atomic_write
from codeshards.format.schema import GridSpec
from codeshards.job.encode import IMAGE
from runkit.hub import source_of
from runkit.places import Store
from runkit.retries import patient
from vqgan.checkpoint import describe_plugin
from vqgan.config import ModelConfig
from vqgan.data import Split
from vqgan.plugin_tokenizer import plugin_name

DEPTH_RANGE = "stretched over the whole map"
"""How depth is scaled, for the plan."""


def about_tokenizer(name: str, grid: GridSpec, folder: Path) -> dict[str, str]:
    """What the manifest says about the tokenizer of the image or a condition."""
    source = source_of(folder.resolve())
    return {"folder": folder_name(name), "fingerprint": grid.fingerprint, **({"source": source} if source else {})}


def check_fit(models: Mapping[str, ModelConfig], splits: Mapping[str, Split]) -> None:
    """Refuse tokenizers of a wrong modality, resolution or geometry, and conditions that are missing in a split."""
    if IMAGE not in models:
        raise ShardError(f"tokenizers has no {IMAGE!r} (found {', '.join(models) or 'none'}): name the image tokenizer")
    for name, model in models.items():
        expected = "rgb" if name == IMAGE else name
        if model.modality != expected:
            raise ShardError(f"tokenizer {name!r} encodes {model.modality}, expected {expected}")
        if model.resolution != models[IMAGE].resolution:
            sizes = f"{model.resolution} and {models[IMAGE].resolution} pixels"
            raise ShardError(
                f"tokenizers {name!r} and {IMAGE!r} differ in resolution ({sizes}): train both at the same resolution"
            )
        if model.geometry != models[IMAGE].geometry:
            both = f"{model.geometry} and {models[IMAGE].geometry}"
            raise ShardError(
                f"tokenizers {name!r} and {IMAGE!r} differ in geometry ({both}): train both with the same geometry"
            )
        for split, samples in splits.items():
            if name != IMAGE and not any(name in item.conditions for item in samples.items):
                raise ShardError(f"no sample of split {split!r} has {name}: leave its tokenizer out, or make the maps")


def preprocessing(models: Mapping[str, ModelConfig]) -> dict[str, str]:
    """How pictures are preprocessed, for the plan; the behaviour of earlier versions is left out."""
    found: dict[str, str] = {}
    if models[IMAGE].geometry != "crop":
        found["geometry"] = models[IMAGE].geometry
    if "depth" in models:
        found["depth"] = DEPTH_RANGE
    return found


def grid_of(model: ModelConfig, mark: str) -> GridSpec:
    """The grid of a tokenizer with this fingerprint."""
    height, width = model.grid
    return GridSpec(height=height, width=width, codebook_size=model.codebook_size, fingerprint=mark)


def folder_name(name: str) -> str:
    """Folder of a tokenizer in a dataset."""
    return "tokenizer" if name == IMAGE else f"tokenizer-{name}"


@patient
def copy_tokenizers(tokenizers: Mapping[str, Path], out: Store) -> None:
    """Copy config and weights beside the shards, so that the codes can be decoded without other files."""
    for name, source in tokenizers.items():
        target = out / folder_name(name)
        for file, content in describe_plugin(source).items():
            (target / file).write_bytes(content)
        for file in () if plugin_name(source) else ("config.json", "model.safetensors"):
            with atomic_write(target / file) as copy, (source / file).open("rb") as original:
                shutil.copyfileobj(original, copy)
