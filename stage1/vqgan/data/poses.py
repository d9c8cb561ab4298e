"""Poses: keypoints of a person, and how they are drawn."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from runkit.jsonfiles import parse_json

JOINTS = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
)  # fmt: skip
"""The 18 joints in OpenPose's COCO order; right and left are those of the person."""
LIMBS = (
    (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Limbs between joints by index, in drawing order."""
LIMB_COLORS = tuple(
    tuple(round(127.5 + 127.5 * math.cos(2 * math.pi * number / len(LIMBS) - shift)) for shift in (0.0, 2.094, 4.189))
    for number in range(len(LIMBS))
)
"""Red, green and blue of each limb, 0 to 255; each has its own hue."""
_MIRRORED = [
    JOINTS.index(name.replace("right", "LEFT").replace("left", "right").replace("LEFT", "left")) for name in JOINTS
]
LIMB_WIDTH = 0.025
"""Width of a limb relative to the side of the picture."""


@dataclass(frozen=True, slots=True)
class Keypoints:
    """The pose of one image as in its annotation: JSON lists, which are parsed when they are read."""

    ys: str
    xs: str
    name: str
    """Name in messages."""

    def joints(self, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Return the joints as (x, y) pixels, float32 [18, 2]; (-1, -1) is a missing joint.

        Args:
            size: (width, height) of the image.

        Raises:
            ValueError: the lists do not hold 18 finite numbers each, or a joint is half missing or outside the image.
        """
        try:
            joints = np.array([parse_json(self.xs, "x"), parse_json(self.ys, "y")], dtype=np.float32).T
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the keypoints are not two lists of numbers: {error}") from error
        if joints.shape != (len(JOINTS), 2):
            raise ValueError(f"{joints.T.shape} keypoints, expected {len(JOINTS)} ys and {len(JOINTS)} xs")
        if not np.isfinite(joints).all():
            raise ValueError("the keypoints hold NaN or infinite numbers")
        missing = (joints == -1).all(1)
        outside = ~missing & ((joints < 0) | (joints >= size)).any(1)
        if outside.any():
            which = int(outside.argmax())
            x, y = joints[which]
            raise ValueError(
                f"{JOINTS[which]} at x {x:g}, y {y:g} is outside the image of {size[0]}×{size[1]} (missing is -1)"
            )
        return joints


def draw_pose(
    joints_K2: npt.NDArray[np.float32], window: tuple[int, int, int, int], size: int, *, mirror: bool = False
) -> Image.Image:
    """Draw the pose in a window of the image as a stick figure, without limbs that have a missing joint.

    Args:
        joints_K2: float32 [18, 2] as (x, y) pixels of the whole image, (-1, -1) for missing joints.
        window: Left, top, width and height of the window in pixels.
        size: Side of the picture in pixels; limbs are 2.5% of it thick.
        mirror: Flip the picture, and swap left and right joints.
    """
    left, top, *sides = window
    missing = np.any(joints_K2 < 0, axis=1)
    # A joint is in the middle of its pixel, half a pixel from the edge.
    placed = (joints_K2 - (left, top) + 0.5) * (size / np.array(sides)) - 0.5
    if mirror:
        placed[:, 0] = size - 1 - placed[:, 0]
        placed, missing = placed[_MIRRORED], missing[_MIRRORED]
    image = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(image)
    width = max(1, round(size * LIMB_WIDTH))
    for limb, color in zip(LIMBS, LIMB_COLORS, strict=True):
        if not missing[list(limb)].any():
            ends = [(float(x), float(y)) for x, y in placed[list(limb)]]
            draw.line(ends, fill=color, width=width)
    return image
