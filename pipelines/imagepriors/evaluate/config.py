"""Settings of evaluation. Imports no torch, so that the command line builds its flags in milliseconds."""

from dataclasses import dataclass
from typing import Literal

from runkit.configs import check_fields
from runkit.devices import Device
from vqgan.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Metrics of a tokenizer and the images that they are computed over."""

    split: Literal["train", "val"] = "val"
    """Split to reconstruct."""
    limit: int = 0
    """Maximum number of images, evenly spread over the split; 0: all."""
    lpips: Literal["none", "vgg", "alex", "squeeze"] = "none"
    """Trunk of LPIPS, whose weights come from torchvision's cache, or from `lpips_trunk`."""
    lpips_trunk: str = ""
    """Path of the LPIPS trunk's torchvision weights, for machines without internet."""
    frechet: Literal["none", "efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Features of the Fréchet distance: inception gives rFID; efficientnet-lite0 needs no download and is not FID."""
    inception: str = ""
    """Path of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; empty: its own cache or download."""
    device: Device = "auto"
    """Device; auto takes a GPU if one is available."""

    def __post_init__(self) -> None:
        """Check all fields."""
        check_fields(self, InputError)
        if self.limit < 0:
            raise InputError(f"limit is {self.limit}: choose 0, for all images, or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatePriorConfig:
    """Metrics of a prior and the number of samples that they are computed over."""

    n: int = 1000
    """Number of samples. Classes take turns; other conditions come from validation rows, evenly spread."""
    features: Literal["none", "efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Features of Fréchet distance, precision and recall: inception gives FID and IS; efficientnet-lite0 needs no
    download and is not FID."""
    inception: str = ""
    """Path of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; empty: its own cache or download."""
    reference: Literal["train", "val"] = "train"
    """Split of the pictures to compare samples with."""
    reference_limit: int = 50_000
    """Maximum number of these pictures, evenly spread over the split; 0: all. They are held in memory."""
    reader_steps: int = 2000
    """Training steps, of 8 pictures each, of the network that predicts conditions from pictures."""
    batch_size: int = 32
    """Sequences per batch while the likelihood is computed."""

    def __post_init__(self) -> None:
        """Check all fields."""
        check_fields(self, InputError)
        if self.n > 1_000_000:
            raise InputError(f"n is {self.n}: choose at most 1,000,000 samples; they are held in memory")
        for name in ("n", "reader_steps", "batch_size"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} is {getattr(self, name)}: choose 2 or more")
        if self.batch_size > 65_536:
            raise InputError(f"batch_size is {self.batch_size}: choose at most 65,536")
        if self.reference_limit < 0:
            raise InputError(f"reference_limit is {self.reference_limit}: choose 0, for all pictures, or more")
