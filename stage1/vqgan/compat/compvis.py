"""Released CompVis VQGANs (taming-transformers), such as f16/1024, f16/16384, Gumbel f8/8192.

The files are Lightning pickles that name classes of old packages; nothing in them is executed.
"""

from pathlib import Path
from typing import Any

from vqgan.compat.released import Released, Weights, network_sizes, released_groups, size, without
from vqgan.config import LossConfig, ModelConfig
from vqgan.errors import InputError

MARK = r"encoder\.mid\.attn_1\."
"""Pattern of a name by which a checkpoint is recognised."""
DROPPED = ("loss.", "image_key", "colorize")
"""Prefixes of keys that a tokenizer does not have: the discriminator, LPIPS, an image of the label colours."""
_DDCONFIG = {
    "ch": "ch", "ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks", "attn_resolutions": "attn_resolutions",
    "z_channels": "z_channels", "resolution": "resolution",
}  # fmt: skip


def read_project_config(path: Path, part: str) -> ModelConfig:
    """Return the architecture in a project's yaml; `part` is "first_stage_model.", "cond_stage_model." or "".

    Raises:
        InputError: A field is missing, or the network is not supported.
    """
    import yaml

    try:
        project = yaml.safe_load(path.read_text())
        params = project["model"]["params"]
        if part:
            params = params[part.removesuffix("_model.") + "_config"]["params"]
        net = dict(params["ddconfig"])
        values = {ours: net[theirs] for ours, theirs in _DDCONFIG.items()}
        channels, outputs = int(net["in_channels"]), int(net["out_ch"])
        sizes: dict[str, Any] = {"embed_dim": int(params["embed_dim"]), "codebook_size": int(params["n_embed"])}
        sizes["norm_groups"] = released_groups(int(values["ch"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no VQGAN project yaml (model.params.ddconfig …): {error!r}") from error
    if net.get("double_z", False) or channels != outputs:
        raise InputError(
            f"{path}: double_z or in_channels ≠ out_ch is not a VQGAN that can be imported "
            f"(double_z {net.get('double_z')}, in_channels {channels}, out_ch {outputs})"
        )
    gumbel = "gumbel" in str(project["model"].get("target", "")).lower() or "kl_weight" in params
    modality: dict[str, Any] = {3: {}, 1: {"modality": "depth"}}.get(
        channels, {"modality": "segmentation", "n_labels": channels}
    )
    values |= {name: tuple(values[name]) for name in ("ch_mult", "attn_resolutions")}
    return ModelConfig(**values, **sizes, **modality, quantizer="gumbel" if gumbel else "vq")


def convert(released: Weights, project: Path | None = None, part: str = "") -> Released:
    """Return the tokenizer of a CompVis checkpoint; without its yaml, pictures of 256×256 pixels are assumed.

    Raises:
        InputError: As `read_project_config`; or a tensor is missing.
    """
    weights, dropped = without(released, DROPPED)
    config = read_project_config(project, part) if project else _sizes(weights)
    # Image tokenizers were trained with LPIPS over VGG; for masks and depth the loss is unknown.
    loss = LossConfig(swap_beta=True) if config.modality == "rgb" else None
    return Released(config, weights, dropped, loss)


def _sizes(weights: Weights) -> ModelConfig:
    gumbel = "quantize.proj.weight" in weights
    codes = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    codebook_size, embed_dim = (size(weights, codes, axis) for axis in (0, 1))
    return ModelConfig(
        **network_sizes(weights),
        quantizer="gumbel" if gumbel else "vq",
        codebook_size=codebook_size,
        embed_dim=embed_dim,
    )
