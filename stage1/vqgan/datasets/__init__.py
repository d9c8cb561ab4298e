"""Datasets in the layouts in which they are published: one table of names, one small interface.

`open_splits(name, root)` gives {split name: Split}. A split is a sequence of samples with unique dot-free keys;
indexing reads one sample from disk. Splits are picklable and safe to read from many threads.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from vqgan.datasets.base import Item, Sample, Split, hold_out, spread
from vqgan.datasets.layouts import ade20k, deepfashion, demo, image_folder, imagenet_depth
from vqgan.errors import InputError

__all__ = ["DATASETS", "Item", "Sample", "Split", "open_splits", "spread"]

DATASETS: Mapping[str, Callable[[Path], dict[str, Split]]] = {
    "ade20k": ade20k,
    "cifar10": image_folder,
    "deepfashion": deepfashion,
    "demo": demo,
    "folder": image_folder,
    "imagenet": image_folder,
    "imagenet-depth": imagenet_depth,
}


def open_splits(name: str, root: Path) -> dict[str, Split]:
    """Open the dataset `name` that lies in the folder `root`; both "train" and "val" are always there.

    Where the folder has only one of the two, every 20th sample in key order (by a hash of the key) is held out
    as "val", so that the division stays the same when images are added.

    Raises:
        InputError: unknown name, missing folder, or nothing readable in it.
    """
    if name not in DATASETS:
        raise InputError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if not root.is_dir():
        raise InputError(f"dataset folder {root} does not exist: pass the folder that holds the {name} data (DATA=…)")
    splits = {split: data for split, data in DATASETS[name](root).items() if len(data)}
    if not splits:
        raise InputError(f"no images found in {root}: is it laid out like {name}? See README, «Datasets»")
    return splits if {"train", "val"} <= splits.keys() else hold_out(next(iter(splits.values())))
