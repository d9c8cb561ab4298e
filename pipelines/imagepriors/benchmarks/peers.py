"""The rivals, made to run: stand-ins for what has left their dependencies since, and nothing else changed."""

import importlib
import sys
import types
from typing import Any

import torch

from vqgan.errors import InputError


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
