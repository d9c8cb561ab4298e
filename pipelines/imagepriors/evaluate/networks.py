"""Pretrained networks that metrics are computed with: EfficientNet-Lite0 and Inception."""

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runkit.weights import download_weights, load_weights
from vqgan.errors import InputError
from vqgan.losses import lite0, lite0_input

LITE0 = "frechet_efficientnet_lite0"
"""Name of the Fréchet distance over EfficientNet-Lite0, which is not FID."""
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_BATCH = 64


class Lite0Features(nn.Module):
    """Pooled EfficientNet-Lite0 features [B, 1280] of uint8 [B, 3, H, W]; pictures are resized to 224 first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = lite0()
        self.num_features = 1280

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of pictures in 0 … 255."""
        pixels = F.interpolate(x_BCHW.float(), 224, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        features: Tensor = self.net.extract_features(lite0_input(pixels)).mean((2, 3))
        return features

    def classify(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, 1000] of the ImageNet classes, sorted by synset."""
        logits: Tensor = self.net._fc(self(x_BCHW))
        return logits


@functools.cache
def register_lite0() -> str:
    """Register :class:`Lite0Features` with torch-fidelity and return its name there."""
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Extractor(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)
            self.features = Lite0Features()

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(_: str) -> str:
            return "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, x_BCHW: Tensor) -> tuple[Tensor]:
            return (self.features(x_BCHW),)

    register_feature_extractor("efficientnet-lite0", Extractor)
    return "efficientnet-lite0"


@contextlib.contextmanager
def inception_weights(path: str) -> Iterator[str]:
    """A safe copy of the weights of torch-fidelity's Inception, from `path` or from its cached or downloaded file.

    torch-fidelity unpickles the file that it is given without restrictions, so it never gets the original.

    Raises:
        InputError: the file does not exist and cannot be downloaded, or does not hold plain weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if path and not Path(path).is_file():
        raise InputError(f"inception: {path} does not exist: it should be torch-fidelity's {INCEPTION_FILE}")
    otherwise = "name its path in inception, or choose the features of efficientnet-lite0"
    place = Path(path) if path else download_weights(URL_INCEPTION_V3, otherwise=otherwise, error=InputError)
    weights = load_weights(place, InputError)
    with tempfile.TemporaryDirectory(prefix="inception-") as folder:
        copy = Path(folder) / INCEPTION_FILE
        torch.save(weights, copy)
        yield str(copy)


def frechet_distance(features: str, weights: str, device: torch.device) -> Any:
    """A torchmetrics Fréchet distance over the named features, or None for "none".

    Raises:
        InputError: the Inception weights do not exist and cannot be downloaded, or do not fit.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if features == "none":
        return None
    if features == "efficientnet-lite0":
        return FrechetInceptionDistance(feature=Lite0Features().eval()).to(device)
    with inception_weights(weights) as copy:
        try:
            return FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=copy).to(device)
        except RuntimeError as error:  # keys or shapes of another network
            raise InputError(
                f"inception: {weights or 'the cached file'} does not fit ({str(error).splitlines()[0]}): it should be "
                f"torch-fidelity's {INCEPTION_FILE}"
            ) from error


def check_features(features: str, weights: str) -> None:
    """Load the weights of the named features if they may be missing or wrong.

    Raises:
        InputError: they are.
    """
    if features == "inception":
        frechet_distance("inception", weights, torch.device("cpu"))


def network_notes(figures: Iterable[str], training_loss: str | None) -> dict[str, str]:
    """Figure → the network that computes it, and whether the tokenizer was trained against this network.

    Args:
        figures: Names of figures; those that no network computes are omitted.
        training_loss: Perceptual network in the tokenizer's training loss, or "none"; None if it is unknown.
    """
    networks = {LITE0: "efficientnet-lite0", "rfid": "inception", "fid": "inception"}
    networks |= {f"lpips_{trunk}": f"lpips-{trunk}" for trunk in ("vgg", "alex", "squeeze")}
    loss = f"the tokenizer's perceptual training loss is {training_loss or 'unknown'}"
    biased = ", the same network, which makes the figure too optimistic"
    return {
        name: f"computed by {networks[name]}; {loss}{biased * (networks[name] == training_loss)}"
        for name in figures
        if name in networks
    }


def figure_lines(heading: str, report: dict[str, Any]) -> str:
    """The figures of a report as aligned lines under a heading, and the notes on their networks."""
    lines = [heading, *(f"  {name:36} {value:.4f}" for name, value in report["figures"].items())]
    return "\n".join([*lines, *(f"  {name}: {note}" for name, note in report["networks"].items())])


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether classes are the 1000 synsets of ImageNet in order, so that labels are the classifier's indices."""
    synsets = all(re.fullmatch(r"n\d{8}", name) for name in class_names)
    return len(class_names) == 1000 and synsets and list(class_names) == sorted(class_names)


@torch.inference_mode()
def imagenet_accuracy(pictures: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, float]:
    """Top-1 and top-5 accuracy of EfficientNet-Lite0 on pictures uint8 [N, H, W, 3]."""
    net = Lite0Features().eval()
    planes = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    best_N5 = torch.cat([net.classify(part).topk(5).indices for part in torch.split(planes, _BATCH)]).numpy()
    hits_N5 = best_N5 == np.asarray(labels).reshape(-1, 1)
    return {"imagenet top-1": float(hits_N5[:, 0].mean()), "imagenet top-5": float(hits_N5.any(1).mean())}
