"""What the importers of released tokenizers share: a converted checkpoint, and the sizes that its tensors tell."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vqgan.config import LossConfig, ModelConfig
from vqgan.errors import InputError

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Released:
    """A checkpoint of another project, converted."""

    config: ModelConfig
    """Its architecture."""
    weights: Weights
    """Its tensors, under the names of this package."""
    dropped: Sequence[str] = ()
    """Names of tensors that a tokenizer does not have, such as those of a discriminator."""
    loss: LossConfig | None = None
    """Its training loss; None if it is unknown."""


def without(weights: Weights, prefixes: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors whose names have none of the prefixes, and the names of the others."""
    kept = {name: value for name, value in weights.items() if not name.startswith(prefixes)}
    return kept, sorted(weights.keys() - kept.keys())


def renamed(weights: Weights, rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors with their names changed as :func:`rename` does."""
    return {rename(name, rules): value for name, value in weights.items()}


def rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """Return a name with each rule's pattern replaced, one rule after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def count(weights: Weights, pattern: str) -> int:
    """Return one more than the largest number that the group of a pattern finds in the names, or 0."""
    return max((int(found[1]) + 1 for name in weights if (found := re.match(pattern, name))), default=0)


def size(weights: Weights, name: str, axis: int = 0) -> int:
    """Return the size of a tensor along an axis.

    Raises:
        InputError: There is no such tensor, or it has no such axis.
    """
    if name not in weights or weights[name].ndim <= axis:
        found = f"has the shape {tuple(weights[name].shape)}" if name in weights else "is missing"
        raise InputError(f"{name} {found}")
    return weights[name].shape[axis]


def network_sizes(weights: Weights, patch: int = 1) -> dict[str, Any]:
    """Return the fields of a ModelConfig that the tensors of a VQGAN tell, without those of its quantiser.

    The side of the pictures, which cannot be inferred from the tensors, is 256.

    Args:
        weights: The tensors, under the names of this package.
        patch: Side of the squares of pixels that are the inputs of the network.

    Raises:
        InputError: A tensor is missing.
    """
    ch, inputs = (size(weights, "encoder.conv_in.weight", axis) for axis in (0, 1))
    channels = inputs // patch**2
    levels = count(weights, r"encoder\.down\.(\d+)\.block\.")
    widths = [size(weights, f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
    attention = [level for level in range(levels) if count(weights, rf"encoder\.down\.{level}\.attn\.(\d+)\.")]
    halvings = count(weights, r"encoder\.down\.(\d+)\.downsample\.") if patch > 1 else levels - 1
    modality: dict[int, dict[str, Any]] = {3: {}, 1: {"modality": "depth"}}
    return {
        **modality.get(channels, {"modality": "segmentation", "n_labels": channels}),
        "resolution": 256,
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        "patch": patch,
        "halvings": halvings if patch > 1 else 0,
        "attn_resolutions": tuple(dict.fromkeys(256 // patch >> min(level, halvings) for level in attention)),
        "norm_groups": released_groups(ch),
        "z_channels": size(weights, "encoder.conv_out.weight"),
    }


def released_groups(ch: int) -> int:
    """Return the `norm_groups` of a network whose norms all have 32 groups; 0, the default, means the same from 128."""
    return 0 if ch >= 128 else 32
