"""Exchange of tokenizers with diffusers, whose `VQModel` is the same network with other names.

diffusers need not be installed: its format is a folder with config.json and a safetensors file.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from runkit.files import pretty_json
from runkit.folders import check_apart
from runkit.tensors import check_finite, load_tensors, pack_tensors
from vqgan.checkpoint import check_files, check_model_folder, load_model, publish_files, publish_model
from vqgan.compat.released import rename
from vqgan.config import ModelConfig
from vqgan.errors import InputError
from vqgan.model import VQGAN
from vqgan.networks.base import norm

_EXPORT, _IMPORT = "export-diffusers", "import-diffusers"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Our names → theirs. The decoder's levels, which are counted in reverse, are handled separately.
_RENAMED = (
    (r"^encoder\.down\.", "encoder.down_blocks."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
_PROJECTION = re.compile(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$")


def _their_name(key: str, levels: int) -> str:
    key = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", key)
    return rename(key, _RENAMED)


def _norm_groups(config: ModelConfig) -> set[int]:
    """Return the numbers of groups of the GroupNorms; VQModel has one number for all."""
    return {norm(config.ch * mult, config.norm_groups).num_groups for mult in (1, *config.ch_mult)}


def _their_config(config: ModelConfig) -> dict[str, Any]:
    attention = [config.resolution >> level in config.attn_resolutions for level in range(len(config.ch_mult))]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [config.ch * mult for mult in config.ch_mult],
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attention],
        "in_channels": config.channels,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": max(_norm_groups(config)),
        "norm_type": "group",
        "num_vq_embeddings": config.codebook_size,
        "out_channels": config.channels,
        "sample_size": config.resolution,
        "scaling_factor": 1.0,
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attention)],
        "vq_embed_dim": config.embed_dim,
    }


def export_diffusers(tokenizer: Path, out: Path) -> Path:
    """Write a tokenizer as a folder that `diffusers.VQModel.from_pretrained` loads; return the folder.

    Codes on the unit sphere are written normalised, so that the nearest one does not depend on the latent's norm.

    Raises:
        InputError: The folder holds no tokenizer, or VQModel does not support it; or `out` holds files of these names
            that this function has not written.
    """
    check_apart(out, tokenizer=tokenizer)
    check_files(out, (_WEIGHTS, "config.json"), _EXPORT)
    config, model = load_model(tokenizer)
    net = config.model
    if net.kind or net.network != "vqgan" or net.quantizer not in ("vq", "l2"):
        found = net.kind or f"{net.network} with a {net.quantizer} quantiser"
        raise InputError(f"{tokenizer} is a {found}: diffusers' VQModel is a vqgan with vq or l2")
    if net.patch > 1 or net.halvings:
        raise InputError(f"{tokenizer} has patch {net.patch}, halvings {net.halvings}: diffusers' VQModel has neither")
    if len(groups := _norm_groups(net)) > 1:
        raise InputError(f"{tokenizer} has GroupNorms of {sorted(groups)} groups: VQModel has one number for all")
    weights: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        name = _their_name(key, len(net.ch_mult))
        if name == "quantize.embedding.weight" and net.quantizer == "l2":
            value = F.normalize(value, dim=1)
        weights[name] = (value.flatten(1) if _PROJECTION.search(name) else value).contiguous()
    files = {_WEIGHTS: pack_tensors(weights, {"format": "pt"}), "config.json": pretty_json(_their_config(net))}
    publish_files(out, files, _EXPORT)
    return out


def import_diffusers(folder: Path, out: Path) -> Path:
    """Convert a saved diffusers `VQModel` to a tokenizer; return its folder.

    Raises:
        InputError: It is not a VQModel, or its network is not supported; or `out` holds a model that this function has
            not written.
    """
    check_apart(out, folder=folder)
    check_model_folder(out, _IMPORT)
    try:
        theirs = json.loads((folder / "config.json").read_text())
        (folder / _WEIGHTS).stat()
        weights = load_tensors(folder / _WEIGHTS, InputError)
        check_finite(weights, folder / _WEIGHTS, InputError)
        channels, widths = int(theirs["in_channels"]), [int(width) for width in theirs["block_out_channels"]]
        size, groups = int(theirs["sample_size"]), int(theirs["norm_num_groups"])
        levels = [size >> level for level, kind in enumerate(theirs["down_block_types"]) if "Attn" in kind]
        config = ModelConfig(
            modality="rgb" if channels == 3 else "depth" if channels == 1 else "segmentation",
            n_labels=0 if channels in (1, 3) else channels,
            resolution=size,
            ch=widths[0],
            ch_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=int(theirs["layers_per_block"]),
            norm_groups=0 if widths[0] >= 128 and groups == 32 else groups,
            attn_resolutions=tuple(levels),
            z_channels=int(theirs["latent_channels"]),
            embed_dim=int(theirs["vq_embed_dim"] or theirs["latent_channels"]),
            codebook_size=int(theirs["num_vq_embeddings"]),
        )
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{folder} is no saved diffusers VQModel with {_WEIGHTS}: {error!r}") from error
    known, ours_alone = _their_config(config), ("vq_embed_dim", "sample_size", "scaling_factor")  # the last is unused
    odd = [name for name in known if name not in ours_alone and theirs.get(name) != known[name]]
    if odd:
        found = ", ".join(f"{name} {theirs.get(name)!r}" for name in odd)
        raise InputError(f"{folder} is another network than this package's ({found})")
    model = VQGAN(config)
    own = model.state_dict()
    names = {key: _their_name(key, len(config.ch_mult)) for key in own}
    if set(names.values()) != weights.keys():
        differing = sorted(set(names.values()) ^ weights.keys())
        raise InputError(f"{folder / _WEIGHTS} differs from its config in {len(differing)} keys: {differing[0]} …")
    model.load_state_dict({key: weights[name].view(own[key].shape) for key, name in names.items()})
    publish_model(out, config, model, _IMPORT)
    return out
