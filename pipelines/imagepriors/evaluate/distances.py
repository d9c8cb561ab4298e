"""Figures that compare the features of two sets of pictures, defined as in ADM's evaluator.

Fréchet distance, precision, recall and Inception score are torch-fidelity's functions of features. Over the published
Inception weights the distances are FID and sFID and the score is IS; over other networks they have other names, see
:func:`imagepriors.evaluate.networks.figure_names`. Precision and recall have the same names over all networks; the
notes of a report say which network computes them.
"""

import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagepriors.evaluate.networks import FeatureNetwork
from imagepriors.evaluate.pictures import ARRAY, Pictures
from imagepriors.evaluate.protocol import comparison_notes
from imagepriors.evaluate.reference import Reference, Statistics
from runkit.progress import tqdm
from vqgan.errors import InputError

Features = Mapping[str, Tensor]
"""Name → features [N, D] on the CPU: pooled; of Inception also spatial and logits."""
NEIGHBOURS = 3
"""The manifold of precision and recall: balls that reach the third nearest neighbour, as in ADM's evaluator."""
SCORE_PART = 5000
"""Samples per part of the Inception score, which is the mean over the parts."""
_DISTANCE_ROWS = 2000
"""Rows of the matrix of distances that is in memory at once."""


@torch.inference_mode()
def features_of(pictures: Pictures, network: FeatureNetwork) -> Features:
    """Compute the features of pictures batch by batch; of 50,000 pictures they require 1 GB of memory."""
    device = next(network.net.parameters()).device
    parts: dict[str, list[Tensor]] = defaultdict(list)
    with tqdm(total=pictures.shape[0], desc=f"features of {network.name}", unit="image", disable=None) as bar:
        for batch in pictures.batches():
            found = network.net(torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2))
            for name, values in (found if isinstance(found, dict) else {"pooled": found}).items():
                parts[name].append(values.float().cpu())
            bar.update(len(batch))
    return {name: torch.cat(values) for name, values in parts.items()}


def statistics_of(features: Features) -> dict[str, Statistics]:
    """Mean and unbiased covariance of the features that a Fréchet distance is computed over."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found = {
        name: fid_features_to_statistics(features[name].double()) for name in ("pooled", "spatial") if name in features
    }
    return {name: Statistics(**values) for name, values in found.items()}


def frechet(a: Statistics, b: Statistics) -> float:
    """Fréchet distance of two normal distributions."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    first, second = ({"mu": part.mu, "sigma": part.sigma} for part in (a, b))
    return float(fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"])


def inception_score(logits_NK: Tensor) -> float:
    """Mean of the score of consecutive parts of 5,000 samples; the last part may be smaller."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    scores = [isc_features_to_metric(part, splits=1, shuffle=False) for part in torch.split(logits_NK, SCORE_PART)]
    return float(np.mean([score["inception_score_mean"] for score in scores]))


def precision_recall(samples_ND: Tensor, reference_ND: Tensor) -> dict[str, float]:
    """Share of samples in the manifold of the reference, and share of the reference in the manifold of the samples."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    neighbours = min(NEIGHBOURS, len(samples_ND) - 1, len(reference_ND) - 1)
    found: dict[str, Any] = prc_features_to_metric(
        samples_ND, reference_ND, prc_neighborhood=neighbours, prc_batch_size=_DISTANCE_ROWS, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    return {name: float(found[name]) for name in ("precision", "recall")}


class Judge:
    """Compares samples with a reference, whose features are computed once.

    It judges samples as in ADM's evaluation: the network sees both sets of pictures, and figures compare its features.

    Args:
        reference: The reference; statistics in its file stand for its pictures where the network is Inception.
        network: The network that judges.

    Raises:
        InputError: the reference has a single picture, or statistics alone that are of another network.
    """

    def __init__(self, reference: Reference, network: FeatureNetwork) -> None:
        given = reference.statistics if network.name == "inception" else {}
        if given and not network.is_published:
            raise InputError(
                f"{reference.name}: its statistics are of the published Inception weights, and {network.label} are "
                "others: give the published ones, or a reference of pictures alone"
            )
        if not given and reference.pictures is None:
            raise InputError(f"{reference.name} has statistics of Inception features alone: choose features inception")
        if reference.pictures is not None and (count := reference.pictures.shape[0]) < 2:
            raise InputError(
                f"{reference.name}: the number of pictures is {count}, and a distance requires two or more"
            )
        self._network, self._reference = network, reference
        features = {} if reference.pictures is None else features_of(reference.pictures, network)
        self._pooled = features.get("pooled")
        self._statistics = given or statistics_of(features)

    def figures(self, samples: Pictures) -> dict[str, float]:
        """Figures of samples and, with the suffix "real", of as many other real pictures if there are."""
        return self._compare(samples) | {f"{name}, real": value for name, value in self._real.items()}

    @functools.cached_property
    def _real(self) -> dict[str, float]:
        return {} if self._reference.others is None else self._compare(self._reference.others)

    def _compare(self, samples: Pictures) -> dict[str, float]:
        features, names = features_of(samples, self._network), self._network.figures
        own = statistics_of(features)
        found = {names[key]: frechet(own[key], self._statistics[key]) for key in own if key in self._statistics}
        if self._pooled is not None:
            found |= precision_recall(features["pooled"], self._pooled)
        if "logits" in features:
            found[names["logits"]] = inception_score(features["logits"])
        return found

    def notes(self, shape: tuple[int, ...]) -> list[str]:
        """Which figures of samples of this shape (N, H, W, 3) are missing, and how they differ from published ones."""
        found, (count, *size, _), pictures = [], shape, self._reference.pictures
        if pictures is None:
            found.append(f"precision and recall are missing: the reference has no pictures ({ARRAY})")
        if "spatial" in self._network.figures and "spatial" not in self._statistics:
            found.append(f"{self._network.figures['spatial']} is missing: the reference has no mu_s and sigma_s")
        others = list(self._reference.differences)
        if pictures is not None and pictures.shape[1:3] != tuple(size):
            others.append(f"pictures of the reference have {pictures.shape[2]}×{pictures.shape[1]} pixels")
        network = self._network
        return [*found, *comparison_notes(network.name, network.weights_sha256, count, tuple(size), *others)]
