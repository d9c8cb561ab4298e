"""Inspect an image dataset before training: counts, sizes, labels, conditions, bad files, a contact sheet."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagepriors.reports.figures import colorize, picture_grid, png_bytes
from runkit.files import pretty_json
from runkit.folders import check_apart, check_publish, publish
from runkit.names import listed
from runkit.places import as_typed
from runkit.progress import tqdm
from vqgan.config import Geometry, dataset_geometry
from vqgan.data import Sample, Split, open_splits, resolve, sources_of, spread
from vqgan.data.conditions import CONDITIONS
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_THREADS = 4
_NAMED = 20
"""Maximum number of items per list in the text; the JSON has all."""


def inspect_dataset(
    dataset: str, data: Path, out: Path, *, limit: int, shown: int, size: int, geometry: Geometry | None = None
) -> str:
    """Decode samples of each split, write inspection.json and a contact sheet per split, and return a text summary.

    Args:
        dataset: Layout of the data; "auto" recognises it.
        data: Folder or URL of the dataset.
        out: Folder to write.
        limit: Maximum number of samples per split to decode, evenly spaced; 0: all.
        shown: Number of samples on a contact sheet.
        size: Side of the pictures on it, in pixels.
        geometry: How non-square pictures become square; None: as it suits the dataset.

    Raises:
        InputError: the dataset cannot be opened, or a number is out of range.
    """
    for name, value, least in (("limit", limit, 0), ("shown", shown, 1), ("size", size, 8)):
        if value < least:
            raise InputError(f"{name} is {value}: choose {least} or more")
    splits = open_splits(dataset, data)
    dataset = resolve(dataset, data)
    check_apart(out, data=sources_of(splits, data))
    check_publish(out, ["inspection.json"], "inspect")
    shape = geometry or dataset_geometry(dataset)
    facts, lines, files = {}, [f"{as_typed(data)} is read as {dataset}"], dict[str, bytes]()
    for name, split in splits.items():
        found, samples = _inspect_split(name, split, limit, shown, size, shape)
        facts[name] = found
        lines += _as_text(name, found)
        if samples:
            sheet = picture_grid(np.concatenate([_tiles(s) for s in samples]), _columns(samples), scale=1)
            files[f"{name}.png"] = png_bytes(sheet)
            lines.append(f"  contact sheet: {out / f'{name}.png'}")
    files["inspection.json"] = pretty_json({"dataset": dataset, "geometry": shape, "splits": facts})
    publish(out, files, "inspect", last="inspection.json")
    return "\n".join([*lines, f"written to {out / 'inspection.json'}"])


def _inspect_split(
    name: str, split: Split, limit: int, shown: int, size: int, geometry: Geometry
) -> tuple[dict[str, Any], list[Sample]]:
    indices = spread(len(split), limit or len(split))
    sheet = {indices[place] for place in spread(len(indices), shown)}
    samples: list[Sample] = []
    sizes: list[tuple[int, int]] = []
    unreadable: dict[str, str] = {}

    def inspect(index: int) -> tuple[tuple[int, int], Sample] | str:
        conditions = tuple(split.items[index].conditions)
        try:
            return split.image_size(index), split.read(index, size, conditions=conditions, geometry=geometry)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        results = tqdm(
            pool.map(inspect, indices), total=len(indices), desc=f"inspect {name}", unit="image", disable=None
        )
        for index, result in zip(indices, results, strict=True):
            if isinstance(result, str):
                unreadable[split.keys[index]] = result
            else:
                sizes.append(result[0])
                samples += [result[1]] if index in sheet else []
    return {**_counts(split), "checked": len(indices), "unreadable": unreadable, "sizes": _sizes(sizes)}, samples


def _counts(split: Split) -> dict[str, Any]:
    """Facts that are known without decoding."""
    labels = Counter(item.label for item in split.items if item.label is not None)
    names = dict(enumerate(split.class_names))
    with_condition = Counter(name for item in split.items for name in item.conditions)
    return {
        "samples": len(split),
        "unlabelled": len(split) - labels.total(),
        "labels": {names.get(label, str(label)): count for label, count in sorted(labels.items())},
        "empty_classes": [name for label, name in names.items() if label not in labels],
        "conditions": {name: with_condition[name] for name in CONDITIONS if with_condition[name]},
        "label_names": list(split.label_names),
        "without_condition": {
            name: [item.key for item in split.items if name not in item.conditions]
            for name in CONDITIONS
            if 0 < with_condition[name] < len(split)
        },
        "maps_without_image": list(split.strays),
    }


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """Smallest, median and largest width and height in pixels."""
    if not sizes:
        return {}
    widths_heights = np.array(sizes)
    return {
        name: [int(value) for value in (column.min(), np.median(column), column.max())]
        for name, column in (("width", widths_heights[:, 0]), ("height", widths_heights[:, 1]))
    }


def _as_text(name: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"{name}: {found['samples']:,} samples, {found['checked']:,} decoded, {len(found['unreadable'])} unreadable"
    ]
    lines += [
        f"  {side} {low} … {median} … {high} pixels (smallest, median, largest)"
        for side, (low, median, high) in found["sizes"].items()
    ]
    counts = list(found["labels"].values())
    if counts:
        middle = f"{min(counts)} … {int(np.median(counts))} … {max(counts)} samples each"
        lines.append(f"  {len(counts)} classes, {middle}; {found['unlabelled']} samples without a label")
        width = max(len(label) for label in found["labels"])
        often = Counter(found["labels"]).most_common(_NAMED)
        lines += [f"    {label:{width}} {count:>8,} {'█' * round(30 * count / max(counts))}" for label, count in often]
        lines += [f"    … and {len(counts) - _NAMED} more in the JSON"] if len(counts) > _NAMED else []
    for condition, count in found["conditions"].items():
        lines.append(f"  {condition}: {count:,} samples have it, {found['samples'] - count:,} do not")
    if found["label_names"]:
        lines.append(f"  labels of masks: {listed(found['label_names'], _NAMED)}")
    for title, names in (
        ("classes without an image", found["empty_classes"]),
        ("maps without an image", found["maps_without_image"]),
        ("unreadable", list(found["unreadable"].values())),
    ):
        if names:
            lines.append(f"  {len(names)} {title}:")
            lines += [f"    {text}" for text in names[:_NAMED]]
            lines += [f"    … and {len(names) - _NAMED} more in the JSON"] if len(names) > _NAMED else []
    return lines


def _tiles(sample: Sample) -> npt.NDArray[np.uint8]:
    """The picture, and the picture overlaid with each condition."""
    tiles = [sample.image]
    for name in sample.conditions:
        colours = colorize(sample.picture(name)[None])[0]
        # The limbs of a pose are opaque, because they cover little; masks and depth are translucent.
        share = (colours.max(-1, keepdims=True) > 0) * 1.0 if name == "pose" else 0.6
        tiles.append((share * colours + (1 - share) * sample.image).round().astype(np.uint8))
    return np.stack(tiles)


def _columns(samples: Sequence[Sample]) -> int:
    """Tiles per row: about eight, and a whole number of samples."""
    each = max(len(sample.conditions) for sample in samples) + 1
    return each * max(1, 8 // each)
