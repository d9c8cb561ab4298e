"""Reconstruction metrics of a tokenizer over a validation set, each by its reference implementation.

PSNR, usage and mIoU are the trainer's own; SSIM is torchmetrics'; LPIPS is the lpips package's; the Fréchet distance is
torchmetrics', over torch-fidelity's Inception (rFID) or over EfficientNet-Lite0 (then it is never called FID).

A Fréchet distance is accompanied by that of as many other real pictures to the same originals ("…, real").
Reconstructions are paired with their originals, so a perfect tokenizer reaches 0 and not this value. It gives the scale
of the distance: the effect of replacing all pictures by others of their kind.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imagepriors.evaluate.config import EvaluateConfig, Resize
from imagepriors.evaluate.networks import figure_lines, figure_names, frechet_distance, network_notes, weights_sha256
from imagepriors.evaluate.protocol import comparison_notes
from imagepriors.evaluate.reference import resize_text, unused_splits
from imagepriors.evaluate.resizes import resized
from runkit.devices import pick_device
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish_file
from runkit.jsonfiles import finite_or_none
from runkit.progress import tqdm
from vqgan.checkpoint import trained_against
from vqgan.data import Split, open_splits, resolve, sources_of, spread
from vqgan.errors import InputError
from vqgan.losses import LpipsLoss
from vqgan.metrics import TokenizerMetrics
from vqgan.tokenizer import Tokenizer

log = logging.getLogger(__name__)
_COMMAND = "evaluate-tokenizer"
_BATCH = 32
_THREADS = 2


def evaluate_tokenizer(
    tokenizer_folder: Path, dataset: str, data: Path, out: Path, config: EvaluateConfig
) -> dict[str, Any]:
    """Reconstruct a split and write the figures and how they were obtained to the JSON file `out`.

    Raises:
        InputError: the tokenizer, the data or the weights of a network are missing.
    """
    splits = open_splits(dataset, data)
    check_apart(out, data=sources_of(splits, data))
    check_publish(out.parent, [out.name], _COMMAND)
    tokenizer = Tokenizer.load(tokenizer_folder, device=config.device)
    net = tokenizer.config
    if config.resize != "training" and (net.modality != "rgb" or net.geometry != "crop"):
        raise InputError(
            f"resize is {config.resize!r}, a rule for centre squares of photos, but the tokenizer encodes "
            f"{net.modality} with the geometry {net.geometry}: use training"
        )
    split = splits[config.split] if net.modality == "rgb" else splits[config.split].having(net.modality)
    indices = spread(len(split), config.limit or len(split))
    others = [
        _with_modality(part, net.modality)
        for part in unused_splits({**splits, config.split: split}, config.split, indices)
    ]
    figures, count = _figures(tokenizer, split, indices, others, config)
    weights, size = weights_sha256(config.frechet, config.inception), (net.resolution, net.resolution)
    differences = ["images are resized as in the tokenizer's training"] * (config.resize == "training")
    differences += [f"images are of the split {config.split}, not val"] * (config.split != "val")
    report = {
        "figures": figures,
        "networks": network_notes(figures, trained_against(tokenizer_folder)),
        "notes": comparison_notes(config.frechet, weights, count, size, *differences) if net.channels == 3 else [],
        "features": config.frechet,
        "weights_sha256": weights,
        "images": count,
        "unreadable": len(indices) - count,
        "split": config.split,
        "dataset": resolve(dataset, data),
        "source_sha256": split.source_hash(),
        "geometry": net.geometry,
        "resize": f"{resize_text(config.resize, net.geometry)} to {net.resolution}×{net.resolution} (masks nearest, "
        "depth bilinear)",
        "arithmetic": "float32",
        "tokenizer": tokenizer.fingerprint,
        "grid": list(net.grid),
        "codebook_size": net.codebook_size,
    }
    publish_file(out, pretty_json(finite_or_none(report)), _COMMAND)
    return report


def _figures(
    tokenizer: Tokenizer, split: Split, indices: list[int], others: Sequence[Split], config: EvaluateConfig
) -> tuple[dict[str, float], int]:
    """Figures of the reconstructions of these pictures, and the number of readable pictures."""
    net, device = tokenizer.config, pick_device(config.device, InputError)
    rgb = net.channels == 3
    metrics = TokenizerMetrics(net.modality, net.codebook_size, net.n_labels)
    frechet = frechet_distance(config.frechet, config.inception, device) if rgb else None
    lpips = LpipsLoss(config.lpips, config.lpips_trunk).to(device) if rgb and config.lpips != "none" else None
    sums = {"ssim": 0.0, "lpips": 0.0}
    count = 0
    for target, output, codes in _reconstructions(tokenizer, split, indices, config.resize):
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
        name = figure_names(config.frechet, weights_sha256(config.frechet, config.inception))["pooled"]
        name = "rfid" if name == "fid" else name
        figures[name] = float(frechet.compute())
        figures |= _real_distance(name, frechet, tokenizer, others, count, config.resize)
    return figures, count


def _real_distance(
    name: str, frechet: Any, tokenizer: Tokenizer, others: Sequence[Split], count: int, resize: Resize
) -> dict[str, float]:
    """The distance of `count` other pictures to the originals in `frechet`; empty if there are fewer."""
    split = next((split for split in others if len(split) >= count), None)
    if split is None:
        return {}
    frechet.reset_real_features = False
    frechet.reset()
    for pictures in _batches(tokenizer, split, spread(len(split), count), resize):
        frechet.update(_to_tensor(np.stack(pictures), frechet.device).to(torch.uint8), real=False)
    return {f"{name}, real": float(frechet.compute())} if frechet.fake_features_num_samples > 1 else {}


def _with_modality(split: Split, modality: str) -> Split:
    """The samples that have a modality, possibly none."""
    return split.subset(i for i, item in enumerate(split.items) if modality == "rgb" or modality in item.conditions)


def _reconstructions(
    tokenizer: Tokenizer, split: Split, indices: list[int], resize: Resize
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Batches of (original, reconstruction, codes)."""
    for pictures in _batches(tokenizer, split, indices, resize):
        codes = tokenizer.encode(pictures)
        yield np.stack(pictures), tokenizer.decode(codes), codes


def _batches(
    tokenizer: Tokenizer, split: Split, indices: list[int], resize: Resize
) -> Iterator[list[npt.NDArray[Any]]]:
    """Batches of pictures in the tokenizer's input format; unreadable pictures are skipped with a warning."""
    net = tokenizer.config
    modality = net.modality
    conditions = () if modality == "rgb" else (modality,)

    def read(index: int) -> npt.NDArray[Any] | None:
        try:
            if resize != "training":
                return resized(split.read_whole(index), net.resolution, resize)
            sample = split.read(index, net.resolution, conditions=conditions, geometry=net.geometry)
            picture = sample.picture(modality)
            if modality == "segmentation" and picture.max() >= net.n_labels:
                raise InputError(
                    f"{split.keys[index]}: label {picture.max()}, but the tokenizer has {net.n_labels} labels"
                )
            return picture
        except InputError as error:
            log.warning("skipped: %s", error)
            return None

    bar = tqdm(total=len(indices), desc=_COMMAND, unit="image", disable=None)
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
    """The figures as aligned lines under a heading."""
    heading = f"{report['images']} {report['split']} images of {report['dataset']}, {report['resize']}"
    return figure_lines(heading, report)
