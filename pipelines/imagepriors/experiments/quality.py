"""Fréchet distance of many sets of samples to decoded training pictures, and seconds per picture."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeshards.format import ShardDataset
from imagepriors.decode.rows import decode_rows, select_rows
from imagepriors.evaluate.distances import features_of
from imagepriors.evaluate.networks import load_network, network_notes
from imagepriors.evaluate.pictures import HeldPictures
from imagepriors.evaluate.prior import training_loss
from imagepriors.experiments.workspace import Workspace
from runkit.devices import pick_device

Array = npt.NDArray[Any]


class Quality:
    """Distances to decoded training pictures, whose features are computed once.

    Both sides are decoded by the same tokenizer, so its blur is no part of the distance.
    """

    def __init__(self, workspace: Workspace) -> None:
        config, codes = workspace.config, ShardDataset.open(workspace.shards())
        network = load_network(config.features, config.inception, pick_device("auto"))
        assert network is not None  # the experiments' config has no features "none"
        self._network = network
        figure = network.figures["pooled"]
        self.name = "FID" if figure == "fid" else "Fréchet distance (not FID)"
        self.note = network_notes([figure], training_loss(codes))[figure]
        self._reference_ND = self._features(decode_rows(codes, "train", select_rows(codes, "train", config.n))[0])
        others = select_rows(codes, "val", config.n)
        self.floor = self.distance(decode_rows(codes, "val", others)[0]) if len(others) == config.n else None
        """Distance of as many validation pictures, decoded likewise; None if there are fewer."""

    def distance(self, pictures: Array) -> float:
        """Fréchet distance of pictures uint8 [N, H, W, 3]."""
        return frechet(self._features(pictures), self._reference_ND)

    def _features(self, pictures: Array) -> Array:
        return features_of(HeldPictures(pictures), self._network)["pooled"].double().numpy()


def frechet(a_ND: Array, b_MD: Array) -> float:
    """Fréchet distance of two sets of features, in a fraction of the time that their covariances take.

    :func:`imagepriors.evaluate.distances.frechet` has the same value. It requires means and covariances alone, which is
    what files of statistics hold; experiments have the features, and compute hundreds of distances.

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
