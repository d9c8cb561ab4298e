"""Import of released CompVis VQGAN checkpoints (taming-transformers), such as f16/1024, f16/16384, Gumbel f8/8192.

The files are Lightning pickles that name classes of old packages; nothing in them is executed.
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
"""Prefixes of keys that a tokenizer does not have: the discriminator, LPIPS, an image of the label colours."""
_DDCONFIG = {
    "ch": "ch", "ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks", "attn_resolutions": "attn_resolutions",
    "z_channels": "z_channels", "resolution": "resolution",
}  # fmt: skip


def load_pickled_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a released checkpoint; raises InputError, as :func:`runkit.weights.load_weights`."""
    return load_weights(path, InputError)


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
    """Convert a released checkpoint and its yaml to a tokenizer; return what was used and dropped.

    Args:
        checkpoint: The `.ckpt` file.
        project: The project's `.yaml`.
        out: Folder to write.
        part: Tokenizer of a transformer's checkpoint, "first_stage" or "cond_stage". None: its first stage, or a whole
            VQGAN checkpoint.

    Raises:
        InputError: As the readers; or a key is missing, unknown or of another shape.
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
    # Image tokenizers were trained with LPIPS over VGG; for masks and depth the loss is unknown.
    loss = LossConfig(swap_beta=True) if config.modality == "rgb" else None
    publish_model(out, config, model, "import-tokenizer", loss)
    return {"tensors": len(kept), "dropped": dropped, "other_parts": len(state) - len(mine), "config": config}
