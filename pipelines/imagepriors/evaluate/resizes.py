"""How published evaluations make a square picture of an image: the shorter side is resized, the centre is cropped.

On photos the rules differ by one to two grey levels on average, so a report names the one that was used.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from imagepriors.evaluate.config import Resize

Picture = npt.NDArray[np.uint8]
RESIZE_TEXT: dict[Resize, str] = {
    "adm": "halved by a box filter while the shorter side is at least twice the target, then Pillow bicubic, then the "
    "centre (ADM, LlamaGen)",
    "titok": "Pillow bicubic of the shorter side, then the centre (TiTok, RAR)",
    "open-magvit2": "Pillow bilinear, antialiased, of the shorter side, then the centre (Open-MAGVIT2, IBQ)",
    "taming": "bilinear without antialiasing of the shorter side, then the centre (taming-transformers)",
}


def resized(picture_HWC: Picture, size: int, how: Resize) -> Picture:
    """Return the picture [size, size, 3] of an image [H, W, 3] by one of the rules in `RESIZE_TEXT`."""
    return _RULES[how](picture_HWC, size)


def _adm(picture_HWC: Picture, size: int) -> Picture:
    image = Image.fromarray(picture_HWC)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    return _centre(np.array(image), size)


def _torchvision(interpolation: InterpolationMode) -> Callable[[Picture, int], Picture]:
    def rule(picture_HWC: Picture, size: int) -> Picture:
        image: Any = transforms.resize(Image.fromarray(picture_HWC), [size], interpolation)
        return np.array(transforms.center_crop(image, [size, size]))

    return rule


def _taming(picture_HWC: Picture, size: int) -> Picture:
    height, width = picture_HWC.shape[:2]
    factor = size / min(height, width)
    planes_1CHW = torch.from_numpy(picture_HWC).permute(2, 0, 1)[None].float()
    sides = (round(height * factor), round(width * factor))
    scaled = F.interpolate(planes_1CHW, sides, mode="bilinear", align_corners=False).round().to(torch.uint8)
    return _centre(scaled[0].permute(1, 2, 0).numpy(), size)


def _centre(picture_HWC: Picture, size: int) -> Picture:
    top, left = ((side - size) // 2 for side in picture_HWC.shape[:2])
    return np.ascontiguousarray(picture_HWC[top : top + size, left : left + size])


_RULES: dict[Resize, Callable[[Picture, int], Picture]] = {
    "adm": _adm,
    "titok": _torchvision(InterpolationMode.BICUBIC),
    "open-magvit2": _torchvision(InterpolationMode.BILINEAR),
    "taming": _taming,
}
