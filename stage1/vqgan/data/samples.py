"""Items and samples: where the bytes of one sample are, and how they become arrays."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqgan.config import Geometry
from vqgan.data.columns import Columns, ColumnType, typed
from vqgan.data.conditions import DepthMap, read_map
from vqgan.data.geometry import CENTRE, Resampler, View, cut
from vqgan.data.pictures import open_picture, to_rgb, upright_size
from vqgan.data.poses import Keypoints
from vqgan.data.sources import Source
from vqgan.errors import InputError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """The location of one sample. Nothing is read before it is decoded."""

    key: str
    """Key of its rows in shards: unique in its split, without dots."""
    image: Source
    """Bytes of the image."""
    label: int | None = None
    """Index of its class, if it has one."""
    conditions: Mapping[str, Source | Keypoints] = field(default_factory=dict)
    """Name of a condition → its map or keypoints."""
    columns: Columns | None = None
    """Its values of further columns, such as a caption."""

    def labelled(self, label: int | None) -> "Item":
        """Return the item with this label."""
        return replace(self, label=label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One decoded sample. All arrays have the same height and width."""

    key: str
    image: npt.NDArray[np.uint8]
    """[H, W, 3]."""
    label: int | None
    conditions: dict[str, Array]
    """segmentation: uint8 [H, W]; depth: float32 [H, W], in the unit of its map; pose: uint8 [H, W, 3]."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Name of a carried column → its value; None is null."""
    unit_depth: npt.NDArray[np.float32] | None = None
    """Depth from 0, the lowest value of the whole map, to 1, its highest: the input of a depth tokenizer."""

    def picture(self, modality: str) -> Array:
        """Return the array that a tokenizer of `modality` encodes."""
        if modality == "rgb":
            return self.image
        if modality not in self.conditions:
            available = ", ".join(self.conditions) or "none"
            raise InputError(f"sample {self.key!r} has no {modality} (available conditions: {available})")
        return self.conditions[modality] if self.unit_depth is None or modality != "depth" else self.unit_depth


class ReadOptions(TypedDict, total=False):
    """Options of all methods that decode a sample."""

    conditions: Sequence[str]
    """Conditions to decode as well; default: none."""
    columns: Mapping[str, ColumnType]
    """Columns to read as well, each with its type; default: none."""
    geometry: Geometry
    """How an image that is not square becomes one; see `View`. Default: crop."""
    draft: bool
    """Let the JPEG decoder shrink the image by 2, 4 or 8 where it stays larger than required. It is faster on large
    photos, and gives slightly different pixels. Default: False."""
    resampler: Resampler
    """Library that resizes the image. Default: pillow."""
    maps_only: bool
    """Leave the image empty, [0, 0, 3], and read of its file the size alone. Default: False."""


def decode(
    item: Item,
    size: int,
    views: Sequence[View],
    n_labels: int,
    *,
    conditions: Sequence[str] = (),
    columns: Mapping[str, ColumnType] | None = None,
    geometry: Geometry = "crop",
    draft: bool = False,
    resampler: Resampler = "pillow",
    maps_only: bool = False,
) -> list[Sample]:
    """Decode an item once and cut its views; see `Split.read_views`."""
    with open_image(item) as opened:
        full_size = upright_size(opened)
        windows = [view.window(*full_size, geometry) for view in views]
        if draft:
            whole, least = CENTRE.window(*full_size, geometry), -(-size // min(view.scale for view in views))
            shrink = max(1, int(min(whole.width, whole.height) // least))
            opened.draft("RGB", (opened.width // shrink, opened.height // shrink))
        image = None if maps_only else to_rgb(opened)
    if any(view.mirror for view in views):
        check_mirror(item, conditions)
    values = read_columns(item, columns or {})
    maps = {condition: _read_condition(item, condition, full_size, n_labels) for condition in conditions}
    with _attributed(item, item.image.name):
        samples = []
        for view, window in zip(views, windows, strict=True):
            make = functools.partial(
                cut, size=size, window=window, full_size=full_size, mirror=view.mirror, resampler=resampler
            )
            found = {name: make(name, part.unit if isinstance(part, DepthMap) else part) for name, part in maps.items()}
            unit_depth, depth_map = found.get("depth"), maps.get("depth")
            if isinstance(depth_map, DepthMap):
                found["depth"] = depth_map.values(found["depth"])
            sample = Sample(
                key=item.key,
                image=np.empty((0, 0, 3), np.uint8) if image is None else make("image", image),
                label=item.label,
                conditions=found,
                columns=values,
                unit_depth=unit_depth,
            )
            samples.append(sample)
        return samples


def raw_columns(item: Item, names: Sequence[str]) -> Mapping[str, Any]:
    """Return values of an item as they are; a name that it does not have may be missing.

    Raises:
        InputError: They cannot be read.
    """
    with _attributed(item, "columns"):
        return item.columns.read(names) if item.columns and names else {}


def read_columns(item: Item, columns: Mapping[str, ColumnType]) -> dict[str, Any]:
    """Return the values of an item, each of its column's type; None where it has none.

    Raises:
        InputError: They cannot be read, or one is not of the type.
    """
    found, values = raw_columns(item, tuple(columns)), {}
    for name, kind in columns.items():
        try:
            values[name] = typed(found.get(name), kind)
        except ValueError as error:
            raise InputError(f"{item.key}: column {name}: {error}: choose another type, as in {name}:string") from error
    return values


def _read_condition(
    item: Item, condition: str, full_size: tuple[int, int], n_labels: int
) -> Image.Image | DepthMap | npt.NDArray[np.float32]:
    source = item.conditions.get(condition)
    if source is None:
        raise InputError(f"{item.key}: no {condition} for this image")
    with _attributed(item, source.name):
        if isinstance(source, Keypoints):
            return source.joints(full_size)
        return read_map(condition, source, full_size, n_labels)


def check_mirror(item: Item, conditions: Sequence[str], remedy: str = "take no mirrors") -> None:
    """Refuse to mirror a drawn pose, whose colours distinguish left from right."""
    pose = item.conditions.get("pose") if "pose" in conditions else None
    if pose is not None and not isinstance(pose, Keypoints):
        raise InputError(
            f"{item.key}: {pose.name}: a drawn pose cannot be mirrored, because its colours say which limbs are left "
            f"and which right: {remedy}, or give keypoints"
        )


@contextlib.contextmanager
def _attributed(item: Item, name: str) -> Iterator[None]:
    """Attribute every error in the block to one file of one sample, so that it costs that sample alone.

    Decoders raise any exception on broken files. Only a lack of memory is not the sample's fault; its message names the
    sample all the same.
    """
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{item.key}: {name}: {str(error) or 'out of memory'}") from error
    except Exception as error:
        raise InputError(f"{item.key}: {name}: {str(error) or repr(error)}") from error


@contextlib.contextmanager
def open_image(item: Item) -> Iterator[Image.Image]:
    """Open the image of an item; errors in the block are attributed to it."""
    with _attributed(item, item.image.name), item.image.open() as file, open_picture(file) as opened:
        yield opened
