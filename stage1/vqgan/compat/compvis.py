"""Read released CompVis VQGAN checkpoints (taming-transformers): f16/1024, f16/16384, Gumbel f8/8192 and their kin.

The files are Lightning pickles that name classes of packages long gone; nothing in them is executed.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from runkit.folders import check_apart
from runkit.weights import load_weights
from vqgan.checkpoint import publish_model
from vqgan.config import LossConfig, ModelConfig
from vqgan.errors import InputError
from vqgan.model import VQGAN

_PARTS = ("first_stage_model.", "cond_stage_model.", "")
_DROPPED = ("loss.", "image_key", "colorize")
"""Beginnings of keys that have no place in a tokenizer: the discriminator, LPIPS, a picture of the label colours."""
_DDCONFIG = {
    "ch": "ch", "ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks", "attn_resolutions": "attn_resolutions",
    "z_channels": "z_channels", "resolution": "resolution",
}  # fmt: skip


def load_pickled_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a released checkpoint; errors as :func:`runkit.weights.load_weights`, as InputError."""
    return load_weights(path, InputError)


def read_project_config(path: Path, part: str) -> ModelConfig:
    """The architecture from a project's yaml; `part` is "first_stage_model.", "cond_stage_model." or "".

    Raises:
        InputError: the yaml lacks a field, or describes a network that this package does not have.
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
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no VQGAN project yaml (model.params.ddconfig …): {error!r}") from error
    if net.get("double_z", False) or channels != outputs or int(values["ch"]) < 128:
        raise InputError(
            f"{path}: double_z, in_channels ≠ out_ch, or ch below 128 is not a VQGAN that can be imported "
            f"(double_z {net.get('double_z')}, in_channels {channels}, out_ch {outputs}, ch {values['ch']})"
        )
    gumbel = "gumbel" in str(project["model"].get("target", "")).lower() or "kl_weight" in params
    modality: dict[str, Any] = {3: {}, 1: {"modality": "depth"}}.get(
        channels, {"modality": "segmentation", "n_labels": channels}
    )
    values |= {name: tuple(values[name]) for name in ("ch_mult", "attn_resolutions")}
    return ModelConfig(**values, **sizes, **modality, quantizer="gumbel" if gumbel else "vq")


def import_tokenizer(checkpoint: Path, project: Path, out: Path, part: str | None = None) -> dict[str, Any]:
    """Turn a released checkpoint and its yaml into a tokenizer folder; returns what was used and what was dropped.

    Args:
        checkpoint: The `.ckpt` file.
        project: The project's `.yaml`.
        out: Folder to write.
        part: For a transformer's checkpoint, which of its tokenizers: "first_stage" or "cond_stage"; None takes the
            first stage of a transformer's checkpoint and the whole of a VQGAN's.

    Raises:
        InputError: as the readers; or a key that is missing, left over or of another shape.
    """
    check_apart(out, checkpoint=checkpoint, project=project)
    state = load_pickled_weights(checkpoint)
    prefix = f"{part}_model." if part else next(p for p in _PARTS if any(key.startswith(p) for key in state))
    mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not mine:
        raise InputError(f"{checkpoint} has no {prefix}* weights: it holds {sorted({k.split('.')[0] for k in state})}")
    config = read_project_config(project, prefix)
    dropped = sorted(key for key in mine if key.startswith(_DROPPED))
    kept = {key: value.float() for key, value in mine.items() if not key.startswith(_DROPPED)}
    model = VQGAN(config)
    wanted = model.state_dict()
    wrong = [f"{key} is missing" for key in wanted.keys() - kept.keys()]
    wrong += [f"{key} has no place" for key in kept.keys() - wanted.keys()]
    wrong += [
        f"{key} is {tuple(kept[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in kept and kept[key].shape != value.shape
    ]
    if wrong:
        raise InputError(f"{checkpoint} does not fit {project} in {len(wrong)} keys: {'; '.join(sorted(wrong)[:3])} …")
    model.load_state_dict(kept)
    # Pictures were trained with LPIPS over VGG; of masks and depth the checkpoint does not tell.
    loss = LossConfig(swap_beta=True) if config.modality == "rgb" else None
    publish_model(out, config, model, "import-tokenizer", loss)
    return {"tensors": len(kept), "dropped": dropped, "other_parts": len(state) - len(mine), "config": config}
