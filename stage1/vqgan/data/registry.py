"""The datasets by name, and how one is opened."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runkit.retries import patient
from vqgan.data.ade20k import ade20k, landscapes
from vqgan.data.cifar10 import cifar10
from vqgan.data.deepfashion import deepfashion
from vqgan.data.demo import demo
from vqgan.data.files import folders_in
from vqgan.data.folder import folder
from vqgan.data.huggingface import huggingface
from vqgan.data.imagenet import imagenet, imagenet_depth, restricted_imagenet
from vqgan.data.recognise import other_layout, recognise
from vqgan.data.split import Split, hold_out
from vqgan.data.webdataset import webdataset
from vqgan.errors import InputError
from vqgan.plugins import find_plugin

log = logging.getLogger(__name__)
AUTO = "auto"
"""Name in place of a dataset's: its layout is recognised among those of `DATASETS`."""
_SPLITS = ("train", "val")

Reader = Callable[[Path], Mapping[str, Split]]
"""A function from the folder of a dataset to its splits, "train", "val" or both."""

DATASETS: Mapping[str, Reader] = {
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
"""The readers of this package. Other packages add theirs as entry points of the group `imagepriors.datasets`."""


def resolve(name: str, root: Path) -> str:
    """Return the name of the reader of a dataset: `name`, or for "auto" the layout that the folder has.

    Raises:
        InputError: as `open_splits`, before any file is listed.
    """
    return _select(name, root)[0]


def _select(name: str, root: Path) -> tuple[str, Reader, str]:
    """Return the name of a reader, the reader, and for "auto" the reason why it was chosen."""
    reader = None if name == AUTO else find_plugin("dataset", name, {AUTO: None, **DATASETS})
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        data = "dataset" if name == AUTO else f"{name} data"
        raise InputError(f"the dataset folder {root} {problem}: pass the folder that holds the {data}")
    if reader is not None:
        return name, reader, ""
    name, reason = recognise(root)
    return name, DATASETS[name], reason


@patient
def open_splits(name: str, root: Path) -> dict[str, Split]:
    """Open the dataset `name` in the folder `root`; the result always has both "train" and "val".

    If the folder has only one of the two, a twentieth of its samples, by a hash of the key, is held out as "val".
    The division remains the same when images are added.

    Args:
        name: A name in `DATASETS`; one that an installed package registers; `package.module:function`, which must be
            importable; or "auto", which takes what `recognise` finds and never runs the code of another package.
        root: The folder.

    Raises:
        InputError: the name is unknown or cannot be imported, the folder is missing, nothing in it is readable, train
            has no images, or keys are not unique.
    """
    name, reader, reason = _select(name, root)
    if reason:
        log.info("%s is read as %s: %s", root, name, reason)
    elif name in DATASETS and (other := other_layout(name, root)):
        log.warning("%s is read as %s, but looks like %s", root, name, other)
    snapshots = folders_in(root / "snapshots") if {"refs", "snapshots"} <= set(folders_in(root)) else []
    if len(snapshots) > 1:
        raise InputError(f"{root} has {len(snapshots)} snapshots of one dataset: pass one, as snapshots/{snapshots[0]}")
    found = _checked(reader(root), name)
    splits = {split: data for split, data in found.items() if len(data)}
    if not splits:
        raise InputError(f"no images found in {root}: does it have the layout of {name}, and is it unpacked?")
    for split in found.keys() - splits.keys():
        problem = f"{split} of {root} has no image, although its folder or file exists: is it complete and unpacked?"
        if split == "train":
            raise InputError(problem)
        log.warning("%s A part of train is held out instead", problem)
    if set(_SPLITS) <= splits.keys():
        return splits
    only = next(iter(splits))
    if only != "train":
        log.warning("%s has no train: a part of its val is held out, and the rest is train", root)
    return hold_out(splits[only])


def _checked(found: Any, name: str) -> Mapping[str, Split]:
    """Return what a reader returned.

    Raises:
        InputError: it is not a mapping of splits, as the reader of another package may return.
    """
    if isinstance(found, Mapping):
        kinds = {split: type(data).__name__ for split, data in found.items()}
        if all(split in _SPLITS and isinstance(data, Split) for split, data in found.items()):
            return found
    else:
        kinds = {"": type(found).__name__}
    listed = ", ".join(f"{split} {kind}".strip() for split, kind in kinds.items())
    raise InputError(
        f"the reader of {name} returned {listed}: it must return a dict of Split, with the keys train, val or both"
    )
