"""The rivals, made to run: stand-ins for what has left their dependencies since, and nothing else changed."""

import importlib
import sys
import types
from typing import Any

import torch

from vqgan.errors import InputError

F16 = {
    "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
"""Taming's config of the published f16 VQGAN."""


def _stand_in(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def taming() -> Any:
    """The module `taming.models.vqgan` of taming-transformers, as published.

    Lightning is replaced by a bare module, the config loader by one that makes no loss, and LPIPS keeps random weights,
    which changes no time.

    Raises:
        InputError: the package is not installed.
    """

    class LightningModule(torch.nn.Module):
        global_step = 1

        def log(self, *_: Any, **__: Any) -> None:
            pass

        log_dict = log

    try:
        importlib.import_module("taming")
        importlib.import_module("einops")
    except ImportError as error:
        raise InputError(
            f"{error}: pip install einops, and pip install --no-deps taming-transformers-rom1504==0.0.6"
        ) from error
    _stand_in("pytorch_lightning", LightningModule=LightningModule)
    _stand_in("taming.main", instantiate_from_config=lambda _: torch.nn.Identity())
    return importlib.import_module("taming.models.vqgan")


def taming_loss(**settings: Any) -> Any:
    """Its VQLPIPSWithDiscriminator with a randomly initialised LPIPS trunk, since the weights need a download."""
    import torchvision

    lpips = importlib.import_module("taming.modules.losses.lpips")
    losses = importlib.import_module("taming.modules.losses.vqperceptual")
    published, load = torchvision.models.vgg16, lpips.LPIPS.load_from_pretrained
    torchvision.models.vgg16 = lambda pretrained: published(weights=None)
    lpips.LPIPS.load_from_pretrained = lambda self: None
    try:
        return losses.VQLPIPSWithDiscriminator(**settings)
    finally:
        torchvision.models.vgg16, lpips.LPIPS.load_from_pretrained = published, load


def mingpt() -> Any:
    """The module `taming.modules.transformer.mingpt`, as published.

    It wants a filter that transformers has dropped since; the stand-in does what that did for top-k alone.

    Raises:
        InputError: a package is not installed.
    """
    try:
        transformers = importlib.import_module("transformers")
        importlib.import_module("taming")
    except ImportError as error:
        raise InputError(
            f"{error}: pip install transformers, and pip install --no-deps taming-transformers-rom1504==0.0.6"
        ) from error

    def top_k_top_p_filtering(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
        assert top_p == 1.0
        logits[logits < torch.topk(logits, top_k)[0][..., -1, None]] = -float("inf")
        return logits

    transformers.top_k_top_p_filtering = top_k_top_p_filtering  # type: ignore[attr-defined]
    return importlib.import_module("taming.modules.transformer.mingpt")


def gpt2_from_mingpt(peer: Any, n_head: int) -> Any:
    """Hugging Face's GPT2LMHeadModel with minGPT's weights, in eval mode."""
    transformers = importlib.import_module("transformers")
    state, renamed = peer.state_dict(), {}
    names = {"ln1": "ln_1", "ln2": "ln_2", "attn.proj": "attn.c_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}
    n_layer, width = len(peer.blocks), peer.tok_emb.weight.shape[1]
    for layer in range(n_layer):
        theirs, ours = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{theirs}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            values = {"attn.c_attn": torch.cat(parts)}
            values |= {new: state[f"{theirs}.{old}.{kind}"] for old, new in names.items()}
            for name, value in values.items():  # their Conv1D keeps matrices transposed
                renamed[f"{ours}.{name}.{kind}"] = value.T if value.ndim == 2 else value
    renamed |= {
        "transformer.wte.weight": state["tok_emb.weight"],
        "transformer.wpe.weight": state["pos_emb"][0],
        "transformer.ln_f.weight": state["ln_f.weight"],
        "transformer.ln_f.bias": state["ln_f.bias"],
        "lm_head.weight": state["head.weight"],
    }
    config = transformers.GPT2Config(
        vocab_size=len(state["tok_emb.weight"]),
        n_positions=state["pos_emb"].shape[1],
        n_layer=n_layer,
        n_head=n_head,
        n_embd=width,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.load_state_dict(renamed)
    return model
