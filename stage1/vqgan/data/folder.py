"""Reader `folder`: any folder of images, with optional class folders, folders of maps, or a list."""

import io
import logging
import os
from collections import Counter
from typing import Any

from runkit.remote import AnyPath, RemotePath
from runkit.suggestions import did_you_mean
from vqgan.data.columns import Listed
from vqgan.data.conditions import CONDITIONS
from vqgan.data.files import make_key
from vqgan.data.labels import read_labels
from vqgan.data.samples import Item
from vqgan.data.sources import File, read_text, stored
from vqgan.data.split import Split
from vqgan.data.split_names import SPLIT_NAMES, choose_splits, split_word
from vqgan.data.trees import image_tree, split_folders
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_COLUMNS = ("image", "label", "split", "key", *CONDITIONS)


def folder(root: AnyPath) -> dict[str, Split]:
    """Read a folder of images: `train/` and `val/` (also validation, dev, eval, test, …, in any case), or the root.

    Sub-folders are classes, labelled in the order of their sorted names. Maps are in folders beside the images, under
    the same names: `train_segmentation/`, `train_depth/`, `train_pose/`. A list `images.csv` or `images.parquet` in the
    root replaces all of this: its columns are image (path from the root) and, optionally, label (a number or a name),
    split, key, segmentation, depth and pose; further ones may be carried into shards. Without a list, `NAME.txt` beside
    an image is its caption, and the fields of `NAME.json` are columns.

    Raises:
        InputError: the list has no column of images, or a value is missing or invalid.
    """
    for suffix in ("parquet", "csv"):
        path = root / f"images.{suffix}"
        if path.is_file():
            return _listed(root, path)
    return image_tree(split_folders(root) or {"train": root})


def _listed(root: AnyPath, path: AnyPath) -> dict[str, Split]:
    rows = _rows(path)
    names, labels = read_labels(((f"row {number}", row.get("label")) for number, row in enumerate(rows, start=1)), path)
    items: dict[str, list[Item]] = {}
    default = "" if any(row.get("split") for row in rows) else "train"
    for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=1):
        image, split = row.get("image"), split_word(str(row.get("split") or default))
        if not image or not split:
            choices = f"split is {row.get('split')!r}: choose one of {', '.join(SPLIT_NAMES)}"
            raise InputError(f"{path.name}, row {number}: {choices if image else 'image is empty'}")
        conditions: dict[str, Any] = {
            name: File(stored(root / _relative(root, row[name]))) for name in CONDITIONS if row.get(name)
        }
        if not isinstance(image, str):
            raise InputError(
                f"{path.name}, row {number}: image is not a path but {type(image).__name__}: the dataset "
                "huggingface reads tables of images"
            )
        relative, given = _relative(root, image), row.get("key")
        key = make_key(os.path.normpath(relative).lstrip("/") if given in (None, "") else f"{given}.")
        further = Listed({name: value for name, value in row.items() if name not in _COLUMNS})
        items.setdefault(split, []).append(
            Item(key=key, image=File(stored(root / relative)), label=label, conditions=conditions, columns=further)
        )
    chosen = choose_splits({f"{path.name}, split {word}": word for word in items}, root)
    return {split: Split(items[found[0].rpartition(" ")[2]], names) for split, found in chosen.items()}


def _relative(root: AnyPath, path: object) -> str:
    """Return a path of the list, with "/" in place of the "\\" of Windows."""
    text = str(path)
    return text.replace("\\", "/") if "\\" in text and not _is_there(root / text) else text


def _is_there(path: AnyPath) -> bool:
    return path.exists() if isinstance(path, RemotePath) else os.path.lexists(path)


def _rows(path: AnyPath) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv

    from runkit.tables import read_table

    try:
        if path.suffix == ".csv":
            # All columns are text: the key 007 is not the number 7.
            quoting = csv.ParseOptions(newlines_in_values=True)
            content = io.BytesIO(read_text(path).encode())
            names = csv.open_csv(io.BytesIO(content.getvalue()), parse_options=quoting).schema.names
            as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
            table = csv.read_csv(content, parse_options=quoting, convert_options=as_text)
        else:
            table = read_table(path.file if isinstance(path, RemotePath) else path, error=InputError)
        rows: list[dict[str, Any]] = table.to_pylist()
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    further = [name for name in table.column_names if name not in _COLUMNS]
    unknown = [f"unknown column {name!r}, {near}" for name in further if (near := did_you_mean(name, _COLUMNS))]
    twice = [f"column {name!r} occurs twice" for name, count in Counter(table.column_names).items() if count > 1]
    missing = [] if "image" in table.column_names else ["column 'image' is missing"]
    for problem in (*unknown, *twice, *missing):
        raise InputError(f"{path}: {problem}; columns are {', '.join(_COLUMNS)}, and any that are carried along")
    if further:
        log.info("%s: further columns, which can be carried into shards: %s", path, ", ".join(further))
    return rows
