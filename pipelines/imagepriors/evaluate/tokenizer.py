"""Reconstruction metrics of a tokenizer over a validation set, each by its reference implementation.

PSNR, usage and mIoU are the trainer's own; SSIM is torchmetrics'; LPIPS is the lpips package's; the Fréchet distance is
torchmetrics', over torch-fidelity's Inception (then it is rFID) or over EfficientNet-Lite0 (then it is not FID and is
never called so).

Beside a Fréchet distance stands the same distance of as many other real pictures to the same originals ("…, real").
Reconstructions are paired with their originals, so a perfect tokenizer has 0, not that: it is the scale on which to
read the distance, namely what a change of all pictures for others of their kind amounts to.
"""

import contextlib
import functools
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagepriors.evaluate.config import EvaluateConfig
from runkit.devices import pick_device
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish_file
from runkit.jsonfiles import finite_or_none
from runkit.progress import tqdm
from runkit.weights import download_weights, load_weights
from vqgan.checkpoint import trained_against
from vqgan.data import Split, open_splits, resolve, sources_of, spread
from vqgan.errors import InputError
from vqgan.losses import LpipsLoss, lite0, lite0_input
from vqgan.metrics import TokenizerMetrics
from vqgan.tokenizer import Tokenizer

log = logging.getLogger(__name__)
LITE0 = "frechet_efficientnet_lite0"
"""Name of the Fréchet distance over EfficientNet-Lite0, which is not FID."""
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
SHOWN = {"crop": "centre squares", "pad": "whole pictures, padded", "stretch": "whole pictures, stretched"}
"""A tokenizer's geometry in words."""
_BATCH = 32
_THREADS = 2


class Lite0Features(nn.Module):
    """Pooled EfficientNet-Lite0 features: uint8 [B, 3, H, W] → [B, 1280]; pictures are resized to 224 first."""

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
    tokenizer = Tokenizer.load(tokenizer_folder, device=config.device)
    net = tokenizer.config
    split = splits[config.split] if net.modality == "rgb" else splits[config.split].having(net.modality)
    indices = spread(len(split), config.limit or len(split))
    others = [_having(part, net.modality) for part in unused({**splits, config.split: split}, config.split, indices)]
    figures, count = _figures(tokenizer, split, indices, others, config)
    report = {
        "figures": figures,
        "judges": judges([*figures], trained_against(tokenizer_folder)),
        "images": count,
        "unreadable": len(indices) - count,
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


def _figures(
    tokenizer: Tokenizer, split: Split, indices: list[int], others: Sequence[Split], config: EvaluateConfig
) -> tuple[dict[str, float], int]:
    """Figures of the reconstructions of these pictures, and how many of them could be read."""
    net, device = tokenizer.config, pick_device(config.device, InputError)
    rgb = net.channels == 3
    metrics = TokenizerMetrics(net.modality, net.codebook_size, net.n_labels)
    frechet = frechet_distance(config.frechet, config.inception, device) if rgb else None
    lpips = LpipsLoss(config.lpips, config.lpips_trunk).to(device) if rgb and config.lpips != "none" else None
    sums = {"ssim": 0.0, "lpips": 0.0}
    count = 0
    for target, output, codes in _reconstructions(tokenizer, split, indices):
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
        raise InputError(
            f"none of {len(indices)} images of split {config.split!r} can be read: run `imagepriors inspect`"
        )
    figures = {name.removeprefix("val_"): value for name, value in metrics.result().items() if name != "val_loss"}
    if net.modality != "segmentation":
        figures["ssim"] = sums["ssim"] / count
    if lpips is not None:
        figures[f"lpips_{config.lpips}"] = sums["lpips"] / count
    if frechet is not None and count > 1:
        name = "rfid" if config.frechet == "inception" else LITE0
        figures[name] = float(frechet.compute())
        figures |= _floor(name, frechet, tokenizer, others, count)
    return figures, count


def _floor(name: str, frechet: Any, tokenizer: Tokenizer, others: Sequence[Split], count: int) -> dict[str, float]:
    """The distance of `count` other pictures to the originals that `frechet` has seen; nothing if there are fewer."""
    split = next((split for split in others if len(split) >= count), None)
    if split is None:
        return {}
    frechet.reset_real_features = False
    frechet.reset()
    for pictures in _batches(tokenizer, split, spread(len(split), count)):
        frechet.update(_to_tensor(np.stack(pictures), frechet.device).to(torch.uint8), real=False)
    return {f"{name}, real": float(frechet.compute())} if frechet.fake_features_num_samples > 1 else {}


def _having(split: Split, modality: str) -> Split:
    """The samples that can be shown in a modality, perhaps none."""
    return split.subset(i for i, item in enumerate(split.items) if modality == "rgb" or modality in item.conditions)


def unused(splits: Mapping[str, Split], name: str, used: Iterable[int]) -> list[Split]:
    """The pictures that are not among those used: the rest of the same split, and the other one."""
    taken = set(used)
    rest = splits[name].subset(index for index in range(len(splits[name])) if index not in taken)
    return [rest, splits["train" if name == "val" else "val"]]


def judges(figures: Iterable[str], against: str | None) -> dict[str, str]:
    """Figure → which network judges there, and whether the tokenizer was trained against it.

    Args:
        figures: Names of figures; those that no network computes are left out.
        against: The perceptual network in the tokenizer's training loss, or "none"; None where it is not known.
    """
    loss = "its training loss is not known" if against is None else f"its perceptual training loss is {against}"
    networks = {LITE0: "efficientnet-lite0", "rfid": "inception", "fid": "inception"}
    networks |= {f"lpips_{trunk}": f"lpips-{trunk}" for trunk in ("vgg", "alex", "squeeze")}
    return {
        name: f"{networks[name]} judges; the tokenizer: {loss}"
        + (", the same network, which flatters the figure" if networks[name] == against else "")
        for name in figures
        if name in networks
    }


def _reconstructions(tokenizer: Tokenizer, split: Split, indices: list[int]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Batches of (original, reconstruction, codes)."""
    for pictures in _batches(tokenizer, split, indices):
        codes = tokenizer.encode(pictures)
        yield np.stack(pictures), tokenizer.decode(codes), codes


def _batches(tokenizer: Tokenizer, split: Split, indices: list[int]) -> Iterator[list[npt.NDArray[Any]]]:
    """Pictures as the tokenizer takes them; those that cannot be read are left out with a warning."""
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
                yield pictures


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
    lines += [f"  {name:34} {value:.4f}" for name, value in report["figures"].items()]
    return "\n".join([*lines, *(f"  {name}: {judge}" for name, judge in report["judges"].items())])
