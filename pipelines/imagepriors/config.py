"""Settings of the evaluation commands. Imports no torch, so that the CLI can build its flags in milliseconds."""

from dataclasses import dataclass
from typing import Literal

from vqgan.config import Device


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Which figures to compute, over which images."""

    split: Literal["train", "val"] = "val"
    """Split to reconstruct."""
    limit: int = 0
    """Images at most, evenly over the split; 0: all."""
    lpips: Literal["none", "vgg", "alex", "squeeze"] = "none"
    """Trunk of LPIPS; its weights come from torchvision's cache, or from `lpips_trunk`."""
    lpips_trunk: str = ""
    """Path of the LPIPS trunk's torchvision weights, for machines without internet."""
    frechet: Literal["none", "efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Features of the Fréchet distance: inception gives rFID; efficientnet-lite0 needs no download and is not FID."""
    inception: str = ""
    """Path of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; empty: its own cache or download."""
    device: Device = "auto"
    """Device; auto takes a GPU where there is one."""
