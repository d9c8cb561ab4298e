"""Datasets in the layouts in which they are published: one table of names, one small interface.

`open_splits(name, root)` gives {split name: Split}. A split is a sequence of samples with unique dot-free keys;
indexing reads one sample from disk. Splits are picklable and safe to read from many threads. To add a dataset, write a
function from its folder to its splits and put it into DATASETS: see README.md in this folder.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from runkit.retries import patient
from vqgan.datasets.ade20k import ade20k, landscapes
from vqgan.datasets.base import CENTRE, Item, Sample, Split, View, hold_out, spread, views_of
from vqgan.datasets.cifar10 import cifar10
from vqgan.datasets.deepfashion import deepfashion
from vqgan.datasets.demo import demo
from vqgan.datasets.files import sources_of
from vqgan.datasets.folder import folder
from vqgan.datasets.huggingface import huggingface
from vqgan.datasets.imagenet import imagenet, imagenet_depth, restricted_imagenet
from vqgan.datasets.webdataset import webdataset
from vqgan.errors import InputError

__all__ = ["CENTRE", "DATASETS", "Item", "Sample", "Split", "View", "open_splits", "sources_of", "spread", "views_of"]

DATASETS: dict[str, Callable[[Path], Mapping[str, Split]]] = {
    "ade20k": ade20k,
    "cifar10": cifar10,
    "deepfashion": deepfashion,
    "demo": demo,
    "folder": folder,
    "huggingface": huggingface,
    "imagenet": imagenet,
    "imagenet-depth": imagenet_depth,
    "landscapes": landscapes,
    "restricted-imagenet": restricted_imagenet,
    "webdataset": webdataset,
}


@patient
def open_splits(name: str, root: Path) -> dict[str, Split]:
    """Open the dataset `name` that lies in the folder `root`; both "train" and "val" are always there.

    Where the folder has only one of the two, every 20th sample in key order (by a hash of the key) is held out
    as "val", so that the division stays the same when images are added.

    Raises:
        InputError: unknown name, missing folder, nothing readable in it, or keys that are not unique.
    """
    if name not in DATASETS:
        raise InputError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if not root.is_dir():
        raise InputError(f"dataset folder {root} does not exist: pass the folder that holds the {name} data (DATA=…)")
    splits = {split: data for split, data in DATASETS[name](root).items() if len(data)}
    if not splits:
        raise InputError(f"no images found in {root}: is it laid out like {name}? See README, «Datasets»")
    return splits if {"train", "val"} <= splits.keys() else hold_out(next(iter(splits.values())))
