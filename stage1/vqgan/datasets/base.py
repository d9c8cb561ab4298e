"""The dataset interface: items (where bytes lie), samples (pixels), views (geometry), splits (sequences of samples)."""

import contextlib
import copy
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from runkit.retries import patient
from vqgan.datasets.conditions import Keypoints, draw_pose, read_map
from vqgan.datasets.pictures import open_picture, upright, upright_size
from vqgan.errors import InputError

if TYPE_CHECKING:
    from vqgan.datasets.files import Source

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
_TRIES = 10
"""Unreadable samples in a row before training gives up: one bad file is bad luck, ten are a wrong folder."""
_STATS = 4096
"""Items whose sizes one thread looks up at a time."""


class View(NamedTuple):
    """A square window of an image, and whether it is mirrored."""

    scale: float = 1.0
    """Side of the window as a share of the shorter side."""
    x: float = 0.5
    """Place from 0 (left) to 1 (right)."""
    y: float = 0.5
    """Place from 0 (top) to 1 (bottom)."""
    mirror: bool = False
    within_centre: bool = False
    """Whether x and y place the window within the image's centre square instead of the whole image."""

    def box(self, width: int, height: int) -> tuple[int, int, int]:
        """Left, top and side in pixels of an image of this size."""
        shorter = min(width, height)
        side = max(1, int(shorter * self.scale))
        outer_width, outer_height = (shorter, shorter) if self.within_centre else (width, height)
        left = (width - outer_width) // 2 + int((outer_width - side) * self.x)
        return left, (height - outer_height) // 2 + int((outer_height - side) * self.y), side


CENTRE = View()
CROP_RANGE = 1.1
"""Side of the square from which the five crops are cut over the side of a crop, as LlamaGen's extraction has it."""


