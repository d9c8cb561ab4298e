"""Reference pictures that samples are compared with: decoded codes, a split of a dataset, or files."""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codeshards.format import ShardDataset
from imagepriors.decode.rows import load_shard_tokenizer, read_codes, select_rows
from imagepriors.evaluate.config import EvaluatePriorConfig, Resize
from imagepriors.evaluate.pictures import (
    ARRAY,
    DecodedPictures,
    NpzPictures,
    Origin,
    Pictures,
    npz_names,
    origin_of,
    split_pictures,
)
from imagepriors.evaluate.resizes import RESIZE_TEXT
from vqgan.config import Geometry
from vqgan.data import Split, open_pictures, open_splits, resolve, spread
from vqgan.errors import InputError

GEOMETRY_TEXT = {"crop": "centre squares", "pad": "whole pictures, padded", "stretch": "whole pictures, stretched"}
_DECODED = {"train": "training", "val": "validation"}
_STATISTICS = {"pooled": ("mu", "sigma", 2048), "spatial": ("mu_s", "sigma_s", 2023)}
"""Features → names of mean and covariance in an `.npz` of ADM's evaluator, and their dimensions."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and covariance of features."""

    mu: npt.NDArray[np.float64]
    """[D]."""
    sigma: npt.NDArray[np.float64]
    """[D, D]."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Pictures that samples are compared with."""

    name: str
    """Description of the pictures."""
    pictures: Pictures | None
    """None if a file has statistics alone."""
    origin: Origin
    others: Pictures | None = None
    """As many other real pictures as there are samples; None if there are fewer."""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """Statistics of Inception features from a file, which may cover more pictures than it has."""
    differences: tuple[str, ...] = ()
    """How it differs from references of published figures."""
    resize: Resize | None = None
    """How images become its pictures; None if none is resized."""


def decoded_reference(codes: ShardDataset, n: int, config: EvaluatePriorConfig) -> Reference:
    """Decoded codes of the split that `config` names, by default "val", as reference of `n` samples."""
    name = config.reference or "val"
    tokenizer = load_shard_tokenizer(codes.path, "tokenizer", codes.spec.image.fingerprint)

    def decoded(split: str, rows: npt.NDArray[np.int64]) -> DecodedPictures:
        return DecodedPictures(tokenizer, read_codes(codes, split, rows)[0])

    rows = select_rows(codes, name, config.reference_limit)
    split, left = name, np.setdiff1d(np.arange(codes.rows(name)), rows)
    if len(left) < n:
        split = "train" if name == "val" else "val"
        left = np.arange(codes.rows(split) if split in codes.splits else 0)
    return Reference(
        f"{_DECODED[name]} pictures, encoded and decoded by the tokenizer",
        decoded(name, rows),
        Origin(str(codes.path), codes.fingerprint, "the token shards", len(rows)),
        decoded(split, left[spread(len(left), n)]) if len(left) >= n else None,
        differences=("the reference is not of pictures but of decoded codes",),
    )


def dataset_reference(
    dataset: str, data: Path, size: int, n: int, config: EvaluatePriorConfig, geometry: Geometry = "crop"
) -> Reference:
    """Evenly spaced pictures of the split that `config` names, by default "train", as reference of `n` samples."""
    splits, name = open_splits(dataset, data), config.reference or "train"
    found = splits[name]
    used = spread(len(found), config.reference_limit or len(found))
    others = next((split for split in unused_splits(splits, name, used) if len(split) >= n), None)

    def pictures(split: Split) -> Pictures:
        return split_pictures(split, size, geometry, config.resize)

    chosen = found.subset(used)
    return Reference(
        f"{resolve(dataset, data)}, split {name}, {resize_text(config.resize, geometry)} at {size}×{size}",
        pictures(chosen),
        origin_of(data, len(used), chosen),
        pictures(others.subset(spread(len(others), n))) if others else None,
        differences=_differences(config.resize),
        resize=config.resize,
    )


def _differences(resize: Resize) -> tuple[str, ...]:
    return ("pictures of the reference are resized as in the tokenizer's training",) * (resize == "training")


def resize_text(resize: Resize, geometry: Geometry) -> str:
    """Describe how images become pictures."""
    return f"{GEOMETRY_TEXT[geometry]}, Pillow bicubic" if resize == "training" else RESIZE_TEXT[resize]


def unused_splits(splits: Mapping[str, Split], name: str, used: Iterable[int]) -> list[Split]:
    """The samples of the named split that are not used, and the other split."""
    taken = set(used)
    rest = splits[name].subset(index for index in range(len(splits[name])) if index not in taken)
    return [rest, splits["train" if name == "val" else "val"]]


def file_reference(path: Path, size: int, config: EvaluatePriorConfig) -> Reference:
    """An `.npz` as ADM's evaluator reads it, or all pictures of a folder or tar, resized to `size`, as reference.

    Raises:
        InputError: the path has neither pictures nor statistics, or they are malformed.
    """
    if path.suffix != ".npz":
        split = open_pictures(path)
        pictures = split_pictures(split, size, resize=config.resize)
        name = f"pictures of {path}, {resize_text(config.resize, 'crop')} at {size}×{size}"
        return Reference(
            name,
            pictures,
            origin_of(path, len(split), split),
            differences=_differences(config.resize),
            resize=config.resize,
        )
    names = npz_names(path)
    statistics = {
        features: _read_statistics(path, mean, covariance, dims)
        for features, (mean, covariance, dims) in _STATISTICS.items()
        if {mean, covariance} <= names
    }
    if not statistics and ARRAY not in names:
        raise InputError(f"{path} has {', '.join(sorted(names))}: a reference has pictures ({ARRAY}) or mu and sigma")
    held = NpzPictures.open(path) if ARRAY in names else None
    count = held.shape[0] if held else 0
    parts = [f"its {count:,} pictures"] * bool(held) + ["its statistics of Inception features"] * bool(statistics)
    return Reference(f"{path}, {' and '.join(parts)}", held, origin_of(path, count, None), statistics=statistics)


def _read_statistics(path: Path, mean: str, covariance: str, dims: int) -> Statistics:
    """Read a mean and a covariance.

    Raises:
        InputError: the file is damaged, or they are not finite numbers of the shapes [dims] and [dims, dims].
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Statistics(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
    except (ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{mean} and {covariance} of {path} cannot be read as numbers: {error}") from error
    if found.mu.shape != (dims,) or found.sigma.shape != (dims, dims):
        shapes = f"{list(found.mu.shape)} and {list(found.sigma.shape)}"
        raise InputError(
            f"{mean} and {covariance} of {path} are {shapes}: Inception's are [{dims}] and [{dims}, {dims}]"
        )
    if not (np.isfinite(found.mu).all() and np.isfinite(found.sigma).all()):
        raise InputError(f"{mean} or {covariance} of {path} has values that are not finite: compute them again")
    return found
