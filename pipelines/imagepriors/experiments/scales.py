"""Multiscale priors (the paper's Fig. 3 and 7): the first k scales of a given picture are fixed, the rest is drawn."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeshards.format import ShardDataset
from imagepriors.decode.samples import draw_samples
from imagepriors.evaluate.prior import trained_loss
from imagepriors.evaluate.tokenizer import Lite0Features
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.lab import Lab, Plan
from imagepriors.reports.figures import curves_figure, picture_grid

_GIVEN, _DRAWN = 4, 8
"""Given pictures, and pictures drawn from each for every k."""


def shards(lab: Lab) -> tuple[ShardKind, ...]:
    """Those with coarser scales."""
    return (lab.config.scales_of,)


def run_folder(lab: Lab) -> Path:
    """Where the multiscale prior is trained."""
    return lab.out("scales") / "multiscale"


def priors(lab: Lab) -> Plan:
    """One multiscale prior."""
    return {run_folder(lab): (lab.prior(multiscale=True), lab.shards(lab.config.scales_of))}


def run(lab: Lab) -> None:
    """Fix more and more of a picture, see how much the rest still varies."""
    folder, scales = run_folder(lab), lab.config.scales
    features = Lite0Features().eval()
    config = lab.sampling(batch_size=_GIVEN * _DRAWN)
    diversity, rows = [], []
    for k in range(len(scales) + 1):
        samples = draw_samples(
            folder, lab.shards(lab.config.scales_of), _GIVEN * _DRAWN, config=config, per_condition=_DRAWN,
            given=_codes(lab, k),
        )  # fmt: skip
        drawn = samples.pictures.reshape(_GIVEN, _DRAWN, *samples.pictures.shape[1:])
        diversity.append(float(np.mean([spread_of(pictures, features) for pictures in drawn])))
        originals = samples.originals
        # Before any scale is given there is no picture to show beside the samples.
        shown = np.zeros_like(drawn[:, 0]) + 255 if originals is None else originals[::_DRAWN]
        rows.append(np.concatenate([shown[:2, None], drawn[:2, : _DRAWN - 1]], axis=1))
    tiles = np.concatenate([row.reshape(-1, *row.shape[2:]) for row in rows])
    names = [", ".join(f"{s}×{s}" for s in scales[:k]) or "nothing" for k in range(len(scales) + 1)]
    listed = "; ".join(f"{name} {value:.3f}" for name, value in zip(names, diversity, strict=True))
    against = trained_loss(ShardDataset.open(lab.shards(lab.config.scales_of)))
    falls = all(a > b for a, b in pairwise(diversity))
    text = (
        f"Scales {', '.join(map(str, scales))} and the full grid in one sequence. Mean distance between samples of one "
        f"given picture (1 - cosine of EfficientNet-Lite0's features; the tokenizer's perceptual training loss: "
        f"{against or 'not known'}), by what is given: {listed}. It "
        f"{'falls with every scale' if falls else 'does not fall with every scale'}. Two rows for each k, the given "
        "picture first."
    )
    pictures: dict[str, Any] = {
        "samples": picture_grid(tiles, _DRAWN, scale=max(1, 64 // tiles.shape[1])),
        "diversity": curves_figure({"samples": (range(len(diversity)), diversity)}, "distance", xlabel="scales given"),
    }
    lab.save("scales", text, {"diversity": diversity, "scales": list(scales)}, pictures)


def _codes(lab: Lab, k: int) -> int:
    return sum(side * side for side in lab.config.scales[:k])


@torch.inference_mode()
def spread_of(pictures: np.ndarray, features: torch.nn.Module) -> float:
    """Mean of 1 - cosine similarity of their features over the pairs of pictures uint8 [N, H, W, 3]."""
    found = torch.nn.functional.normalize(features(torch.from_numpy(pictures).permute(0, 3, 1, 2)), dim=1)
    distances = 1 - found @ found.T
    n = len(pictures)
    return float(distances.sum() / (n * (n - 1)))
