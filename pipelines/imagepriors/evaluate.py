"""Reconstruction metrics of a tokenizer over a validation set, each by its reference implementation.

PSNR, usage and mIoU are the trainer's own; SSIM is torchmetrics'; LPIPS is the lpips package's; the Fréchet distance is
torchmetrics', over torch-fidelity's Inception (then it is rFID) or over EfficientNet-Lite0 (then it is not FID and is
never called so).
"""

import contextlib
import functools
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from imagepriors.config import EvaluateConfig
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish_file
from runkit.jsonfiles import finite_or_none
from runkit.weights import download_weights, load_weights
from vqgan.datasets import Split, open_splits, resolve, sources_of, spread
from vqgan.errors import InputError
from vqgan.losses import IMAGENET_MEAN, IMAGENET_STD, LpipsLoss, lite0
from vqgan.metrics import TokenizerMetrics
from vqgan.tokenizer import Tokenizer, pick_device

log = logging.getLogger(__name__)
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
SHOWN = {"crop": "centre squares", "pad": "whole pictures, padded", "stretch": "whole pictures, stretched"}
"""A tokenizer's geometry in words."""
_BATCH = 32
_THREADS = 2


class Lite0Features(nn.Module):
    """Pooled EfficientNet-Lite0 features: uint8 [B, 3, H, W] → [B, 1280]; pictures are resized to 224 first."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = lite0()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.num_features = 1280

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of pictures in 0 … 255."""
        x = F.interpolate(x_BCHW.float() / 255, 224, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        features: Tensor = self.net.extract_features((x - self.mean) / self.std).mean((2, 3))
        return features

    def classify(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, 1000] of ImageNet's classes, in the order of their synsets."""
        logits: Tensor = self.net._fc(self(x_BCHW))
        return logits


@functools.cache
def lite0_features() -> str:
    """Make :class:`Lite0Features` known to torch-fidelity; returns the name that it has there."""
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
    """A copy of the weights of torch-fidelity's Inception, of `path` or of its cached or downloaded file.

    torch-fidelity executes what the pickle says that it is given: it gets a copy that was written here, never the file.

    Raises:
        InputError: the file is not there and cannot be downloaded, or holds no plain weights.
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
        InputError: the Inception weights are not where they should be and cannot be downloaded.
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


def evaluate_tokenizer(
    tokenizer_folder: Path, dataset: str, data: Path, out: Path, config: EvaluateConfig
) -> dict[str, Any]:
    """Reconstruct a split and write the figures, with what they were computed on, to the JSON file `out`.

    Raises:
        InputError: no tokenizer or data there, or weights that are missing.
    """
    splits = open_splits(dataset, data)
    check_apart(out, data=sources_of(splits, data))
    check_publish(out.parent, [out.name], "evaluate-tokenizer")
    device = pick_device(config.device)
    tokenizer = Tokenizer.load(tokenizer_folder, device=config.device)
    split = splits[config.split]
    net = tokenizer.config
    if net.modality != "rgb":
        split = split.having(net.modality)
    wanted = min(len(split), config.limit or len(split))
    rgb = net.channels == 3
    metrics = TokenizerMetrics(net.modality, net.codebook_size, net.n_labels)
    frechet = frechet_distance(config.frechet, config.inception, device) if rgb else None
    lpips = LpipsLoss(config.lpips, config.lpips_trunk).to(device) if rgb and config.lpips != "none" else None
    sums = {"ssim": 0.0, "lpips": 0.0}
    count = 0
    for target, output, codes in _reconstructions(tokenizer, split, spread(len(split), wanted)):
        count += len(target)
        metrics.add(output, target, codes)
        if net.modality == "segmentation":
            continue
        fake_BCHW, real_BCHW = _to_tensor(output, device), _to_tensor(target, device)
        sums["ssim"] += len(output) * _ssim(fake_BCHW, real_BCHW, 1.0 if net.modality == "depth" else 255.0)
        if lpips is not None:
            with torch.inference_mode():
                sums["lpips"] += len(output) * float(lpips(fake_BCHW / 127.5 - 1, real_BCHW / 127.5 - 1))
        if frechet is not None:
            frechet.update(fake_BCHW.to(torch.uint8), real=False)
            frechet.update(real_BCHW.to(torch.uint8), real=True)
    if count == 0:
        raise InputError(f"none of {wanted} images of split {config.split!r} can be read: run `imagepriors inspect`")
    figures = {name.removeprefix("val_"): value for name, value in metrics.result().items() if name != "val_loss"}
    if net.modality != "segmentation":
        figures["ssim"] = sums["ssim"] / count
    if lpips is not None:
        figures[f"lpips_{config.lpips}"] = sums["lpips"] / count
    if frechet is not None and count > 1:
        name = "rfid" if config.frechet == "inception" else "frechet_efficientnet_lite0"
        figures[name] = float(frechet.compute())
    report = {
        "figures": figures,
        "images": count,
        "unreadable": wanted - count,
        "split": config.split,
        "dataset": resolve(dataset, data),
        "source_sha256": split.source_hash(),
        "geometry": net.geometry,
        "resize": f"{SHOWN[net.geometry]}, Pillow bicubic to {net.resolution}×{net.resolution} (masks nearest, depth "
        "bilinear)",
        "arithmetic": "float32",
        "tokenizer": tokenizer.fingerprint,
        "grid": [net.grid, net.grid],
        "codebook_size": net.codebook_size,
    }
    publish_file(out, pretty_json(finite_or_none(report)), "evaluate-tokenizer")
    return report


def _reconstructions(tokenizer: Tokenizer, split: Split, indices: list[int]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Batches of (original, reconstruction, codes); pictures that cannot be read are left out with a warning."""
    net = tokenizer.config
    modality = net.modality
    wanted = () if modality == "rgb" else (modality,)

    def read(index: int) -> npt.NDArray[Any] | None:
        try:
            sample = split.read(index, net.resolution, conditions=wanted, geometry=net.geometry)
            picture = sample.picture(modality)
            if modality == "segmentation" and picture.max() >= net.n_labels:
                raise InputError(f"{split.keys[index]}: label {picture.max()}, and the tokenizer has {net.n_labels}")
            return picture
        except InputError as error:
            log.warning("left out: %s", error)
            return None

    bar = tqdm(total=len(indices), desc="evaluate-tokenizer", unit="image", disable=None)
    with ThreadPoolExecutor(_THREADS) as pool, bar:
        for start in range(0, len(indices), _BATCH):
            pictures = [picture for picture in pool.map(read, indices[start : start + _BATCH]) if picture is not None]
            bar.update(len(indices[start : start + _BATCH]))
            if pictures:
                codes = tokenizer.encode(pictures)
                yield np.stack(pictures), tokenizer.decode(codes), codes


def _to_tensor(pictures: npt.NDArray[Any], device: torch.device) -> Tensor:
    """[B, H, W, 3] or [B, H, W] → float32 [B, C, H, W]."""
    tensor = torch.from_numpy(pictures).to(device).float()
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor.unsqueeze(1)


def _ssim(output: Tensor, target: Tensor, peak: float) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    similarity = structural_similarity_index_measure(output, target, data_range=peak)
    assert isinstance(similarity, Tensor)
    return float(similarity)


def as_table(report: dict[str, Any]) -> str:
    """The figures as aligned lines under a heading that says what they are of."""
    lines = [f"{report['images']} {report['split']} images of {report['dataset']}, {report['resize']}"]
    return "\n".join(lines + [f"  {name:28} {value:.4f}" for name, value in report["figures"].items()])
