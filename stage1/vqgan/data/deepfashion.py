"""Reader `deepfashion`: the in-shop pose benchmark, photos with keypoints."""

import csv
import io
import re
from pathlib import Path

from vqgan.data.files import find_files, make_key
from vqgan.data.poses import Keypoints
from vqgan.data.samples import Item
from vqgan.data.sources import File
from vqgan.data.split import Split
from vqgan.data.split_names import SPLIT_NAMES, split_word
from vqgan.data.trees import split_folders
from vqgan.errors import InputError

_FIELDS = {"name", "keypoints_y", "keypoints_x"}


def deepfashion(root: Path) -> dict[str, Split]:
    """Read `train/`, `test/` and `fasion-annotation-{train,test}.csv`, or fasion-resize-…: the release's spelling.

    Lines are `name:keypoints_y:keypoints_x`, two lists of 18 numbers in OpenPose's COCO order, -1 for missing joints.
    A broken line costs its own image.

    Raises:
        InputError: the annotation of a split or its header is missing.
    """
    splits = {}
    for split, folder in split_folders(root).items():
        poses = _read_keypoints(root, split, folder.name)
        items = [
            Item(
                key=make_key(path),
                image=File(f"{folder}/{path}"),
                conditions={"pose": poses.pop(path)} if path in poses else {},
            )
            for path in find_files(folder, count_others=True)
        ]
        splits[split] = Split(items, strays=[pose.name for pose in poses.values()])
    return splits


def _annotation(root: Path, split: str, folder: str) -> Path:
    """Return the annotation of a split.

    One with the name of the folder is preferred, then one of photos that are not resized.
    """
    found = []
    for path in sorted(root.iterdir()):
        name = re.fullmatch(r"fasion-(resize-)?annotation-(.+)\.csv", path.name.lower())
        word = split_word(name[2]) if name else None
        if name and word and SPLIT_NAMES[word] == split and path.is_file():
            found.append((word != split_word(folder), bool(name[1]), path))
    if not found:
        path = root / f"fasion-annotation-{folder}.csv"
        raise InputError(f"{path} is missing: it holds the keypoints (name:keypoints_y:keypoints_x)")
    return min(found)[2]


def _read_keypoints(root: Path, split: str, folder: str) -> dict[str, Keypoints]:
    path = _annotation(root, split, folder)
    # Names in another encoding keep their bytes, so that they match the files.
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=":")
    try:
        if not set(reader.fieldnames or ()) >= _FIELDS:
            raise InputError(
                f"{path} starts with {reader.fieldnames}: expected the header name:keypoints_y:keypoints_x"
            )
        return {
            row["name"]: Keypoints(
                ys=row["keypoints_y"] or "", xs=row["keypoints_x"] or "", name=f"{path.name}, line {reader.line_num}"
            )
            for row in reader
        }
    except csv.Error as error:
        raise InputError(f"{path}, after line {reader.line_num}: {error}: remove the line") from error
