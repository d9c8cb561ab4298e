"""Reader `demo`: the generated scenes, in the layouts of three published datasets."""

from dataclasses import replace
from pathlib import Path

from vqgan.data.ade20k import ade20k
from vqgan.data.deepfashion import deepfashion
from vqgan.data.imagenet import imagenet_depth
from vqgan.data.split import Split
from vqgan.errors import InputError


def demo(root: Path) -> dict[str, Split]:
    """Read images, classes and masks from the ADE20K layout of the demo data, depth and poses from its other two.

    Raises:
        InputError: the demo data are missing or incomplete.
    """
    if not (root / "demo.json").is_file():
        raise InputError(f"{root} holds no complete demo data (demo.json is missing): render it there first")
    depths, poses = imagenet_depth(root / "imagenet-depth"), deepfashion(root / "deepfashion")
    splits = {}
    for name, split in ade20k(root).items():
        depth_of = {item.key.split("/")[-1]: item.conditions["depth"] for item in depths[name].items}
        pose_of = {item.key.split("/")[-1]: item.conditions["pose"] for item in poses[name].items}
        items = [
            replace(item, conditions={**item.conditions, "depth": depth_of[item.key], "pose": pose_of[item.key]})
            for item in split.items
        ]
        splits[name] = Split(items, split.class_names, n_labels=split.n_labels, label_names=split.label_names)
    return splits
