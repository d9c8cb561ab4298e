"""Readers on real photos, in the folder that IMAGEPRIORS_DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest

from vqgan.data import open_splits

DATA = os.environ.get("IMAGEPRIORS_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="IMAGEPRIORS_DATA is not set: it names the folder of real photos")


@pytest.mark.parametrize(
    ("name", "folder", "split", "size", "conditions"),
    [
        ("cifar10", "cifar10", "train", 32, ()),
        ("imagenet", "imagenet-sample", "train", 256, ()),
        ("imagenet-depth", "imagenet-depth", "val", 64, ("depth",)),
        ("ade20k", "ade20k", "val", 64, ("segmentation",)),
        ("landscapes", "landscapes", "train", 64, ("segmentation",)),
    ],
)
def test_real_layouts_are_read(name, folder, split, size, conditions):
    root = Path(DATA or "") / folder
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    data = open_splits(name, root)[split]
    for index in np.linspace(0, len(data) - 1, 5).astype(int):
        sample = data.read(int(index), size, conditions=conditions)
        assert sample.image.shape == (size, size, 3)
        assert sample.image.std() > 1
        for condition in sample.conditions.values():
            assert condition.shape == (size, size)
            assert np.isfinite(condition).all()
