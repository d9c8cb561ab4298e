"""`webdataset`: tar shards of images, read in place."""

import logging
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runkit.jsonfiles import parse_json
from vqgan.datasets.archives import tar_members
from vqgan.datasets.base import Item, Split
from vqgan.datasets.files import IMAGE_SUFFIXES, MAP_SUFFIXES, Source, files_of_splits, make_key
from vqgan.datasets.labels import read_labels
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_CONDITIONS = {"seg": "segmentation", "segmentation": "segmentation", "depth": "depth", "pose": "pose"}
_IMAGE_NAMES = ("", "image", "img", "input", "rgb")
"""What may stand before the suffix of the image (`KEY.jpg`, `KEY.input.jpg`); the first of these that a sample has."""


def webdataset(root: Path) -> dict[str, Split]:
    """Tar shards whose name or folder tells the split (`train-000000.tar`, `val/000.tar`), all train where none does.

    Of a sample `KEY.*`, whose members may be anywhere in the tar: the image (`.jpg`, `.input.jpg`, …), the label
    (`.cls` as a number or a word, or "label" or "cls" in `.json`) and maps as `.segmentation.png` or `.seg.png`,
    `.depth.png` or `.depth.npy`, `.pose.png`. Keys are unique over all shards of a split. The tars must not be
    compressed: samples are read by their place in the file.

    Raises:
        InputError: a shard is not a tar, a member stands there twice, which picture is the image is not clear, or a
            label is neither a number nor a word.
    """
    found = {
        split: [sample for path in paths for sample in _samples(root / path)]
        for split, paths in files_of_splits(root, {".tar"}).items()
    }
    names, labels = read_labels(((item.key, value) for samples in found.values() for item, value in samples), root)
    of_each = iter(labels)
    return {
        split: Split([replace(item, label=next(of_each)) for item, _ in samples], names)
        for split, samples in found.items()
    }


def _samples(path: Path) -> Iterator[tuple[Item, Any]]:
    """The samples of a tar, each with what it gives as label."""
    samples: dict[str, dict[str, Source]] = {}
    for name, source in tar_members(path):
        base, extension = _divide(name)
        parts = samples.setdefault(base, {})
        if extension in parts:
            raise InputError(f"{path}: {name} stands there twice: remove one, or rename it")
        parts[extension] = source
    imageless = []
    for base, parts in samples.items():
        image = _image_of(path, base, parts)
        if image is None:
            imageless.append(base)
            continue
        conditions: dict[str, Any] = {
            _CONDITIONS[name]: source
            for extension, source in parts.items()
            for name, suffix in [_named(extension)]
            if name in _CONDITIONS and (suffix in MAP_SUFFIXES or name == "pose")
        }
        yield Item(key=make_key(f"{base}."), image=parts[image], conditions=conditions), _label(path, base, parts)
    if imageless:
        log.warning("%s: %d samples without an image are left out, such as %s", path, len(imageless), imageless[0])


def _divide(name: str) -> tuple[str, str]:
    """A member's name at the first dot of its last part."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _named(extension: str) -> tuple[str, str]:
    """("depth", ".png") of "depth.png", ("", ".jpg") of "jpg"."""
    name, _, suffix = extension.rpartition(".")
    return name, f".{suffix}"


def _image_of(path: Path, base: str, parts: dict[str, Source]) -> str | None:
    """Extension of the member that is the image."""
    pictures = [extension for extension in parts if _named(extension)[1] in IMAGE_SUFFIXES]
    choices = [extension for extension in pictures if _named(extension)[0] not in _CONDITIONS]
    for name in _IMAGE_NAMES:
        named = [extension for extension in choices if _named(extension)[0] == name]
        choices = named or choices
    if len(choices) > 1:
        raise InputError(
            f"{path}: {base} has pictures .{' and .'.join(sorted(choices))}, and it is not clear which is the image: "
            f"name it .jpg or .input.jpg alone, and maps .segmentation.png, .depth.png or .pose.png"
        )
    return choices[0] if choices else None


def _label(path: Path, base: str, parts: dict[str, Source]) -> Any:
    try:
        if "cls" in parts:
            with parts["cls"].open() as file:
                return file.read().decode()
        if "json" not in parts:
            return None
        with parts["json"].open() as file:
            content = parse_json(file.read(), base)
        return content.get("label", content.get("cls")) if isinstance(content, dict) else None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: label of {base} cannot be read: {error}") from error
