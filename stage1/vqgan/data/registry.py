"""The datasets by name, and how one is opened."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runkit.places import url_of
from runkit.remote import AnyPath, RemotePath, open_folder
from runkit.retries import patient
from vqgan.data.ade20k import ade20k, landscapes
from vqgan.data.cifar10 import cifar10
from vqgan.data.deepfashion import deepfashion
from vqgan.data.demo import demo
from vqgan.data.files import folders_in
from vqgan.data.folder import folder
from vqgan.data.huggingface import huggingface
from vqgan.data.imagenet import imagenet, imagenet_depth, restricted_imagenet
from vqgan.data.label_names import LABELS_FILE, read_label_names
from vqgan.data.recognise import other_layout, recognise
from vqgan.data.split import Split, hold_out
from vqgan.data.webdataset import webdataset
from vqgan.errors import InputError
from vqgan.plugins import find_plugin

log = logging.getLogger(__name__)
AUTO = "auto"
"""Name in place of a dataset's: its layout is recognised among those of `DATASETS`."""
_SPLITS = ("train", "val")

Reader = Callable[[Any], Mapping[str, Split]]
"""A function from the folder of a dataset, a Path, to its splits, "train", "val" or both. Those in `REMOTE` take a
RemotePath as well."""

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


REMOTE = ("folder", "huggingface", "webdataset")
"""The readers of folders and lists at a URL."""


def resolve(name: str, root: Path) -> str:
    """Return the name of the reader of a dataset: `name`, or for "auto" the layout that the folder has.

    A URL that this process has opened is not listed again.

    Raises:
        InputError: as `open_splits`, before any file is listed.
    """
    return name if url_of(root) and name in REMOTE else _select(name, open_folder(root, known=True))[0]


def _select(name: str, root: AnyPath) -> tuple[str, Reader, str]:
    """Return the name of a reader, the reader, and for "auto" the reason why it was chosen."""
    reader = None if name == AUTO else find_plugin("dataset", name, {AUTO: None, **DATASETS})
    if isinstance(root, RemotePath):
        found, reason = (name, "") if reader else recognise(root)
        if found not in REMOTE:
            looks = f" looks like {found} ({reason}), which" if reason else f": {found}"
            raise InputError(
                f"{root}{looks} is read from a local folder only: copy it to one, or name one of the layouts "
                f"{', '.join(REMOTE)}"
            )
        return found, DATASETS[found], reason
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

    For the readers in `REMOTE` the folder may be the URL of a folder in an object store or on the Hub, or of a list of
    files on a web server.

    The labels of masks have the names in `segmentation_labels.txt` in the folder, else those that the reader gives.

    Args:
        name: A name in `DATASETS`; one that an installed package registers; `package.module:function`, which must be
            importable; or "auto", which takes what `recognise` finds and never runs the code of another package.
        root: The folder, or a URL as a path.

    Raises:
        InputError: the name is unknown or cannot be imported, the folder is missing, nothing in it is readable, train
            has no images, keys are not unique, or the names of labels are broken.
    """
    place = open_folder(root)
    name, reader, reason = _select(name, place)
    if reason:
        log.info("%s is read as %s: %s", place, name, reason)
    elif name in DATASETS and (other := other_layout(name, place)):
        log.warning("%s is read as %s, but looks like %s", place, name, other)
    snapshots = folders_in(place / "snapshots") if {"refs", "snapshots"} <= set(folders_in(place)) else []
    if len(snapshots) > 1:
        raise InputError(f"{root} has {len(snapshots)} snapshots of one dataset: pass one, as snapshots/{snapshots[0]}")
    found = _named(_checked(reader(place), name), place)
    splits = {split: data for split, data in found.items() if len(data)}
    if not splits:
        raise InputError(f"no images found in {place}: does it have the layout of {name}, and is it unpacked?")
    for split in found.keys() - splits.keys():
        problem = f"{split} of {place} has no image, although its folder or file exists: is it complete and unpacked?"
        if split == "train":
            raise InputError(problem)
        log.warning("%s A part of train is held out instead", problem)
    if set(_SPLITS) <= splits.keys():
        return splits
    only = next(iter(splits))
    if only != "train":
        log.warning("%s has no train: a part of its val is held out, and the rest is train", place)
    return hold_out(splits[only])


def _named(found: Mapping[str, Split], place: AnyPath) -> Mapping[str, Split]:
    """Return splits with the names of the labels of masks that are in a file in their folder, if it exists."""
    names = read_label_names(place / LABELS_FILE, min((data.n_labels for data in found.values()), default=256))
    return {split: data.with_label_names(names) for split, data in found.items()} if names else found


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
