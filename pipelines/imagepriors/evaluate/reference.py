"""Reference pictures, and the distance of samples to them.

Fréchet distance, precision, recall and Inception score are torch-fidelity's. Over its Inception network they are FID,
precision, recall and IS. Over EfficientNet-Lite0, which requires no download, they are called Fréchet distance,
precision and recall, and never FID.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codeshards.format import ShardDataset
from imagepriors.decode.rows import decode_rows, select_rows
from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.evaluate.networks import LITE0, inception_weights, register_lite0
from vqgan.config import Geometry
from vqgan.data import Split, open_splits, resolve, spread

GEOMETRY_TEXT = {"crop": "centre squares", "pad": "whole pictures, padded", "stretch": "whole pictures, stretched"}
Pictures = npt.NDArray[Any]
_BATCH = 64


class SplitPictures:
    """Pictures of a split as a sequence of arrays, which are read on access."""

    def __init__(self, split: Split, size: int, geometry: Geometry) -> None:
        self._split, self._size, self._geometry = split, size, geometry

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        if not index < len(self):
            raise IndexError(index)  # ends an iteration
        return self._split.read_good(index, self._size, geometry=self._geometry).image


@dataclass(frozen=True, slots=True)
class Reference:
    """Pictures that samples are compared with: uint8 [N, H, W, 3]."""

    pictures: Pictures
    name: str
    """Description of the pictures."""
    others: Pictures | SplitPictures | None
    """As many other real pictures as there are samples; None if there are fewer."""

    def distances(self, samples: Pictures, config: EvaluatePriorConfig) -> dict[str, float]:
        """Figures of samples and, with the suffix "real", of as many other real pictures."""
        figures = distances(samples, self.pictures, config)
        if figures and self.others is not None:
            figures |= {f"{name}, real": value for name, value in distances(self.others, self.pictures, config).items()}
        return figures


def decoded_reference(codes: ShardDataset, config: EvaluatePriorConfig) -> Reference:
    """Decoded validation codes as reference."""
    rows = select_rows(codes, "val", config.reference_limit)
    rest = np.setdiff1d(np.arange(codes.rows("val")), rows)
    split, left = ("val", rest) if len(rest) >= config.n else ("train", np.arange(codes.rows("train")))
    others = left[spread(len(left), config.n)] if len(left) >= config.n else None
    return Reference(
        decode_rows(codes, "val", rows)[0],
        "validation pictures, encoded and decoded by the tokenizer",
        None if others is None else decode_rows(codes, split, others)[0],
    )


def dataset_reference(
    dataset: str, data: Path, size: int, config: EvaluatePriorConfig, geometry: Geometry = "crop"
) -> Reference:
    """Evenly spaced pictures of the split that `config` names as reference."""
    splits = open_splits(dataset, data)
    found = splits[config.reference]
    used = spread(len(found), config.reference_limit or len(found))
    others = next((split for split in unused_splits(splits, config.reference, used) if len(split) >= config.n), None)
    pictures = np.empty((len(used), size, size, 3), np.uint8)
    for row, index in enumerate(used):
        pictures[row] = found.read_good(index, size, geometry=geometry).image
    return Reference(
        pictures,
        f"{resolve(dataset, data)}, split {config.reference}, {GEOMETRY_TEXT[geometry]} at {size}×{size}",
        SplitPictures(others.subset(spread(len(others), config.n)), size, geometry) if others else None,
    )


def unused_splits(splits: Mapping[str, Split], name: str, used: Iterable[int]) -> list[Split]:
    """The samples of the named split that are not used, and the other split."""
    taken = set(used)
    rest = splits[name].subset(index for index in range(len(splits[name])) if index not in taken)
    return [rest, splits["train" if name == "val" else "val"]]


def distances(samples: Pictures | SplitPictures, reference: Pictures, config: EvaluatePriorConfig) -> dict[str, float]:
    """Fréchet distance, precision and recall of samples uint8 [N, H, W, 3]; over Inception also their score.

    Raises:
        InputError: the Inception weights do not exist and cannot be downloaded.
    """
    if config.features == "none":
        return {}
    import torch_fidelity

    inception = config.features == "inception"
    network = "inception-v3-compat" if inception else register_lite0()
    neighbours = min(3, len(samples) - 1, len(reference) - 1)
    with inception_weights(config.inception) if inception else contextlib.nullcontext() as weights:
        found = torch_fidelity.calculate_metrics(
            input1=_Planes(samples), input2=_Planes(reference), fid=True, prc=True, isc=inception,
            prc_neighborhood=neighbours, save_cpu_ram=True, batch_size=_BATCH, cuda=torch.cuda.is_available(),
            cache=False, verbose=False, feature_extractor=network, feature_extractor_weights_path=weights,
        )  # fmt: skip
    frechet = "fid" if inception else LITE0
    names = {"frechet_inception_distance": frechet, "precision": "precision", "recall": "recall"}
    if inception:
        names["inception_score_mean"] = "inception_score"
    return {ours: float(found[theirs]) for theirs, ours in names.items()}


class _Planes(torch.utils.data.Dataset[Tensor]):
    """Pictures in torch-fidelity's input format: uint8 [3, H, W]."""

    def __init__(self, pictures: Pictures | SplitPictures) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._pictures[index]).permute(2, 0, 1)
