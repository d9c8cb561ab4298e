"""Fréchet distance of many sets of samples to decoded training pictures, and seconds per picture."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeshards.format import ShardDataset
from imagepriors.decode.rows import decode_rows, select_rows
from imagepriors.evaluate.networks import (
    Lite0Features,
    figure_names,
    frechet_distance,
    network_notes,
    weights_sha256,
)
from imagepriors.evaluate.prior import training_loss
from imagepriors.experiments.workspace import Workspace
from runkit.devices import pick_device

Array = npt.NDArray[Any]
_BATCH = 64


class Quality:
    """Distances to decoded training pictures, whose features are computed once.

    Both sides are decoded by the same tokenizer, so its blur is no part of the distance.
    """

    def __init__(self, workspace: Workspace) -> None:
        config, codes = workspace.config, ShardDataset.open(workspace.shards())
        self._net: torch.nn.Module = Lite0Features().eval()
        if config.features == "inception":
            self._net = frechet_distance("inception", config.inception, torch.device("cpu")).inception
        self._net.to(pick_device("auto"))
        note = figure_names(config.features, weights_sha256(config.features, config.inception))["pooled"]
        self.name = "FID" if note == "fid" else "Fréchet distance (not FID)"
        self.note = network_notes([note], training_loss(codes))[note]
        self._reference_ND = self._features(decode_rows(codes, "train", select_rows(codes, "train", config.n))[0])
        others = select_rows(codes, "val", config.n)
        self.floor = self.distance(decode_rows(codes, "val", others)[0]) if len(others) == config.n else None
        """Distance of as many validation pictures, decoded likewise; None if there are fewer."""

    def distance(self, pictures: Array) -> float:
        """Fréchet distance of pictures uint8 [N, H, W, 3]."""
        return frechet(self._features(pictures), self._reference_ND)

    @torch.inference_mode()
    def _features(self, pictures: Array) -> Array:
        device = next(self._net.parameters()).device
        batches = (pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH))
        parts = [self._net(torch.from_numpy(batch.copy()).permute(0, 3, 1, 2).to(device)) for batch in batches]
        return torch.cat(parts).double().cpu().numpy()


def frechet(a_ND: Array, b_MD: Array) -> float:
    """Fréchet distance of two sets of features.

    The trace of the square root of the product of the covariances AᵀA and BᵀB is the sum of the singular values of ABᵀ,
    which is small where there are fewer pictures than features.
    """
    means: list[Array] = []
    sides: list[Array] = []
    variances = 0.0
    for features in (a_ND, b_MD):
        means.append(features.mean(axis=0))
        centred = (features - means[-1]) / np.sqrt(max(1, len(features) - 1))
        sides.append(np.asarray(np.linalg.qr(centred, mode="r")))
        variances += float((centred**2).sum())
    common = float(np.linalg.svd(sides[0] @ sides[1].T, compute_uv=False).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + variances - 2 * common


def seconds_in_turn(tasks: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each task in each round; the tasks alternate, and one untimed round precedes."""
    found: dict[Any, list[float]] = {name: [] for name in tasks}
    for _ in range(1 + rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in found.items()}