def views_of(count: int) -> tuple[View, ...]:
    """The first views of a sample: the centre square, its mirror, then the ten-crop (each crop before its mirror).

    Args:
        count: 1, 2 or 12. Odd views are mirrors of the view before.
    """
    corners = [(0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    windows = [CENTRE, *(View(1 / CROP_RANGE, x, y, within_centre=True) for x, y in corners)]
    return tuple(window._replace(mirror=mirror) for window in windows for mirror in (False, True))[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Where one sample lies."""

    key: str
    image: "Source"
    label: int | None = None
    conditions: "dict[str, Source | Keypoints]" = field(default_factory=dict)
    """Condition's name → its map, or keypoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One decoded sample. All arrays have the same height and width."""

    key: str
    image: npt.NDArray[np.uint8]
    """[H, W, 3]."""
    label: int | None
    conditions: dict[str, Array]
    """segmentation uint8 [H, W]; depth float32 [H, W]; pose uint8 [H, W, 3]."""

    def picture(self, modality: str) -> Array:
        """The array that a tokenizer of `modality` encodes."""
        if modality == "rgb":
            return self.image
        if modality not in self.conditions:
            have = ", ".join(self.conditions) or "none"
            raise InputError(f"sample {self.key!r} has no {modality} (conditions there: {have})")
        return self.conditions[modality]


class Split:
    """A sequence of samples. Keys are unique and dot-free; a bad file raises InputError for that sample alone."""

    def __init__(
        self, items: Iterable[Item], class_names: Sequence[str] = (), *, n_labels: int = 256, strays: Sequence[str] = ()
    ) -> None:
        """Check the keys.

        Args:
            items: Where the samples lie.
            class_names: Name of each label.
            n_labels: Labels that a mask may hold, 0 … n_labels - 1.
            strays: Condition files that belong to no image.
        """
        self.items = list(items)
        self.class_names = tuple(class_names)
        self.n_labels = n_labels
        self.strays = tuple(strays)
        self.keys = [item.key for item in self.items]
        if len(set(self.keys)) < len(self.keys):
            key = next(key for key, count in Counter(self.keys).items() if count > 1)
            names = " and ".join(item.image.name for item in self.items if item.key == key)
            raise InputError(f"{names} share the key {key!r} (a path without its suffix): rename or remove one of them")
        for key in self.keys:
            if not key.isascii() and any("\ud800" <= letter <= "\udfff" for letter in key):
                raise InputError(f"{key!a}: this name is not UTF-8, which shards cannot hold: rename the file (convmv)")

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, indices: Iterable[int]) -> "Split":
        """The split with these samples alone, in this order."""
        return Split([self.items[index] for index in indices], self.class_names, n_labels=self.n_labels)

    def having(self, condition: str) -> "Split":
        """The samples that have this condition.

        Raises:
            InputError: none has it.
        """
        indices = [index for index, item in enumerate(self.items) if condition in item.conditions]
        if not indices:
            raise InputError(f"no sample has {condition}: choose another dataset, or make maps with `annotate`")
        return self if len(indices) == len(self) else self.subset(indices)

    def within(self, n_labels: int) -> "Split":
        """The same samples, of which one whose mask has a label that is not below `n_labels` cannot be read."""
        found = copy.copy(self)
        found.n_labels = min(self.n_labels, n_labels)
        return found

    @patient
    def image_size(self, index: int) -> tuple[int, int]:
        """Width and height of image `index` in pixels, upright, from its header.

        Raises:
            InputError: it is not an image.
        """
        with _opened(self.items[index]) as image:
            return upright_size(image)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that every sample of this split has."""
        first = self.items[0].conditions if self.items else {}
        return tuple(name for name in first if all(name in item.conditions for item in self.items))

    def source_hash(self) -> str:
        """Sha256 over the keys, labels and byte sizes of the source list: what decides which rows exist."""
        digest = hashlib.sha256()
        chunks = (self.items[start : start + _STATS] for start in range(0, len(self.items), _STATS))
        with ThreadPoolExecutor(16) as pool:  # a file's size costs a round trip where files lie on a network
            for text in pool.map(_source_lines, chunks):
                digest.update(text)
        return digest.hexdigest()

    def read(self, index: int, size: int, *, conditions: Sequence[str] = (), view: View = CENTRE) -> Sample:
        """Decode sample `index`: one square window of it resized to `size` pixels; see `read_views`."""
        return self.read_views(index, size, (view,), conditions=conditions)[0]

    @patient
    def read_views(
        self, index: int, size: int, views: Sequence[View], *, conditions: Sequence[str] = (), draft: bool = False
    ) -> list[Sample]:
        """Decode sample `index` once and cut its views, each resized to `size` pixels.

        The view CENTRE is the centre square: the shorter side becomes `size` pixels. Images are resized bicubic, depth
        bilinear, masks nearest; keypoints are moved with the image and drawn afterwards, a mirror swaps left and right
        joints. EXIF orientation is honoured, of maps too; alpha composes onto white, 16-bit grey keeps its high byte,
        palettes and CMYK become RGB by Pillow's rules.

        Args:
            index: Which sample.
            size: Side of the pictures, in pixels.
            views: The windows.
            conditions: Conditions to read as well.
            draft: Let the JPEG decoder shrink the image by 2, 4 or 8 where it stays larger than needed: faster on
                large photos, and slightly other pixels.

        Raises:
            InputError: the image cannot be decoded, or a condition is missing, broken or does not fit the image.
        """
        item = self.items[index]
        with _opened(item) as opened:
            full_size = upright_size(opened)
            if draft:
                least = -(-size // min(view.scale for view in views))
                opened.draft("RGB", (int(least), int(least)))
            image = _to_rgb(upright(opened))
        maps = {condition: self._read_map(item, condition, full_size) for condition in conditions}
        with _blaming(item, item.image.name):
            return [
                Sample(
                    key=item.key,
                    image=_cut(image, size, view, full_size, Image.Resampling.BICUBIC),
                    label=item.label,
                    conditions={condition: _cut_map(part, size, view, full_size) for condition, part in maps.items()},
                )
                for view in views
            ]

    def _read_map(
        self, item: Item, condition: str, full_size: tuple[int, int]
    ) -> Image.Image | npt.NDArray[np.float32]:
        source = item.conditions.get(condition)
        if source is None:
            raise InputError(f"{item.key}: no {condition} for this image")
        with _blaming(item, source.name):
            if isinstance(source, Keypoints):
                return source.joints(full_size)
            return read_map(condition, source, full_size, self.n_labels)

    @patient
    def read_whole(self, index: int) -> npt.NDArray[np.uint8]:
        """The whole picture of sample `index`, upright, in its own size: uint8 [H, W, 3], colours as in `read_views`.

        Raises:
            InputError: the image cannot be decoded.
        """
        with _opened(self.items[index]) as image:
            return np.array(_to_rgb(upright(image)))

    def read_good(self, index: int, size: int, *, conditions: Sequence[str] = (), view: View = CENTRE) -> Sample:
        """Sample `index`, or where it cannot be read the next one that can, with a warning: training goes on.

        Raises:
            InputError: ten samples in a row cannot be read.
        """
        for place in range(index, index + _TRIES):
            try:
                return self.read(place % len(self), size, conditions=conditions, view=view)
            except InputError as error:
                last = error
                log.warning("left out, the next sample takes its place: %s", error)
        raise InputError(f"{_TRIES} samples in a row cannot be read (the last: {last})")


def _source_lines(items: Sequence[Item]) -> bytes:
    return "".join(f"{item.key}\t{item.label}\t{item.image.nbytes()}\n" for item in items).encode()


@contextlib.contextmanager
def _blaming(item: Item, name: str) -> Iterator[None]:
    """Put down what goes wrong in the block to one file of one sample, so that it costs that sample alone.

    Decoders raise anything on broken files. Only memory that the machine lacks is no fault of the sample's; that error
    names it all the same.
    """
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{item.key}: {name}: {str(error) or 'out of memory'}") from error
    except Exception as error:
        raise InputError(f"{item.key}: {name}: {str(error) or repr(error)}") from error


@contextlib.contextmanager
def _opened(item: Item) -> Iterator[Image.Image]:
    """The item's image; what goes wrong in the block is put down to it."""
    with _blaming(item, item.image.name), item.image.open() as file, open_picture(file) as opened:
        yield opened


def spread(total: int, count: int) -> list[int]:
    """`count` indices evenly over 0 … total - 1, or all of them: splits are sorted by class, so the first are alike."""
    indices: list[int] = np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()
    return indices


def hold_out(split: Split) -> dict[str, Split]:
    """Divide one split: keys whose hash falls into a twentieth go to val, at least the one of the smallest hash."""
    if len(split) < 2:
        raise InputError(f"{len(split)} image is too few to hold out a validation split: add images")
    hashes = [int(hashlib.sha256(key.encode()).hexdigest(), 16) for key in split.keys]
    limit = max(2**256 // 20, min(hashes) + 1)
    return {
        name: Split(
            [item for item, value in zip(split.items, hashes, strict=True) if (value < limit) == is_val],
            split.class_names,
            n_labels=split.n_labels,
            strays=() if is_val else split.strays,
        )
        for name, is_val in (("train", False), ("val", True))
    }


def _cut(image: Image.Image, size: int, view: View, full_size: tuple[int, int], how: Image.Resampling) -> Array:
    """A view of an image, whose pixels may be coarser than `full_size` after a draft."""
    left, top, side = view.box(*full_size)
    if image.size != (size, size) or side < min(full_size):
        across, down = image.width / full_size[0], image.height / full_size[1]
        # One resampling of the window: the same picture as resize-then-crop, without rounding the long side.
        box = (left * across, top * down, (left + side) * across, (top + side) * down)
        image = image.resize((size, size), how, box=box)
    if view.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _cut_map(part: Image.Image | npt.NDArray[np.float32], size: int, view: View, full_size: tuple[int, int]) -> Array:
    if isinstance(part, Image.Image):
        nearest = part.mode in ("L", "P")
        how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        return _cut(part, size, view, full_size, how)
    left, top, side = view.box(*full_size)
    return np.array(draw_pose(part, (left, top, side), size, mirror=view.mirror))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
