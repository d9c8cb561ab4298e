"""`ade20k` and `landscapes`: photos with label masks."""

from dataclasses import replace
from pathlib import Path

from vqgan.datasets.base import Split
from vqgan.datasets.files import class_items, folders_in, read_text, split_folders, with_maps
from vqgan.errors import InputError


def ade20k(root: Path) -> dict[str, Split]:
    """ADEChallengeData2016: `images/{training,validation}` with masks in `annotations/` (0 = unlabelled, 1 … 150).

    The scene category of `sceneCategories.txt`, where the file is there, is the class label.
    """
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    listed = root / "sceneCategories.txt"
    lines = [line.split() for line in read_text(listed).splitlines()] if listed.is_file() else []
    category = {line[0]: line[1] for line in lines if len(line) > 1}
    names = sorted(set(category.values()))
    label_of = {name: label for label, name in enumerate(names)}
    splits = {}
    if not (root / "images").is_dir():
        raise InputError(
            f"{root / 'images'} is missing: ADE20K is images/ with masks of the same names in annotations/"
        )
    for split, folder in split_folders(root / "images").items():
        found = class_items(folder, folders_in(folder))
        items, strays = with_maps(found, {"segmentation": root / "annotations" / folder.name})
        items = [replace(item, label=label_of.get(category.get(item.key.split("/")[-1], ""))) for item in items]
        splits[split] = Split(items, names, n_labels=151, strays=strays)
    return splits


def landscapes(root: Path) -> dict[str, Split]:
    """`images/` with masks of 182 stuff-and-things labels (0 … 181) in `segmentations/`; sub-folders are classes.

    Raises:
        InputError: one of the two folders is missing.
    """
    for folder in (root / "images", root / "segmentations"):
        if not folder.is_dir():
            raise InputError(
                f"{folder} is missing: landscapes are images/ with masks of the same names in segmentations/"
            )
    names = folders_in(root / "images")
    items, strays = with_maps(class_items(root / "images", names), {"segmentation": root / "segmentations"})
    return {"train": Split(items, names, n_labels=182, strays=strays)}
