"""Readers of the published folder layouts: each turns a root folder into splits without an index file."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqgan.datasets.base import Item, Split, find_images, make_key
from vqgan.errors import InputError


def image_folder(root: Path) -> dict[str, Split]:
    """`train/` and `val/` (or the root itself), each with one folder per class or flat: ImageNet, CIFAR-10, yours.

    Labels are the indices of the sorted class-folder names; a flat folder has none.
    """
    folders = {name: root / name for name in ("train", "val") if (root / name).is_dir()} or {"train": root}
    names = sorted({path.name for folder in folders.values() for path in folder.iterdir() if path.is_dir()})
    return {split: Split(_class_items(folder, names), names) for split, folder in folders.items()}


def _class_items(folder: Path, class_names: list[str]) -> Iterator[Item]:
    label_of = {name: label for label, name in enumerate(class_names)}
    for path in find_images(folder):
        label = label_of[path.parts[0]] if len(path.parts) > 1 else None
        yield Item(key=make_key(path), image=folder / path, label=label)


def imagenet_depth(root: Path) -> dict[str, Split]:
    """ImageNet class folders with parallel trees of depth maps: `train` + `train_depth`, `val` + `val_depth`."""
    splits = {}
    for name, split in image_folder(root).items():
        items = []
        for item in split.items:
            depth = root / f"{name}_depth" / item.image.relative_to(root / name).with_suffix(".png")
            items.append(replace(item, conditions={"depth": depth} if depth.is_file() else {}))
        splits[name] = Split(items, split.class_names)
    return splits


def ade20k(root: Path) -> dict[str, Split]:
    """ADEChallengeData2016: `images/{training,validation}` with label PNGs in `annotations/` (0 = unlabelled).

    The scene category of `sceneCategories.txt`, where the file is there, is the class label.
    """
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    listed = root / "sceneCategories.txt"
    lines = [line.split() for line in listed.read_text().splitlines()] if listed.is_file() else []
    category = {line[0]: line[1] for line in lines if len(line) > 1}
    names = sorted(set(category.values()))
    splits = {}
    for split, folder in (("train", "training"), ("val", "validation")):
        items = []
        for path in find_images(root / "images" / folder):
            mask = root / "annotations" / folder / path.with_suffix(".png")
            label = names.index(category[path.stem]) if path.stem in category else None
            conditions = {"segmentation": mask} if mask.is_file() else {}
            items.append(
                Item(
                    key=make_key(path),
                    image=root / "images" / folder / path,
                    label=label,
                    conditions=conditions,
                )
            )
        splits[split] = Split(items, names)
    return splits


def deepfashion(root: Path) -> dict[str, Split]:
    """In-shop pose benchmark: `train/`, `test/` and `fasion-annotation-{train,test}.csv` (the release's spelling)."""
    splits = {}
    for split, folder in (("train", "train"), ("val", "test")):
        poses = _read_keypoints(root / f"fasion-annotation-{folder}.csv")
        items = [
            Item(
                key=make_key(path),
                image=root / folder / path,
                conditions={"pose": poses[path.as_posix()]} if path.as_posix() in poses else {},
            )
            for path in find_images(root / folder)
        ]
        splits[split] = Split(items)
    return splits


def _read_keypoints(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is missing: it holds the keypoints (name:keypoints_y:keypoints_x)")
    poses = {}
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter=":"), start=2):
            try:
                ys, xs = json.loads(row["keypoints_y"]), json.loads(row["keypoints_x"])
                poses[row["name"]] = np.array([xs, ys], dtype=np.float32).T.reshape(18, 2)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path} line {number}: wanted name:[18 ys]:[18 xs], found {row}") from error
    return poses


def demo(root: Path) -> dict[str, Split]:
    """The generated demo data: image, class and mask from its ADE20K layout, depth and pose from the other two."""
    if not (root / "demo.json").is_file():
        raise InputError(f"no finished demo data in {root}: run `make demo-data`")
    depths, poses = imagenet_depth(root / "imagenet-depth"), deepfashion(root / "deepfashion")
    splits = {}
    for name, split in ade20k(root).items():
        depth_of = {item.image.stem: item.conditions["depth"] for item in depths[name].items}
        pose_of = {item.image.stem: item.conditions["pose"] for item in poses[name].items}
        items = [
            replace(item, conditions={**item.conditions, "depth": depth_of[item.key], "pose": pose_of[item.key]})
            for item in split.items
        ]
        splits[name] = Split(items, split.class_names)
    return splits
