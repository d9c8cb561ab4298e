"""Readers `imagenet`, `restricted-imagenet` and `imagenet-depth`: ILSVRC2012, unpacked or in its tars."""

import csv
import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vqgan.data.archives import inner_tar_members, read_archive, tar_members
from vqgan.data.files import IMAGE_SUFFIXES, folders_in, is_system_name, make_key
from vqgan.data.samples import Item
from vqgan.data.sources import read_text
from vqgan.data.split import Split
from vqgan.data.trees import class_items, image_tree, split_folders
from vqgan.errors import InputError

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12"
_MAT_HEADER, _MAT_COMPRESSED, _MAT_BYTES = 128, 15, 64 * 2**20
SUPER_CLASSES: dict[str, range] = {
    "dog": range(151, 269), "cat": range(281, 286), "frog": range(30, 33), "turtle": range(33, 38),
    "bird": range(80, 101), "primate": range(365, 383), "fish": range(389, 398), "crab": range(118, 122),
    "insect": range(300, 320),
}  # fmt: skip
"""The nine classes of restricted ImageNet (Tsipras et al. 2019) as ranges of ImageNet labels."""


def imagenet(root: Path) -> dict[str, Split]:
    """Read ILSVRC2012: `train/` and `val/`, Kaggle's download, or the two official tars, read in place.

    Labels are the indices of the sorted synsets. A val without class folders requires one of these beside it: Kaggle's
    LOC_val_solution.csv, a `*validation_synset_labels.txt` (one synset per line, in the order of the images), or the
    devkit (folder or .tar.gz).

    Raises:
        InputError: val has no class folders, and none of these.
    """
    places = (root / place / "CLS-LOC" for place in ("ILSVRC/Data", "Data"))
    data = next((place for place in places if place.is_dir()), root)
    folders = split_folders(data)
    if folders:
        names = sorted({name for folder in folders.values() for name in folders_in(folder)})
        listed = {split: list(class_items(folder, names)) for split, folder in folders.items()}
    elif (root / _TRAIN_TAR).is_file() or (root / _VAL_TAR).is_file():
        listed = {
            name: list(items(path))
            for name, path, items in (("train", root / _TRAIN_TAR, _train_tar), ("val", root / _VAL_TAR, _val_tar))
            if path.is_file()
        }
        names = sorted({item.key.split("/")[0] for item in listed.get("train", [])})
        label_of = {name: label for label, name in enumerate(names)}
        if "train" in listed:
            listed["train"] = [item.labelled(label_of[item.key.split("/")[0]]) for item in listed["train"]]
    else:
        names = folders_in(root)
        listed = {"train": list(class_items(root, names))}
    flat = listed.get("val") and all(item.label is None for item in listed["val"])
    if flat and (names or "train" not in listed):
        synset_of = _validation_synsets(root, [item.key for item in listed["val"]])
        names = names or sorted(set(synset_of.values()))
        label_of = {name: label for label, name in enumerate(names)}
        missing = sorted(set(synset_of.values()) - label_of.keys())
        if missing:
            raise InputError(
                f"val has images of {missing[0]}, which is not one of the {len(names)} classes of train: complete train"
            )
        listed["val"] = [item.labelled(label_of[synset_of[item.key]]) for item in listed["val"]]
    return {split: Split(items, names) for split, items in listed.items()}


def _train_tar(path: Path) -> Iterator[Item]:
    for inner, name, source in inner_tar_members(path):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            yield Item(key=make_key(f"{Path(inner).stem}/{Path(name).name}"), image=source)


def _val_tar(path: Path) -> Iterator[Item]:
    for name, source in tar_members(path):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            yield Item(key=make_key(Path(name).name), image=source)


