"""Multiscale priors (the paper's Fig. 3 and 7): fix the first k scales of a picture and draw the others."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.checkpoint import CONFIG, RunConfig
from codeshards.format import ShardDataset
from imagepriors.decode.draw import draw_samples
from imagepriors.decode.partial import known_codes
from imagepriors.evaluate.networks import Lite0Features
from imagepriors.evaluate.prior import training_loss
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.workspace import PriorRuns, Workspace
from imagepriors.reports.figures import curves_figure, picture_grid

_GIVEN, _DRAWN = 4, 8
"""Number of given pictures, and of samples per given picture and k."""


def shards(workspace: Workspace) -> tuple[ShardKind, ...]:
    """The shards with coarser scales."""
    return (workspace.config.scales_of,)


def run_folder(workspace: Workspace) -> Path:
    """Run folder of the multiscale prior."""
    return workspace.out("scales") / "multiscale"


def priors(workspace: Workspace) -> PriorRuns:
    """One multiscale prior."""
    return {
        run_folder(workspace): (workspace.prior_config(multiscale=True), workspace.shards(workspace.config.scales_of))
    }


def run(workspace: Workspace) -> None:
    """Measure the diversity of samples by the number of fixed scales."""
    folder, scales = run_folder(workspace), workspace.config.scales
    sequence = RunConfig.load(folder / CONFIG).sequence
    features = Lite0Features().eval()
    config = workspace.sampling(batch_size=_GIVEN * _DRAWN)
    diversity, rows = [], []
    for k in range(len(scales) + 1):
        samples = draw_samples(
            folder, workspace.shards(workspace.config.scales_of), _GIVEN * _DRAWN, config=config, per_condition=_DRAWN,
            known_T=known_codes(sequence, _codes(workspace, k)),
        )  # fmt: skip
        drawn = samples.pictures.reshape(_GIVEN, _DRAWN, *samples.pictures.shape[1:])
        diversity.append(float(np.mean([mean_distance(pictures, features) for pictures in drawn])))
        originals = samples.originals
        # Without a given scale no original belongs to the samples.
        shown = np.zeros_like(drawn[:, 0]) + 255 if originals is None else originals[::_DRAWN]
        rows.append(np.concatenate([shown[:2, None], drawn[:2, : _DRAWN - 1]], axis=1))
    tiles = np.concatenate([row.reshape(-1, *row.shape[2:]) for row in rows])
    names = [", ".join(f"{s}×{s}" for s in scales[:k]) or "nothing" for k in range(len(scales) + 1)]
    listed = "; ".join(f"{name} {value:.3f}" for name, value in zip(names, diversity, strict=True))
    against = training_loss(ShardDataset.open(workspace.shards(workspace.config.scales_of)))
    falls = all(a > b for a, b in pairwise(diversity))
    text = (
        f"Scales {', '.join(map(str, scales))} and the full grid in one sequence. Mean distance between samples of one "
        f"given picture (1 - cosine of EfficientNet-Lite0's features; the tokenizer's perceptual training loss: "
        f"{against or 'unknown'}), by what is given: {listed}. It "
        f"{'falls with every scale' if falls else 'does not fall with every scale'}. Two rows for each k, the given "
        "picture first."
    )
    pictures: dict[str, Any] = {
        "samples": picture_grid(tiles, _DRAWN, scale=max(1, 64 // tiles.shape[1])),
        "diversity": curves_figure({"samples": (range(len(diversity)), diversity)}, "distance", xlabel="scales given"),
    }
    workspace.save("scales", text, {"diversity": diversity, "scales": list(scales)}, pictures)


def _codes(workspace: Workspace, k: int) -> int:
    return sum(side * side for side in workspace.config.scales[:k])


@torch.inference_mode()
def mean_distance(pictures: np.ndarray, features: torch.nn.Module) -> float:
    """Mean cosine distance of the features of all pairs of pictures uint8 [N, H, W, 3]."""
    found = torch.nn.functional.normalize(features(torch.from_numpy(pictures).permute(0, 3, 1, 2)), dim=1)
    distances = 1 - found @ found.T
    n = len(pictures)
    return float(distances.sum() / (n * (n - 1)))
