"""Pictures and a network for the tests of annotation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

SIZES = [(40, 30), (30, 40), (40, 30), (64, 48), (33, 17)]
"""Width and height of the pictures."""


def picture(number: int) -> Image.Image:
    """A smooth picture whose corners all differ."""
    width, height = SIZES[number % len(SIZES)]
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / width, 255 * y / height, (37 * number + 90 * (x / width) * (y / height)) % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def _write_images(root: Path, splits: dict[str, int]) -> Path:
    for split, count in splits.items():
        for number in range(count):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 1 else 1  # rotated by 90°
            picture(number).save(folder / f"photo.{number}.png", exif=exif)
    return root


@pytest.fixture(scope="session")
def write_images() -> Callable[[Path, dict[str, int]], Path]:
    """A function that writes pictures in two class folders of each split; the second is rotated by EXIF."""
    return _write_images


@pytest.fixture(scope="session")
def dpt(tmp_path_factory):
    """A tiny DPT with random weights, as save_pretrained writes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("dpt")
    model = transformers.DPTForDepthEstimation(config)
    for module in model.modules():  # the library's initial weights are so small that depth is constant
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    nn.init.constant_(model.head.head[4].bias, 5.0)  # the last layer is a ReLU: away from constant zero
    model.save_pretrained(folder)
    transformers.DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
