"""How images become square: the windows that are cut from an image and from its conditions."""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqgan.config import Geometry
from vqgan.data.poses import draw_pose

Array = npt.NDArray[Any]
Resampler = Literal["pillow", "torch"]
"""Library that resizes images, bicubic and antialiased in both. Their pixels differ by a fraction of a grey level on
average; torch is faster where it has kernels for the CPU, and may round differently on another CPU."""
_RESIZED = {
    "image": (Image.Resampling.BICUBIC, 255),
    "segmentation": (Image.Resampling.NEAREST, 0),
    "depth": (Image.Resampling.BILINEAR, 0),
    "pose": (Image.Resampling.BILINEAR, 0),
}
"""Resampling of each, and its value beyond the image: white, as behind transparency; the label unlabelled; the lowest
depth, which most maps give the farthest point; and no limb."""


class Window(NamedTuple):
    """A rectangle of an image in pixels, which becomes a square picture; it may extend beyond the image."""

    left: int
    top: int
    width: int
    height: int

    def inside(self, image_size: tuple[int, int], size: int) -> tuple[list[int], list[int]]:
        """Return the part of the window within the image, and its place in a picture of `size` × `size` pixels.

        Returns:
            Left, top, right, bottom of the part in pixels of the image, and of its place in pixels of the picture.
        """
        part, place = [0] * 4, [0] * 4
        for axis, (start, side) in enumerate(((self.left, self.width), (self.top, self.height))):
            part[axis], part[axis + 2] = max(start, 0), min(start + side, image_size[axis])
            first, last = (round((edge - start) * size / side) for edge in part[axis::2])
            place[axis] = min(first, size - 1)
            place[axis + 2] = max(last, place[axis] + 1)
        return part, place


class View(NamedTuple):
    """A window of an image, and whether it is mirrored.

    With the geometry crop it is a square, at most of the shorter side of the image; with pad, at most of the longer
    side. With stretch it has the proportions of the image.
    """

    scale: float = 1.0
    """Side of the window as a fraction of the largest."""
    x: float = 0.5
    """Position from 0 (left) to 1 (right); at 0 a window that is wider than the image starts at its left edge."""
    y: float = 0.5
    """Position from 0 (top) to 1 (bottom)."""
    mirror: bool = False
    within_centre: bool = False
    """Whether x and y are positions within the view CENTRE instead of the whole image."""

    def window(self, width: int, height: int, geometry: Geometry = "crop") -> Window:
        """Return the window in an image of this size in pixels."""
        whole = (width, height)
        centre = {"crop": (min(whole),) * 2, "pad": (max(whole),) * 2, "stretch": whole}[geometry]
        sides = [max(1, int(side * self.scale)) for side in centre]
        outer = centre if self.within_centre else whole
        left, top = (
            (whole[axis] - outer[axis]) // 2 + int((outer[axis] - sides[axis]) * (self.x, self.y)[axis])
            for axis in (0, 1)
        )
        return Window(left, top, *sides)


CENTRE = View()
"""The largest view, in the middle of the image."""
CROP_RANGE = 1.1
"""Side of the square that the five crops are cut from, relative to the side of a crop; as in LlamaGen's extraction."""


def views_of(count: int) -> tuple[View, ...]:
    """Return the first views of a sample: CENTRE, its mirror, then its ten-crop, each crop before its mirror.

    Args:
        count: 1, 2 or 12. Odd views are mirrors of the previous view.
    """
    corners = [(0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    windows = [CENTRE, *(View(1 / CROP_RANGE, x, y, within_centre=True) for x, y in corners)]
    return tuple(window._replace(mirror=mirror) for window in windows for mirror in (False, True))[:count]


def cut(
    name: str,
    part: Image.Image | npt.NDArray[np.float32],
    size: int,
    window: Window,
    full_size: tuple[int, int],
    *,
    mirror: bool = False,
    resampler: Resampler = "pillow",
) -> Array:
    """Cut a window of an image or of one of its conditions, as a picture of `size` × `size` pixels.

    Args:
        name: `image`, or the name of the condition.
        part: The image, which after a draft may have fewer pixels than `full_size`; a map; or joints, to draw.
        size: Side of the picture in pixels.
        window: The window to cut.
        full_size: Width and height of the image in pixels.
        mirror: Flip left and right.
        resampler: Library that resizes the image; conditions are always resized by Pillow.
    """
    if not isinstance(part, Image.Image):
        return np.array(draw_pose(part, window, size, mirror=mirror))
    how, fill = _RESIZED[name]
    box, (left, top, right, bottom) = window.inside(full_size, size)
    across, down = part.width / full_size[0], part.height / full_size[1]
    # One resampling of the window gives the picture of resize-then-crop, without rounding the long side.
    scaled = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    if box[0] >= box[2] or box[1] >= box[3]:  # the window is beside the image
        left, top, right, bottom = 0, 0, 0, 0
        pixels = np.array(part.crop((0, 0, 1, 1)))[:0, :0]
    elif resampler == "torch" and name == "image":
        pixels = _resized_by_torch(part, scaled, right - left, bottom - top)
    else:
        pixels = np.array(part.resize((right - left, bottom - top), how, box=scaled))
    if pixels.shape[:2] != (size, size):
        inner, pixels = pixels, np.full((size, size, *pixels.shape[2:]), fill, pixels.dtype)
        pixels[top:bottom, left:right] = inner
    if name == "depth":
        pixels = pixels.clip(0, 1)  # the weights of the resampling sum to about 1
    return np.ascontiguousarray(pixels[:, ::-1]) if mirror else pixels


def _resized_by_torch(part: Image.Image, box: tuple[float, ...], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a part of an image, rounded to whole pixels, in another size: uint8 [height, width, 3]."""
    import torch
    from torch.nn.functional import interpolate

    left, top, right, bottom = map(round, box)
    pixels_HWC = np.array(part.crop((left, top, max(right, left + 1), max(bottom, top + 1))))
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    resized = interpolate(image_1CHW, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
