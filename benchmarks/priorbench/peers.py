"""Load the rivals; parts that newer versions of their dependencies lack are replaced, and nothing else is changed."""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vqgan.config import ModelConfig
from vqgan.errors import InputError

_PINNED = Path(__file__).parent / "rivals.txt"
"""Packages whose pins contradict those of this project, for `pip install --no-deps`."""
_LLAMAGEN = Path("tokenizer/tokenizer_image/vq_model.py")
_PACKAGES = {"taming": "taming-transformers-rom1504", "streaming": "mosaicml-streaming"}


def packages(modules: Iterable[str]) -> list[str]:
    """Names of the packages of these modules."""
    return [_PACKAGES.get(module, module) for module in modules]


def installed(*modules: str) -> bool:
    """Whether all of these modules are installed."""
    return all(importlib.util.find_spec(module) for module in modules)


def require(*modules: str) -> None:
    """Check that rivals are installed before anything is measured.

    Raises:
        InputError: a module is missing.
    """
    missing = packages(name for name in modules if not installed(name))
    if missing:
        raise InputError(
            f"rivals are missing ({', '.join(missing)}): `make bench` installs them, as do these two: "
            f"pip install -e '.[bench]'; pip install --no-deps -r {_PINNED}"
        )


def _stand_in(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def taming() -> Any:
    """The module `taming.models.vqgan` of taming-transformers, as published.

    Lightning is replaced by a module that keeps the last logged values, and the config loader by one without a loss.

    Raises:
        InputError: the package is not installed.
    """

    class LightningModule(torch.nn.Module):
        global_step = 1

        def log(self, *_: Any, **__: Any) -> None:
            pass

        def log_dict(self, values: dict[str, Any], **_: Any) -> None:
            self.logged = values

    require("taming", "einops")
    _stand_in("pytorch_lightning", LightningModule=LightningModule)
    _stand_in("taming.main", instantiate_from_config=lambda _: torch.nn.Identity())
    return importlib.import_module("taming.models.vqgan")


def taming_vqgan(config: ModelConfig) -> Any:
    """taming's VQModel with a configuration of this project, without a loss, randomly initialised."""
    ddconfig = {
        "double_z": False, "z_channels": config.z_channels, "resolution": config.resolution,
        "in_channels": config.channels, "out_ch": config.channels, "ch": config.ch, "ch_mult": list(config.ch_mult),
        "num_res_blocks": config.num_res_blocks, "attn_resolutions": list(config.attn_resolutions), "dropout": 0.0,
    }  # fmt: skip
    return taming().VQModel(ddconfig, lossconfig={}, n_embed=config.codebook_size, embed_dim=config.embed_dim)


def llamagen_folder() -> Path | None:
    """The checkout of LlamaGen's repository that the environment variable LLAMAGEN names; None if it is unset.

    Raises:
        InputError: the folder has no tokenizer of LlamaGen.
    """
    folder = os.environ.get("LLAMAGEN", "")
    if folder and not (Path(folder) / _LLAMAGEN).is_file():
        raise InputError(f"LLAMAGEN is {folder}, which has no {_LLAMAGEN}: name a checkout of LlamaGen's repository")
    return Path(folder).resolve() if folder else None


def llamagen_vq16(checkpoint: Path | None = None) -> Any:
    """LlamaGen's VQ-16 as published, randomly initialised or with the weights of a checkpoint, in evaluation mode."""
    folder = llamagen_folder()
    assert folder is not None
    spec = importlib.util.spec_from_file_location("llamagen_vq_model", folder / _LLAMAGEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    model = module.VQ_models["VQ-16"]()
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])
    return model.eval()


def vgg_features() -> torch.nn.Module:
    """The convolutions of torchvision's VGG16 with its random initialisation."""
    vgg = importlib.import_module("torchvision.models.vgg")
    layers: torch.nn.Sequential = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):  # otherwise activations vanish, and denormal numbers are slow
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layers


def taming_loss(trunk: Path, **settings: Any) -> Any:
    """taming's VQLPIPSWithDiscriminator, with published linear layers of LPIPS and a trunk `features.*` from a file.

    The lpips package contains the file of linear layers that taming downloads (same MD5).
    """
    import lpips as package
    import torchvision

    lpips = importlib.import_module("taming.modules.losses.lpips")
    losses = importlib.import_module("taming.modules.losses.vqperceptual")
    published, load = torchvision.models.vgg16, lpips.LPIPS.load_from_pretrained
    assert package.__file__ is not None
    linear = torch.load(Path(package.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    features = vgg_features()
    weights = torch.load(trunk, map_location="cpu", weights_only=True)
    features.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    torchvision.models.vgg16 = lambda pretrained: types.SimpleNamespace(features=features)
    lpips.LPIPS.load_from_pretrained = lambda self: self.load_state_dict(linear, strict=False)
    try:
        return losses.VQLPIPSWithDiscriminator(**settings)
    finally:
        torchvision.models.vgg16, lpips.LPIPS.load_from_pretrained = published, load


def mingpt() -> Any:
    """The module `taming.modules.transformer.mingpt`, as published.

    It requires a filter that transformers has removed; the replacement supports top-k only.

    Raises:
        InputError: a package is not installed.
    """
    require("transformers", "taming")
    transformers = importlib.import_module("transformers")

    def top_k_top_p_filtering(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
        assert top_p == 1.0
        logits[logits < torch.topk(logits, top_k)[0][..., -1, None]] = -float("inf")
        return logits

    transformers.top_k_top_p_filtering = top_k_top_p_filtering  # type: ignore[attr-defined]
    return importlib.import_module("taming.modules.transformer.mingpt")


def gpt2(codes: int, length: int, *, layers: int, heads: int, width: int) -> Any:
    """Hugging Face's GPT2LMHeadModel as minGPT is (exact GELU, untied head), randomly initialised, in eval mode.

    Args:
        codes: Size of its vocabulary.
        length: Largest number of tokens.
        layers: Number of blocks.
        heads: Attention heads per block.
        width: Channels of the residual stream.
    """
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(
        vocab_size=codes,
        n_positions=length,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def gpt2_from_mingpt(peer: Any, n_head: int) -> Any:
    """Hugging Face's GPT2LMHeadModel with minGPT's weights, in eval mode."""
    state, renamed = peer.state_dict(), {}
    names = {"ln1": "ln_1", "ln2": "ln_2", "attn.proj": "attn.c_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}
    n_layer, width = len(peer.blocks), peer.tok_emb.weight.shape[1]
    for layer in range(n_layer):
        theirs, ours = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{theirs}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            values = {"attn.c_attn": torch.cat(parts)}
            values |= {new: state[f"{theirs}.{old}.{kind}"] for old, new in names.items()}
            for name, value in values.items():  # Conv1D stores transposed matrices
                renamed[f"{ours}.{name}.{kind}"] = value.T if value.ndim == 2 else value
    renamed |= {
        "transformer.wte.weight": state["tok_emb.weight"],
        "transformer.wpe.weight": state["pos_emb"][0],
        "transformer.ln_f.weight": state["ln_f.weight"],
        "transformer.ln_f.bias": state["ln_f.bias"],
        "lm_head.weight": state["head.weight"],
    }
    length = state["pos_emb"].shape[1]
    model = gpt2(len(state["tok_emb.weight"]), length, layers=n_layer, heads=n_head, width=width)
    model.load_state_dict(renamed)
    return model
