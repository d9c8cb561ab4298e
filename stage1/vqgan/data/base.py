"""The dataset interface: items (where bytes lie), samples (pixels), splits (sequences of samples)."""

import contextlib
import copy
import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from runkit.retries import patient
from vqgan.config import Geometry
from vqgan.data.conditions import DepthMap, Keypoints, read_map
from vqgan.data.geometry import CENTRE, View, cut
from vqgan.data.pictures import open_picture, to_rgb, upright_size
from vqgan.errors import InputError

if TYPE_CHECKING:
    from vqgan.data.files import Source

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
_TRIES = 10
"""Unreadable samples in a row before training gives up: one bad file is bad luck, ten are a wrong folder."""
_STATS = 4096
"""Items whose sizes one thread looks up at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Where one sample lies."""

    key: str
    image: "Source"
    label: int | None = None
    conditions: "dict[str, Source | Keypoints]" = field(default_factory=dict)
    """Condition's name → its map, or keypoints."""

    def labelled(self, label: int | None) -> "Item":
        """The item with this label."""
        return Item(key=self.key, image=self.image, label=label, conditions=self.conditions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One decoded sample. All arrays have the same height and width."""

    key: str
    image: npt.NDArray[np.uint8]
    """[H, W, 3]."""
    label: int | None
    conditions: dict[str, Array]
    """segmentation uint8 [H, W]; depth float32 [H, W] as its map has it; pose uint8 [H, W, 3]."""
    unit_depth: npt.NDArray[np.float32] | None = None
    """The depth from 0, the lowest value of its whole map, to 1, the highest: what a tokenizer of depth encodes."""

    def picture(self, modality: str) -> Array:
        """The array that a tokenizer of `modality` encodes."""
        if modality == "rgb":
            return self.image
        if modality not in self.conditions:
            have = ", ".join(self.conditions) or "none"
            raise InputError(f"sample {self.key!r} has no {modality} (conditions there: {have})")
        return self.conditions[modality] if self.unit_depth is None or modality != "depth" else self.unit_depth


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

    def read(
        self,
        index: int,
        size: int,
        *,
        conditions: Sequence[str] = (),
        view: View = CENTRE,
        geometry: Geometry = "crop",
    ) -> Sample:
        """Decode sample `index`: one window of it resized to `size` pixels; see `read_views`."""
        return self.read_views(index, size, (view,), conditions=conditions, geometry=geometry)[0]

    @patient
    def read_views(
        self,
        index: int,
        size: int,
        views: Sequence[View],
        *,
        conditions: Sequence[str] = (),
        geometry: Geometry = "crop",
        draft: bool = False,
    ) -> list[Sample]:
        """Decode sample `index` once and cut its views, each resized to `size` × `size` pixels.

        The view CENTRE is the whole picture as its geometry has it: of crop the centre square, of pad and stretch all
        of it. Images are resized bicubic, depth bilinear, masks nearest; keypoints are moved with the image and drawn
        afterwards, a mirror swaps left and right joints. What a window has beyond the image is white, label 0, depth 0
        and without limbs. Depth is stretched to [0, 1] over the whole map, before it is cut. EXIF orientation is
        honoured, of maps too; colours are as `to_rgb` has them.

        Args:
            index: Which sample.
            size: Side of the pictures, in pixels.
            views: The windows.
            conditions: Conditions to read as well.
            geometry: How a picture that is not square becomes one; see `View`.
            draft: Let the JPEG decoder shrink the image by 2, 4 or 8 where it stays larger than needed: faster on
                large photos, and slightly other pixels.

        Raises:
            InputError: the image cannot be decoded, or a condition is missing, broken or does not fit the image, or is
                a drawn pose and a view is a mirror.
        """
        item = self.items[index]
        with _opened(item) as opened:
            full_size = upright_size(opened)
            windows = [view.window(*full_size, geometry) for view in views]
            if draft:
                whole, least = CENTRE.window(*full_size, geometry), -(-size // min(view.scale for view in views))
                shrink = max(1, int(min(whole.width, whole.height) // least))
                opened.draft("RGB", (opened.width // shrink, opened.height // shrink))
            image = to_rgb(opened)
        if any(view.mirror for view in views):
            _check_mirror(item, conditions)
        maps: dict[str, Any] = {condition: self._read_map(item, condition, full_size) for condition in conditions}
        with _blaming(item, item.image.name):
            samples = []
            for view, window in zip(views, windows, strict=True):
                make = functools.partial(cut, size=size, window=window, full_size=full_size, mirror=view.mirror)
                found = {
                    name: make(name, part.unit if isinstance(part, DepthMap) else part) for name, part in maps.items()
                }
                unit_depth = found.get("depth")
                if unit_depth is not None:
                    found["depth"] = maps["depth"].values(unit_depth)
                image_HWC = make("image", image)
                samples.append(
                    Sample(key=item.key, image=image_HWC, label=item.label, conditions=found, unit_depth=unit_depth)
                )
            return samples

    def check_mirror(self, conditions: Sequence[str], remedy: str) -> None:
        """Make sure that these conditions can be mirrored; call it before the work.

        Args:
            conditions: Conditions that are read.
            remedy: What to do instead.

        Raises:
            InputError: a pose is a drawn picture, whose colours say left and right.
        """
        for item in self.items if "pose" in conditions else ():
            _check_mirror(item, conditions, remedy)

    def _read_map(
        self, item: Item, condition: str, full_size: tuple[int, int]
    ) -> Image.Image | DepthMap | npt.NDArray[np.float32]:
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
            return np.array(to_rgb(image))

    def read_good(
        self,
        index: int,
        size: int,
        *,
        conditions: Sequence[str] = (),
        view: View = CENTRE,
        geometry: Geometry = "crop",
    ) -> Sample:
        """Sample `index`, or where it cannot be read the next one that can, with a warning: training goes on.

        Raises:
            InputError: ten samples in a row cannot be read.
        """
        for place in range(index, index + _TRIES):
            try:
                return self.read(place % len(self), size, conditions=conditions, view=view, geometry=geometry)
            except InputError as error:
                last = error
                log.warning("left out, the next sample takes its place: %s", error)
        raise InputError(f"{_TRIES} samples in a row cannot be read (the last: {last})")


def _check_mirror(item: Item, conditions: Sequence[str], remedy: str = "take no mirrors") -> None:
    pose = item.conditions.get("pose") if "pose" in conditions else None
    if pose is not None and not isinstance(pose, Keypoints):
        raise InputError(
            f"{item.key}: {pose.name}: a drawn pose cannot be mirrored, because its colours say which limbs are left "
            f"and which right: {remedy}, or give keypoints"
        )


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
