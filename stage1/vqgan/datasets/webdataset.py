"""`webdataset`: tar shards of images, read in place."""

import posixpath
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from runkit.jsonfiles import parse_json
from vqgan.datasets.base import Item, Split
from vqgan.datasets.files import (
    IMAGE_SUFFIXES,
    MAP_SUFFIXES,
    Source,
    check_label,
    files_of_splits,
    make_key,
    tar_members,
)
from vqgan.errors import InputError

_CONDITIONS = {"seg": "segmentation", "segmentation": "segmentation", "depth": "depth", "pose": "pose"}


def webdataset(root: Path) -> dict[str, Split]:
    """Tar shards whose name or folder tells the split (`train-000000.tar`, `val/000.tar`; otherwise train).

    Of a sample `KEY.*`: the image (jpg, jpeg, png, webp, bmp), the label (`.cls` as a number, or "label" or "cls" in
    `.json`) and maps as `.segmentation.png` or `.seg.png`, `.depth.png` or `.depth.npy`, `.pose.png`. Keys are unique
    over all shards of a split. The tars must not be compressed: samples are read by their place in the file.

    Raises:
        InputError: a shard is not a tar, or a label is not a number.
    """
    splits = {
        split: [item for path in paths for item in _samples(root / path)]
        for split, paths in files_of_splits(root, {".tar"}).items()
    }
    return {split: Split(found, _names(found)) for split, found in splits.items()}


def _names(items: list[Item]) -> list[str]:
    return [
        str(label) for label in range(max((item.label for item in items if item.label is not None), default=-1) + 1)
    ]


def _samples(path: Path) -> Iterator[Item]:
    members = ((*_divide(name), blob) for name, blob in tar_members(path))
    for base, group in groupby(members, key=lambda member: member[0]):
        parts: dict[str, Source] = {extension: blob for _, extension, blob in group}
        images = [extension for extension in parts if f".{extension}" in IMAGE_SUFFIXES]
        conditions: dict[str, Any] = {
            _CONDITIONS[name]: blob
            for extension, blob in parts.items()
            for name, _, suffix in [extension.rpartition(".")]
            if name in _CONDITIONS and (f".{suffix}" in MAP_SUFFIXES or name == "pose")
        }
        if images:
            label = _label(path, base, parts)
            yield Item(key=make_key(f"{base}."), image=parts[images[0]], label=label, conditions=conditions)


def _divide(name: str) -> tuple[str, str]:
    """A member's name at the first dot of its last part."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem).removeprefix("./"), extension.lower()


def _label(path: Path, base: str, parts: dict[str, Source]) -> int | None:
    value: Any = None
    try:
        if "cls" in parts:
            with parts["cls"].open() as file:
                value = file.read().decode()
        elif "json" in parts:
            with parts["json"].open() as file:
                content = parse_json(file.read(), base)
            value = content.get("label", content.get("cls"))
        return None if value is None else check_label(int(value))
    except (ValueError, AttributeError, TypeError, OverflowError, OSError) as error:
        raise InputError(f"{path}: label of {base} is {value!r}: wanted a number ({error})") from error
