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
