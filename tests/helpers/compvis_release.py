"""A tiny transformer as CompVis published theirs."""

import torch
import yaml

from vqgan.config import ModelConfig
from vqgan.model import VQGAN

DDCONFIG = {
    "double_z": False, "z_channels": 16, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
FIRST_STAGE = {"params": {"embed_dim": 16, "n_embed": 32, "ddconfig": DDCONFIG}}
TRANSFORMER = {"vocab_size": 32, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 16}
LABELS = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 6}}
ZCURVE = "taming.modules.transformer.permuter.ZCurve"


def write_release(folder, permutation, **params):
    """Write last.ckpt and project.yaml as Net2NetTransformer has them."""
    torch.manual_seed(0)
    tokenizer = VQGAN(
        ModelConfig(
            resolution=16, ch=128, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=16,
            embed_dim=16, codebook_size=32,
        )
    )  # fmt: skip
    width = TRANSFORMER["n_embd"]
    shapes = {"tok_emb.weight": (32, width), "pos_emb": (1, 64, width), "head.weight": (32, width)}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    for block in ("blocks.0", "blocks.1"):
        for name in ("attn.key", "attn.query", "attn.value", "attn.proj"):
            shapes |= {f"{block}.{name}.weight": (width, width), f"{block}.{name}.bias": (width,)}
        shapes |= {f"{block}.mlp.0.weight": (64, width), f"{block}.mlp.0.bias": (64,)}
        shapes |= {f"{block}.mlp.2.weight": (width, 64), f"{block}.mlp.2.bias": (width,)}
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    state = {f"first_stage_model.{name}": value for name, value in tokenizer.state_dict().items()}
    state |= {f"transformer.{name}": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    state |= {"permuter.forward_shuffle_idx": torch.from_numpy(permutation.copy())}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    params = {"transformer_config": {"params": TRANSFORMER}, "first_stage_config": FIRST_STAGE, **params}
    (folder / "project.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    return state
