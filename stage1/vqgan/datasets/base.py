"""The dataset interface: items (paths), samples (pixels), splits (sequences of samples)."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vqgan.datasets.conditions import read_condition
from vqgan.errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
Array = npt.NDArray[Any]
Window = tuple[float, float, float]
"""A square window: its side as a share of the shorter side, and its place from 0 (left, top) to 1 (right, bottom)."""
CENTRE: Window = (1.0, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Where one sample lies on disk."""

    key: str
    image: Path
    label: int | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    """Condition name → what its reader wants: a path, or keypoints."""


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

    def __init__(self, items: Iterable[Item], class_names: Sequence[str] = ()) -> None:
        self.items = list(items)
        self.class_names = tuple(class_names)
        self.keys = [item.key for item in self.items]
        if len(set(self.keys)) < len(self.keys):
            seen: set[str] = set()
            double = next(key for key in self.keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InputError(f"two images share the key {double!r}: rename one of them")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that every sample of this split has."""
        first = self.items[0].conditions if self.items else {}
        return tuple(name for name in first if all(name in item.conditions for item in self.items))

    def source_hash(self) -> str:
        """Sha256 over the keys, labels and byte sizes of the source list: what decides which rows exist."""
        digest = hashlib.sha256()
        for item in self.items:
            size = item.image.stat().st_size if item.image.exists() else -1
            digest.update(f"{item.key}\t{item.label}\t{size}\n".encode())
        return digest.hexdigest()

    def read(
        self,
        index: int,
        size: int,
        *,
        mirror: bool = False,
        conditions: Sequence[str] = (),
        window: Window = CENTRE,
    ) -> Sample:
        """Decode sample `index`: a square window of it resized to `size` pixels, mirrored if asked.

        The default window is the centre square, so the shorter side becomes `size` pixels. Image bicubic, masks
        nearest, depth bilinear. EXIF orientation is honoured, alpha composes onto white.

        Raises:
            InputError: the file cannot be decoded, or a condition is missing or does not fit the image.
        """
        item = self.items[index]
        try:
            with Image.open(item.image) as opened:
                image = _to_rgb(ImageOps.exif_transpose(opened))
            parts = {name: read_condition(name, item.conditions[name], image.size) for name in conditions}
        except KeyError as error:
            raise InputError(f"{item.key}: no {error.args[0]} for this image") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{item.key}: {item.image.name}: {error}") from error
        resamplings = {"segmentation": Image.Resampling.NEAREST, "depth": Image.Resampling.BILINEAR}
        arrays = {
            name: resize_crop(part, size, resamplings.get(name, Image.Resampling.BICUBIC), mirror, window)
            for name, part in parts.items()
        }
        pixels = resize_crop(image, size, Image.Resampling.BICUBIC, mirror, window)
        return Sample(key=item.key, image=pixels, label=item.label, conditions=arrays)


def spread(total: int, count: int) -> list[int]:
    """`count` indices evenly over 0 … total - 1, or all of them: splits are sorted by class, so the first are alike."""
    indices: list[int] = np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()
    return indices


def resize_crop(
    image: Image.Image, size: int, resampling: Image.Resampling, mirror: bool, window: Window = CENTRE
) -> Array:
    """Cut a square window out of the image and resize it to `size` pixels."""
    width, height = image.size
    scale, x, y = window
    if (width, height) != (size, size) or scale < 1.0:
        side = max(1, int(min(width, height) * scale))
        left, top = int((width - side) * x), int((height - side) * y)
        # One resampling of the window: the same picture as resize-then-crop, without rounding the long side.
        image = image.resize((size, size), resampling, box=(left, top, left + side, top + side))
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def make_key(path: Path) -> str:
    """A relative path without its suffix as a shard key: separators become "/", dots and odd bytes "_"."""
    return re.sub(r"[^\w/+-]", "_", path.with_suffix("").as_posix())


def find_images(folder: Path) -> list[Path]:
    """All images below `folder`, relative to it, in sorted order."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path.relative_to(folder) for path in found)


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
        )
        for name, is_val in (("train", False), ("val", True))
    }