def _validation_synsets(root: Path, keys: Sequence[str]) -> dict[str, str]:
    """Return the synset of each validation image by key."""
    listed = root / "LOC_val_solution.csv"
    if listed.is_file():
        try:
            rows = csv.DictReader(io.StringIO(read_text(listed), newline=""))
            synset_of = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        except (csv.Error, KeyError, IndexError, AttributeError) as error:
            raise InputError(f"{listed} is not a list of ImageId,PredictionString: {error!r}") from error
    else:
        # By the number in the name: if an image is missing, a count would give all later ones wrong classes.
        synsets = _synsets_in_order(root)
        numbers = {key: int(found[1]) for key in keys if (found := re.search(r"(\d{8})$", key))}
        synset_of = {key: synsets[number - 1] for key, number in numbers.items() if 1 <= number <= len(synsets)}
    missing = [key for key in keys if key not in synset_of]
    if missing:
        raise InputError(
            f"the synset list of val has {len(synset_of)} entries and none for {missing[0]!r}: "
            f"is val complete ({len(keys)} images)?"
        )
    return synset_of


def _synsets_in_order(root: Path) -> list[str]:
    for folder in (root, root / "val"):
        for path in sorted(folder.glob("*validation_synset_labels.txt")) if folder.is_dir() else ():
            if not is_system_name(path.name):
                return read_text(path).split()
    truth, meta = (_devkit_file(root, name) for name in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"))
    if truth is None or meta is None:
        raise InputError(
            f"val of {root} has no class folders and no list of classes: put LOC_val_solution.csv, {_DEVKIT}.tar.gz "
            "or an imagenet_2012_validation_synset_labels.txt beside it, or sort the images into class folders"
        )
    from scipy.io import loadmat

    try:
        _check_inflated(meta)
        synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        numbers = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        wnid_of = {int(number): str(wnid) for number, wnid in numbers}
        return [wnid_of[int(number)] for number in truth.split()]
    except Exception as error:  # on broken bytes the reader of .mat raises any exception
        raise InputError(f"{_DEVKIT} cannot be read: {error!r}") from error


def _check_inflated(mat: bytes) -> None:
    """Refuse a .mat whose compressed parts would fill the memory.

    Raises:
        ValueError: a part inflates to more than `_MAT_BYTES`.
    """
    place = _MAT_HEADER
    while place + 8 <= len(mat):
        kind, nbytes = struct.unpack_from("<II", mat, place)
        if kind == _MAT_COMPRESSED:
            inflater = zlib.decompressobj()
            inflater.decompress(mat[place + 8 : place + 8 + nbytes], _MAT_BYTES)
            if inflater.unconsumed_tail:
                raise ValueError(f"meta.mat inflates to more than {_MAT_BYTES:,} bytes")
        place += 8 + nbytes


def _devkit_file(root: Path, name: str) -> bytes | None:
    unpacked = root / _DEVKIT / "data" / name
    if unpacked.is_file():
        return unpacked.read_bytes()
    if (root / f"{_DEVKIT}.tar.gz").is_file():
        inside = f"{_DEVKIT}/data/{name}"
        return read_archive(root / f"{_DEVKIT}.tar.gz", lambda member: member == inside).get(inside)
    return None


def restricted_imagenet(root: Path) -> dict[str, Split]:
    """Read nine super-classes of ImageNet, without all other images.

    Raises:
        InputError: the folder does not have the 1000 classes of ImageNet.
    """
    splits = imagenet(root)
    found = len(next(iter(splits.values())).class_names)
    if found != 1000:
        raise InputError(
            f"{root} has {found} classes: restricted-imagenet requires the 1000 of ImageNet, which it selects by index"
        )
    new_label = {old: new for new, members in enumerate(SUPER_CLASSES.values()) for old in members}
    return {
        name: Split(
            [item.labelled(new_label[item.label]) for item in split.items if item.label in new_label],
            tuple(SUPER_CLASSES),
        )
        for name, split in splits.items()
    }


def imagenet_depth(root: Path) -> dict[str, Split]:
    """Read ImageNet class folders with depth maps beside them: `train` and `train_depth`, `val` and `val_depth`."""
    return image_tree(split_folders(root), conditions=("depth",))
