"""Settings of evaluation. Imports no torch, so that the command line builds its flags in milliseconds."""

from dataclasses import dataclass
from typing import Literal

from runkit.configs import check_fields
from runkit.devices import Device
from vqgan.errors import InputError

Resize = Literal["training", "adm", "titok", "open-magvit2", "taming"]
"""How an image becomes a square picture. training: as in the training of the tokenizer (Pillow bicubic, any geometry).
The others resize the shorter side and crop the centre, each as a published evaluation does."""
SPLITS = ("train", "val")
"""References that are no path."""


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
    resize: Resize = "training"
    """How images become the pictures that are reconstructed. LlamaGen's and ADM's: adm; TiTok's and RAR's: titok;
    Open-MAGVIT2's and IBQ's: open-magvit2; taming-transformers': taming."""
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
    samples: str = ""
    """Path of pictures to judge in place of new samples, which n does not limit: an .npz with uint8 [N, H, W, 3] under
    arr_0, or a folder or tar of pictures of one size."""
    reference: str = ""
    """Pictures to compare samples with: train or val, a split of the data or, without data, of the decoded codes; or
    the path of an .npz as ADM's evaluator reads it (pictures under arr_0, statistics under mu, sigma, mu_s and
    sigma_s), or of a folder or tar of pictures. Empty: train with data, val without."""
    reference_limit: int = 50_000
    """Maximum number of pictures of the split, evenly spread over it; 0: all."""
    resize: Resize = "training"
    """How images of the split, the folder or the tar become pictures of the samples' size: see EvaluateConfig. Decoded
    codes and pictures of an .npz are not resized: use training."""
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
