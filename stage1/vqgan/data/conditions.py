"""Conditions that lie beside an image: segmentation masks, depth maps, poses."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from runkit.jsonfiles import parse_json
from vqgan.data.pictures import open_picture, to_labels, to_numbers, to_rgb, upright_size

if TYPE_CHECKING:
    from vqgan.data.files import Source

JOINTS = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
)  # fmt: skip
"""The 18 joints in OpenPose's COCO order, right and left as the person has them."""
# Limbs between the joints, drawn in this order, each in its own hue.
LIMBS = (
    (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_OTHER_SIDE = [
    JOINTS.index(name.replace("right", "LEFT").replace("left", "right").replace("LEFT", "left")) for name in JOINTS
]
_THICKNESS = 0.025
"""Width of a limb over the side of the picture."""


@dataclass(frozen=True, slots=True)
class Keypoints:
    """The pose of one image as the annotation has it: JSON lists, parsed when they are read."""

    ys: str
    xs: str
    name: str
    """What messages call it."""

    def joints(self, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """float32 [18, 2] as (x, y) pixels, (-1, -1) for missing joints.

        Args:
            size: (width, height) of the image.

        Raises:
            ValueError: not 18 finite numbers each, half a joint missing, or a joint outside the image.
        """
        try:
            joints = np.array([parse_json(self.xs, "x"), parse_json(self.ys, "y")], dtype=np.float32).T
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the keypoints are not two lists of numbers: {error}") from error
        if joints.shape != (len(JOINTS), 2):
            raise ValueError(f"{joints.T.shape} keypoints, wanted {len(JOINTS)} ys and {len(JOINTS)} xs")
        if not np.isfinite(joints).all():
            raise ValueError("the keypoints hold NaN or infinite numbers")
        missing = (joints == -1).all(1)
        outside = ~missing & ((joints < 0) | (joints >= size)).any(1)
        if outside.any():
            which = int(outside.argmax())
            x, y = joints[which]
            raise ValueError(
                f"{JOINTS[which]} at x {x:g}, y {y:g} lies outside the image of {size[0]}×{size[1]} (missing is -1)"
            )
        return joints


class DepthMap(NamedTuple):
    """A depth map, stretched."""

    unit: Image.Image
    """Mode F, from 0, the lowest value of the map, to 1, its highest."""
    low: float
    high: float

    def values(self, unit: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Stretched depth as the map has it."""
        return (self.low + unit.astype(np.float64) * (self.high - self.low)).astype(np.float32)


def read_map(name: str, source: "Source", image_size: tuple[int, int], n_labels: int) -> Image.Image | DepthMap:
    """Read one map as a Pillow image of the size of its image.

    Args:
        name: segmentation, depth or pose (a picture that is drawn already).
        source: The map: PNG, or for depth also .npy and .pfm.
        image_size: (width, height) of the image in pixels.
        n_labels: Labels that a mask may hold.

    Raises:
        ValueError: the map does not fit the image or holds values that it must not.
        OSError: it cannot be decoded.
    """
    if name == "depth":
        return _stretched(read_depth(source, image_size))
    with source.open() as file, open_picture(file) as opened:
        _check_size(name, upright_size(opened), image_size)  # a PNG alone is decoded already
        if name == "pose":
            return to_rgb(opened, "black")
        return _mask(to_labels(opened, file), n_labels)


def read_depth(source: "Source", image_size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Read a depth map as it is stored; the arguments and errors are those of `read_map`."""
    with source.open() as file:
        if source.name.lower().endswith(".npy"):
            pixels = _read_npy(file, image_size)
        else:
            with open_picture(file) as opened:
                _check_size("depth", upright_size(opened), image_size)
                pixels = to_numbers(opened)
    packed = pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint8
    if not packed and pixels.ndim != 2:
        raise ValueError(f"depth map has shape {pixels.shape}, wanted grey or float32 packed in RGBA")
    # Packed as the D-RIN release has it.
    return (np.ascontiguousarray(pixels).view("<f4")[..., 0] if packed else pixels).astype(np.float64)


def _check_size(name: str, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    if size != image_size:
        raise ValueError(f"{name} is {size}, its image {image_size} (width, height)")


def _read_npy(file: BinaryIO, image_size: tuple[int, int]) -> npt.NDArray[Any]:
    """A depth map [H, W], or [H, W, 4] of bytes; what the header promises is compared with the image first.

    Raises:
        ValueError: another shape or type, or fewer bytes than the header promises.
    """
    major, _ = np.lib.format.read_magic(file)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(major)
    if read_header is None:
        raise ValueError(f"it is .npy of version {major}, which arrays of numbers do not need")
    try:
        shape, is_fortran, dtype = read_header(file)
    except (MemoryError, RecursionError):  # of the parser, whose stack is its own
        raise ValueError("its header is broken") from None
    if dtype.kind not in "biuf" or len(shape) not in (2, 3):
        raise ValueError(f"depth map has shape {shape} of {dtype}, wanted numbers [H, W]")
    _check_size("depth", (shape[1], shape[0]), image_size)
    if len(shape) == 3 and (shape[2] != 4 or dtype != np.uint8):
        raise ValueError(f"depth map has shape {shape}, wanted grey or float32 packed in RGBA")
    data = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _mask(labels: npt.NDArray[np.uint8], n_labels: int) -> Image.Image:
    highest = int(labels.max())
    if highest >= n_labels:
        raise ValueError(f"mask holds label {highest}, wanted 0 … {n_labels - 1}")
    return Image.fromarray(labels)


def _stretched(depth: npt.NDArray[np.float64]) -> DepthMap:
    if not np.isfinite(depth).all():
        raise ValueError("depth map holds NaN or infinite values")
    low, high = float(depth.min()), float(depth.max())
    if low == high:
        raise ValueError(f"depth map is constant ({low:g} everywhere): there is nothing to learn from it")
    if high - low == math.inf:
        raise ValueError(f"depth map goes from {low:g} to {high:g}, further than numbers reach: divide it")
    return DepthMap(Image.fromarray(((depth - low) / (high - low)).astype(np.float32)), low, high)


def draw_pose(
    joints_K2: npt.NDArray[np.float32], window: tuple[int, int, int, int], size: int, *, mirror: bool = False
) -> Image.Image:
    """Draw the stick figure of a window of the image; limbs with a missing joint are left out.

    Args:
        joints_K2: float32 [18, 2] as (x, y) pixels of the whole image, (-1, -1) for missing joints.
        window: Left, top, width and height of the window in pixels.
        size: Side of the picture in pixels; limbs are 2.5% of it thick.
        mirror: Flip left and right, in the picture and of the body.
    """
    left, top, *sides = window
    missing = np.any(joints_K2 < 0, axis=1)
    # A joint names the pixel in whose middle it lies, half a pixel from the pixel's edge.
    placed = (joints_K2 - (left, top) + 0.5) * (size / np.array(sides)) - 0.5
    if mirror:
        placed[:, 0] = size - 1 - placed[:, 0]
        placed, missing = placed[_OTHER_SIDE], missing[_OTHER_SIDE]
    image = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(image)
    width = max(1, round(size * _THICKNESS))
    for number, limb in enumerate(LIMBS):
        if not missing[list(limb)].any():
            hue = 2 * math.pi * number / len(LIMBS)
            red, green, blue = (round(127.5 + 127.5 * math.cos(hue - shift)) for shift in (0.0, 2.094, 4.189))
            ends = [(float(x), float(y)) for x, y in placed[list(limb)]]
            draw.line(ends, fill=(red, green, blue), width=width)
    return image
