"""`folder`: any folder of images, with optional class folders, parallel condition folders, or a list."""

import os
from pathlib import Path
from typing import Any

from vqgan.datasets.base import Item, Split
from vqgan.datasets.files import CONDITIONS, SPLIT_NAMES, File, Source, check_label, first_of_each, image_tree, make_key
from vqgan.errors import InputError

_COLUMNS = ("image", "label", "split", "key", *CONDITIONS)


def folder(root: Path) -> dict[str, Split]:
    """A folder of images: `train/` and `val/` (also valid, validation, test), or the root itself.

    Sub-folders are classes, labelled in the order of their sorted names. Maps lie beside the folder, under the images'
    own names: `train_segmentation/`, `train_depth/`, `train_pose/`. A list `images.csv` or `images.parquet` in the root
    replaces all that: columns image (path from the root) and, where wanted, label (a number or a name), split, key,
    segmentation, depth, pose.

    Raises:
        InputError: the list lacks a column or a value.
    """
    for suffix in ("parquet", "csv"):
        path = root / f"images.{suffix}"
        if path.is_file():
            return _listed(root, path)
    return image_tree(split_folders(root) or {"train": root})


def split_folders(root: Path) -> dict[str, Path]:
    """Split → its folder in `root`, by the usual names."""
    return first_of_each({theirs: root / theirs for theirs in SPLIT_NAMES if (root / theirs).is_dir()})


def _listed(root: Path, path: Path) -> dict[str, Split]:
    rows = _rows(path)
    names, label_of = _labels(path, [row.get("label") for row in rows])
    items: dict[str, list[Item]] = {}
    for number, row in enumerate(rows, start=1):
        image, split = row.get("image"), str(row.get("split") or "train")
        if not image or split not in SPLIT_NAMES:
            problem = f"split is {split!r}: choose one of {', '.join(SPLIT_NAMES)}" if image else "image is empty"
            raise InputError(f"{path.name}, row {number}: {problem}")
        conditions: dict[str, Any] = {name: _file(root, row[name]) for name in CONDITIONS if row.get(name)}
        key = make_key(f"{row['key']}.") if row.get("key") else make_key(os.path.normpath(str(image)).lstrip("/"))
        items.setdefault(split, []).append(
            Item(key=key, image=_file(root, image), label=label_of[row.get("label")], conditions=conditions)
        )
    return {split: Split(found, names) for split, found in first_of_each(items).items()}


def _file(root: Path, path: object) -> Source:
    return File(str(root / str(path)))


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv

    from runkit.tables import read_table

    try:
        if path.suffix == ".csv":
            # Everything as text: a key of 007 is not the number 7.
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()), strings_can_be_null=True)
            table = csv.read_csv(path, convert_options=as_text)
        else:
            table = read_table(path, error=InputError)
        rows: list[dict[str, Any]] = table.to_pylist()
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
        raise InputError(f"{path} cannot be read: {error}") from error
    unknown = [name for name in table.column_names if name not in _COLUMNS]
    if "image" not in table.column_names or unknown:
        problem = f"unknown column {unknown[0]!r}" if unknown else "there is no column 'image'"
        raise InputError(f"{path}: {problem}; columns are {', '.join(_COLUMNS)}")
    return rows


def _labels(path: Path, values: list[Any]) -> tuple[list[str], dict[Any, int | None]]:
    """Class names and the label of each value: names are sorted, numbers stand for themselves."""
    odd = next((value for value in values if not isinstance(value, int | float | str | None)), None)
    if odd is not None:
        raise InputError(f"{path.name}: label {odd!r} is neither a number nor a name")
    found = {value for value in values if value not in (None, "")}
    label_of: dict[Any, int | None] = {None: None, "": None}
    if all(isinstance(value, int) or str(value).isdecimal() for value in found):
        try:
            numbers = {value: None if str(value) == "-1" else check_label(int(value)) for value in found}
        except ValueError as error:
            raise InputError(f"{path.name}: {error}") from error
        highest = max((number for number in numbers.values() if number is not None), default=-1)
        names = [str(number) for number in range(highest + 1)]
        return names, label_of | numbers
    names = sorted({str(value) for value in found})
    place_of = {name: place for place, name in enumerate(names)}
    return names, label_of | {value: place_of[str(value)] for value in found}
