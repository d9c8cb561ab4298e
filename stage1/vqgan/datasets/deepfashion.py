"""`deepfashion`: the in-shop pose benchmark, photos with keypoints."""

import csv
import io
from pathlib import Path

from vqgan.datasets.base import Item, Split
from vqgan.datasets.conditions import Keypoints
from vqgan.datasets.files import File, find_files, make_key
from vqgan.errors import InputError

_FIELDS = {"name", "keypoints_y", "keypoints_x"}


def deepfashion(root: Path) -> dict[str, Split]:
    """`train/`, `test/` and `fasion-annotation-{train,test}.csv` (the release's spelling; also fasion-resize-…).

    Lines are `name:keypoints_y:keypoints_x`, two lists of 18 numbers in OpenPose's COCO order, -1 for missing joints.
    A broken line costs its own image.

    Raises:
        InputError: no annotation, or without its header.
    """
    splits = {}
    for split, folder in (("train", "train"), ("val", "test")):
        if not (root / folder).is_dir():
            continue
        poses = _read_keypoints(root, folder)
        items = [
            Item(
                key=make_key(path),
                image=File(f"{root / folder}/{path}"),
                conditions={"pose": poses.pop(path)} if path in poses else {},
            )
            for path in find_files(root / folder)
        ]
        splits[split] = Split(items, strays=[pose.name for pose in poses.values()])
    return splits


def _read_keypoints(root: Path, folder: str) -> dict[str, Keypoints]:
    choices = [root / f"fasion-{middle}annotation-{folder}.csv" for middle in ("", "resize-")]
    path = next((path for path in choices if path.is_file()), None)
    if path is None:
        raise InputError(f"{choices[0]} is missing: it holds the keypoints (name:keypoints_y:keypoints_x)")
    # Names in another encoding stay the bytes that they are in the folder.
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=":")
    try:
        if not set(reader.fieldnames or ()) >= _FIELDS:
            raise InputError(f"{path} starts with {reader.fieldnames}: wanted the header name:keypoints_y:keypoints_x")
        return {
            row["name"]: Keypoints(
                ys=row["keypoints_y"] or "", xs=row["keypoints_x"] or "", name=f"{path.name}, line {reader.line_num}"
            )
            for row in reader
        }
    except csv.Error as error:
        raise InputError(f"{path}, after line {reader.line_num}: {error}: remove the line") from error
