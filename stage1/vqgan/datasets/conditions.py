"""Conditions that lie beside an image: segmentation masks, depth maps, poses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

# Limbs between the 18 OpenPose/COCO joints, drawn in this order, each in its own hue.
LIMBS = (
    (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip


def read_condition(name: str, source: Any, image_size: tuple[int, int]) -> Image.Image:
    """Read one condition as a Pillow image of the same size as its image.

    Args:
        name: segmentation, depth or pose.
        source: path of the map, or float32 [18, 2] keypoints as (x, y) pixels with -1 for missing joints.
        image_size: (width, height) of the image in pixels.

    Raises:
        ValueError: the map does not fit the image or holds values that it must not.
    """
    if name == "pose":
        return draw_pose(np.asarray(source, dtype=np.float32), image_size)
    with Image.open(Path(source)) as opened:
        opened.load()
        condition = opened.copy() if name == "segmentation" else Image.fromarray(_depth(np.asarray(opened)))
    if name == "segmentation" and condition.mode not in ("L", "P"):
        raise ValueError(f"{source}: mask has mode {condition.mode}, wanted one 8-bit label per pixel (L or P)")
    if condition.size != image_size:
        raise ValueError(f"{source}: {name} is {condition.size}, its image {image_size} (width, height)")
    return condition


def _depth(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Depth from an 8- or 16-bit grey map, or from float32 packed into RGBA bytes (the D-RIN release)."""
    packed = pixels.ndim == 3 and pixels.shape[2] == 4
    if not packed and pixels.ndim != 2:
        raise ValueError(f"depth map has shape {pixels.shape}, wanted grey or float32 packed in RGBA")
    depth = np.ascontiguousarray(pixels).view("<f4")[..., 0] if packed else pixels
    if not np.isfinite(depth).all():
        raise ValueError("depth map holds NaN or infinite values")
    return np.ascontiguousarray(depth, dtype=np.float32)


def draw_pose(joints_K2: npt.NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """Draw a stick figure; limbs as thick as 2.5% of the shorter side, limbs with a missing joint left out."""
    if joints_K2.shape != (18, 2):
        raise ValueError(f"pose has shape {joints_K2.shape}, wanted 18 joints of (x, y)")
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    width = max(1, round(min(size) * 0.025))
    for number, (a, b) in enumerate(LIMBS):
        if (joints_K2[[a, b]] >= 0).all():
            hue = 2 * math.pi * number / len(LIMBS)
            red, green, blue = (round(127.5 + 127.5 * math.cos(hue - shift)) for shift in (0.0, 2.094, 4.189))
            ends = [(float(x), float(y)) for x, y in joints_K2[[a, b]]]
            draw.line(ends, fill=(red, green, blue), width=width)
    return image
