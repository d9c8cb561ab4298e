"""Pretrained networks that metrics are computed with: EfficientNet-Lite0 and Inception."""

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runkit.files import sha256_of
from runkit.weights import download_weights, load_weights
from vqgan.errors import InputError
from vqgan.losses import lite0, lite0_file, lite0_input

LITE0 = "frechet_efficientnet_lite0"
"""Name of the Fréchet distance over EfficientNet-Lite0, which is not FID."""
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's port of the TensorFlow graph classify_image_graph_def.pb, which published FIDs are computed over.
pytorch-fid publishes the same file as pt_inception-2015-12-05-6726825d.pth."""
PUBLISHED = "6726825d"
"""First digits of the sha256 of this file, which are a part of its name; other weights give figures of other names."""
_SPATIAL = 7
"""Channels of ADM's spatial features."""
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


class InceptionFeatures(nn.Module):
    """Features of torch-fidelity's Inception, as ADM's evaluator takes them from the TensorFlow graph.

    Args:
        weights: Path of its weights, which torch-fidelity unpickles: a copy by :func:`fitting_inception`.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = ["2048", "logits_unbiased"]
        self.net = FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=weights)
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :_SPATIAL]

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Features of pictures uint8 [B, 3, H, W]; they are resized to 299 as by TensorFlow 1.

        Returns:
            pooled: pool_3, [B, 2048].
            spatial: The first 7 channels of mixed_6/conv, [B, 17 · 17 · 7] in TensorFlow's order, channels last.
            logits: Logits without the bias, [B, 1008].
        """
        pooled, logits = self.net(x_BCHW)
        return {"pooled": pooled, "spatial": self._spatial.permute(0, 2, 3, 1).flatten(1), "logits": logits}


@dataclass(frozen=True, slots=True)
class FeatureNetwork:
    """A network that judges pictures, and what identifies it."""

    net: nn.Module
    """A module from uint8 [B, 3, H, W] to features by name."""
    name: str
    """Name of the network."""
    weights_sha256: str
    """sha256 of the file of its weights."""

    @property
    def label(self) -> str:
        """The network and its weights, for messages."""
        return f"{self.name} with the weights {self.weights_sha256[:8]}…"

    @property
    def is_published(self) -> bool:
        """Whether its figures are FID, sFID and IS."""
        return self.name == "inception" and self.weights_sha256.startswith(PUBLISHED)

    @property
    def figures(self) -> Mapping[str, str]:
        """Features → name of the figure that is computed over them."""
        return figure_names(self.name, self.weights_sha256)


def figure_names(network: str, weights_sha256: str) -> dict[str, str]:
    """Features → name of the figure over them. Only over the published weights it is FID, sFID or IS."""
    if network != "inception":
        return {"pooled": LITE0}
    if weights_sha256.startswith(PUBLISHED):
        return {"pooled": "fid", "spatial": "sfid", "logits": "inception_score"}
    other = f"inception_{weights_sha256[:8]}"
    return {"pooled": f"frechet_{other}", "spatial": f"frechet_{other}_spatial", "logits": f"score_{other}"}


def load_network(features: str, weights: str, device: torch.device) -> FeatureNetwork | None:
    """Load the network of the named features; None for "none".

    Args:
        features: "none", "efficientnet-lite0" or "inception".
        weights: Path of the Inception weights; empty: torch-fidelity's cached or downloaded file.
        device: Device of the network.

    Raises:
        InputError: the Inception weights do not exist and cannot be downloaded, or do not fit.
    """
    if features == "none":
        return None
    if features == "efficientnet-lite0":
        return FeatureNetwork(Lite0Features().eval().to(device), features, weights_sha256(features, ""))
    with fitting_inception(weights) as copy:
        return FeatureNetwork(InceptionFeatures(copy).to(device), features, weights_sha256(features, weights))


def inception_path(path: str) -> Path:
    """The file of the Inception weights: `path`, or torch-fidelity's cached or downloaded file.

    Raises:
        InputError: it does not exist and cannot be downloaded.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if path:
        if not Path(path).is_file():
            raise InputError(f"inception: {path} does not exist: it should be torch-fidelity's {INCEPTION_FILE}")
        return Path(path)
    otherwise = "name its path in inception, or choose the features of efficientnet-lite0"
    return download_weights(URL_INCEPTION_V3, sha256=PUBLISHED, otherwise=otherwise, error=InputError)


@contextlib.contextmanager
def fitting_inception(path: str) -> Iterator[str]:
    """A safe copy of the Inception weights; weights that do not fit a network built in the block are refused.

    torch-fidelity unpickles the file that it is given without restrictions, so it never gets the original.

    Raises:
        InputError: the file does not exist and cannot be downloaded, does not hold plain weights, or does not fit.
    """
    weights = load_weights(inception_path(path), InputError)
    with tempfile.TemporaryDirectory(prefix="inception-") as folder:
        copy = Path(folder) / INCEPTION_FILE
        torch.save(weights, copy)
        try:
            yield str(copy)
        except RuntimeError as error:  # keys or shapes of another network
            raise InputError(
                f"inception: {path or 'the cached file'} does not fit ({str(error).splitlines()[0]}): it should be "
                f"torch-fidelity's {INCEPTION_FILE}"
            ) from error


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
    with fitting_inception(weights) as copy:
        return FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=copy).to(device)


def check_features(features: str, weights: str) -> None:
    """Load the weights of the named features if they may be missing or wrong.

    Raises:
        InputError: they are.
    """
    if features == "inception":
        frechet_distance("inception", weights, torch.device("cpu"))


def weights_sha256(features: str, weights: str) -> str:
    """sha256 of the file of a network's weights; empty for "none"."""
    if features == "none":
        return ""
    return sha256_of(inception_path(weights) if features == "inception" else lite0_file())


def network_notes(figures: Iterable[str], training_loss: str | None) -> dict[str, str]:
    """Figure → the network that computes it, and whether the tokenizer was trained against this network.

    Args:
        figures: Names of figures; those that no network computes are omitted. Precision and recall are computed by the
            network of the distance beside them.
        training_loss: Perceptual network in the tokenizer's training loss, or "none"; None if it is unknown.
    """
    loss = f"the tokenizer's perceptual training loss is {training_loss or 'unknown'}"
    biased = ", the same network, which makes the figure too optimistic"
    networks = {name: _network_of(name) for name in figures}
    judge = next(filter(None, networks.values()), "")
    networks |= {name: judge for name in ("precision", "recall") if name in networks}
    return {
        name: f"computed by {network}; {loss}{biased * (network == training_loss)}"
        for name, network in networks.items()
        if network
    }


def _network_of(figure: str) -> str:
    """The network that computes a figure; empty if there is none. Figures of real pictures ("…, real") are omitted."""
    if figure in ("rfid", *figure_names("inception", PUBLISHED).values()):
        return "inception"
    if found := re.fullmatch(r"(?:frechet|score)_inception_([0-9a-f]{8})(?:_spatial)?", figure):
        return f"inception with the weights {found[1]}…, which are not the published ones"
    return "efficientnet-lite0" if figure == LITE0 else figure.replace("_", "-") if figure.startswith("lpips_") else ""


def figure_lines(heading: str, report: dict[str, Any]) -> str:
    """The figures of a report as aligned lines under a heading, and the notes on their networks and on comparisons."""
    lines = [heading, *(f"  {name:36} {value:.4f}" for name, value in report["figures"].items())]
    notes = (f"{name}: {note}" for name, note in report["networks"].items())
    return "\n".join([*lines, *(f"  {note}" for note in (*notes, *report["notes"]))])


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
