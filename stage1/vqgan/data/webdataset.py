"""Reader `webdataset`: tar shards of images, read in place."""

import functools
import logging
import posixpath
from collections.abc import Iterator
from itertools import chain
from typing import Any

from runkit.jsonfiles import parse_json
from runkit.remote import AnyPath
from vqgan.data.archives import Contents, tar_members
from vqgan.data.columns import Beside
from vqgan.data.files import IMAGE_SUFFIXES, MAP_SUFFIXES, find_files, make_key, read_each
from vqgan.data.items import collect_labelled, keys_of, with_labels
from vqgan.data.labels import read_labels
from vqgan.data.samples import Item
from vqgan.data.sources import Source
from vqgan.data.split import Split
from vqgan.data.split_names import by_split
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_CONDITIONS = {"seg": "segmentation", "segmentation": "segmentation", "depth": "depth", "pose": "pose"}
_IMAGE_NAMES = ("", "image", "img", "input", "rgb")
"""Names before the suffix of the image (`KEY.jpg`, `KEY.input.jpg`); the first that a sample has is read."""


def webdataset(root: AnyPath) -> dict[str, Split]:
    """Read tar shards; a split is named by the file or its folder (`train-000000.tar`, `val/000.tar`).

    Without such a name all shards are train. The members of a sample, `KEY.*`, may be anywhere in the tar: the image
    (`.jpg`, `.input.jpg`, …), the label (`.cls` as a number or a word, or "label" or "cls" in `.json`) and maps as
    `.segmentation.png` or `.seg.png`, `.depth.png` or `.depth.npy`, `.pose.png`. Columns are the fields of `.json`, and
    `.txt` is the caption. Keys are unique over all shards of a
    split. The tars must not be compressed, because samples are read in place.

    Raises:
        InputError: a shard is not a tar, a member occurs twice, the image of a sample is ambiguous, or a label is
            neither a number nor a word.
    """
    found = {
        split: collect_labelled(chain.from_iterable(read_each(_samples, [root / path for path in paths])))
        for split, paths in by_split(find_files(root, {".tar"}, count_others=True), root).items()
    }
    listed = (zip(keys_of(items), values, strict=True) for items, values in found.values())
    names, labels = read_labels(chain.from_iterable(listed), root)
    return {split: Split(with_labels(items, labels), names) for split, (items, _) in found.items()}


def _samples(path: AnyPath) -> Iterator[tuple[Item, Any]]:
    """Yield the samples of a tar, each with the value of its label."""
    samples: dict[str, dict[str, Source]] = {}
    contents = Contents(".cls", ".json")
    for name, source in tar_members(path, contents):
        base, extension = _divide(name)
        parts = samples.setdefault(base, {})
        if extension in parts:
            raise InputError(f"{path}: {name} occurs twice: remove one, or rename it")
        parts[extension] = source
    imageless = []
    for base, parts in samples.items():
        images, maps = _roles(tuple(parts))
        if len(images) > 1:
            raise InputError(
                f"{path}: {base} has pictures .{' and .'.join(sorted(images))}, and which one is the image is "
                f"ambiguous: name it .jpg or .input.jpg, and maps .segmentation.png, .depth.png or .pose.png"
            )
        if not images:
            imageless.append(base)
            continue
        conditions: dict[str, Any] = {condition: parts[extension] for condition, extension in maps}
        text, about = parts.get("txt"), parts.get("json")
        columns = Beside(text, about) if text or about else None
        item = Item(key=make_key(f"{base}."), image=parts[images[0]], conditions=conditions, columns=columns)
        yield item, _label(path, base, parts, contents)
    if not samples:
        log.warning("%s has no member", path)
    if imageless:
        log.warning("%s: %d samples without an image are left out, such as %s", path, len(imageless), imageless[0])


def _divide(name: str) -> tuple[str, str]:
    """Divide the name of a member at the first dot of its last part."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _named(extension: str) -> tuple[str, str]:
    """Divide an extension: "depth.png" is ("depth", ".png"), "jpg" is ("", ".jpg")."""
    name, _, suffix = extension.rpartition(".")
    return name, f".{suffix}"


@functools.lru_cache(maxsize=1024)
def _roles(extensions: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the extensions of members that may be the image of a sample, and (condition, extension) of its maps."""
    named = {extension: _named(extension) for extension in extensions}
    choices = [
        extension for extension, (name, suffix) in named.items() if suffix in IMAGE_SUFFIXES and name not in _CONDITIONS
    ]
    for wanted in _IMAGE_NAMES:
        choices = [extension for extension in choices if named[extension][0] == wanted] or choices
    maps = [
        (_CONDITIONS[name], extension)
        for extension, (name, suffix) in named.items()
        if name in _CONDITIONS and suffix in (IMAGE_SUFFIXES if name == "pose" else MAP_SUFFIXES)
    ]
    return choices, maps


def _label(path: AnyPath, base: str, parts: dict[str, Source], contents: Contents) -> Any:
    try:
        if "cls" in parts:
            with contents.open(parts["cls"]) as file:
                return file.read().decode("utf-8-sig")
        if "json" not in parts:
            return None
        with contents.open(parts["json"]) as file:
            content = parse_json(file.read(), base)
        found = [content.get(name) for name in ("label", "cls")] if isinstance(content, dict) else []
        return next((value for value in found if value is not None), None)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: label of {base} cannot be read: {error}") from error
