"""Datasets in the layouts in which they are published: one table of names, one small interface.

`open_splits(name, root)` gives {split name: Split}. A split is a sequence of samples with unique dot-free keys;
indexing reads one sample from disk. Splits are picklable and safe to read from many threads. To add a dataset, write a
function from its folder to its splits and put it into DATASETS: see README.md in this folder.
"""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runkit.retries import patient
from vqgan.data.ade20k import ade20k, landscapes
from vqgan.data.base import Item, Sample, Split, hold_out, spread
from vqgan.data.cifar10 import cifar10
from vqgan.data.deepfashion import deepfashion
from vqgan.data.demo import demo
from vqgan.data.files import folders_in, sources_of
from vqgan.data.folder import folder
from vqgan.data.geometry import CENTRE, View, views_of
from vqgan.data.huggingface import huggingface
from vqgan.data.imagenet import imagenet, imagenet_depth, restricted_imagenet
from vqgan.data.recognise import other_layout, recognise
from vqgan.data.webdataset import webdataset
from vqgan.errors import InputError

__all__ = [
    "AUTO",
    "CENTRE",
    "DATASETS",
    "Item",
    "Sample",
    "Split",
    "View",
    "open_splits",
    "resolve",
    "sources_of",
    "spread",
    "views_of",
]
log = logging.getLogger(__name__)
AUTO = "auto"
"""In place of a dataset's name: its layout is recognised."""

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


def resolve(name: str, root: Path) -> str:
    """Name of a reader: `name`, or for "auto" the one that the folder's content tells.

    Raises:
        InputError: as of `open_splits`, before anything is listed.
    """
    if name != AUTO and name not in DATASETS:
        raise InputError(f"unknown dataset {name!r}: choose one of {AUTO}, {', '.join(DATASETS)}")
    if not root.is_dir():
        raise InputError(f"dataset folder {root} does not exist: pass the folder that holds the {name} data (DATA=…)")
    return recognise(root)[0] if name == AUTO else name


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without rounds of Python's garbage collector, which finds nothing in a list of a million new items."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@patient
@_uncollected()
def open_splits(name: str, root: Path) -> dict[str, Split]:
    """Open the dataset `name` that is in the folder `root`; both "train" and "val" are always there.

    Where the folder has only one of the two, every 20th sample in key order (by a hash of the key) is held out
    as "val", so that the division stays the same when images are added.

    Args:
        name: One of DATASETS, or "auto", which takes what `recognise` finds.
        root: The folder.

    Raises:
        InputError: unknown name, missing folder, nothing readable in it, a train without images, or keys that are not
            unique.
    """
    if name == AUTO:
        name, why = recognise(root)
        log.info("%s is read as %s: %s", root, name, why)
    elif other := other_layout(resolve(name, root), root):
        log.warning("%s is read as %s, but looks like %s", root, name, other)
    snapshots = folders_in(root / "snapshots") if {"refs", "snapshots"} <= set(folders_in(root)) else []
    if len(snapshots) > 1:
        raise InputError(f"{root} has {len(snapshots)} snapshots of one dataset: pass one, as snapshots/{snapshots[0]}")
    found = DATASETS[name](root)
    splits = {split: data for split, data in found.items() if len(data)}
    if not splits:
        raise InputError(f"no images found in {root}: is it laid out like {name}? See README, «Datasets»")
    for split in found.keys() - splits.keys():
        problem = f"{split} of {root} has no image, though its folder or file is there: is it whole, is it unpacked?"
        if split == "train":
            raise InputError(problem)
        log.warning("%s A part of train is held out", problem)
    if {"train", "val"} <= splits.keys():
        return splits
    only = next(iter(splits))
    if only != "train":
        log.warning("%s has no train: a part of its val is held out, the rest is trained on", root)
    return hold_out(splits[only])
