"""Readers of the published layouts, on the demo data and on small hand-made folders."""

import numpy as np
import pytest
from PIL import Image

from imagepriors.demo.layouts import write_demo_data
from imagepriors.demo.scenes import CLASS_NAMES, render_scene
from vqgan.datasets import DATASETS, open_splits, views_of
from vqgan.errors import InputError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=4, size=32)
    return out


def test_demo_samples_carry_every_condition_exactly(demo):
    splits = open_splits("demo", demo)
    assert len(splits["train"]) == 12
    assert splits["train"].class_names == tuple(sorted(set(splits["train"].class_names)))
    sample = splits["val"].read(2, 32, conditions=("segmentation", "depth", "pose"))
    scene = render_scene(0, 2, 32, split=1)
    assert np.abs(sample.image.astype(int) - scene.image).mean() < 4  # JPEG
    np.testing.assert_array_equal(sample.conditions["segmentation"], scene.segmentation)
    np.testing.assert_array_equal(sample.conditions["depth"], scene.depth)
    assert sample.conditions["pose"].shape == (32, 32, 3)
    assert splits["val"].class_names[sample.label] == CLASS_NAMES[scene.label]


@pytest.mark.parametrize(
    ("name", "folder", "conditions"),
    [
        ("imagenet", "imagenet", ()),
        ("ade20k", "ADEChallengeData2016", ("segmentation",)),
        ("imagenet-depth", "imagenet-depth", ("depth",)),
        ("deepfashion", "deepfashion", ("pose",)),
    ],
)
def test_each_layout_is_read_by_its_reader(demo, name, folder, conditions):
    for split, count in (("train", 12), ("val", 4)):
        data = open_splits(name, demo / folder)[split]
        assert len(data) == count
        assert data.conditions == conditions
        sample = data.read(0, 16, conditions=conditions)
        assert sample.image.shape == (16, 16, 3)


def test_mirror_flips_image_and_conditions_together(demo):
    data = open_splits("demo", demo)["train"]
    plain, mirrored = data.read_views(0, 32, views_of(2), conditions=("segmentation", "depth"))
    np.testing.assert_array_equal(plain.image[:, ::-1], mirrored.image)
    for name in plain.conditions:
        np.testing.assert_array_equal(plain.conditions[name][:, ::-1], mirrored.conditions[name])


def test_missing_validation_split_is_held_out_stably(tmp_path):
    for index in range(60):
        folder = tmp_path / "train" / ("a" if index % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"{index:03d}.png")
    splits = open_splits("folder", tmp_path)
    train, val = set(splits["train"].keys), set(splits["val"].keys)
    assert train.isdisjoint(val)
    assert len(train | val) == 60
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a" / "new.png")
    assert val <= set(open_splits("folder", tmp_path)["val"].keys)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("L", 100, (100, 100, 100)), ("RGBA", (255, 0, 0, 0), (255, 255, 255)), ("I;16", 0x6400, (100, 100, 100))],
)
def test_colour_modes_become_rgb_by_stated_rules(tmp_path, mode, color, expected):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new(mode, (8, 8), color).save(tmp_path / split / "x.png")
    image = open_splits("folder", tmp_path)["train"].read(0, 8).image
    assert tuple(image[4, 4]) == expected


def test_dotted_names_become_dot_free_keys(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a.b.png")
    assert open_splits("folder", tmp_path)["train"].keys == ["a%2Eb"]


def test_bad_files_are_named(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "empty.png").touch()
    with pytest.raises(InputError, match="empty"):
        open_splits("folder", tmp_path)["train"].read(0, 8)


def test_wrong_names_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="choose one of ade20k"):
        open_splits("cifar", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_splits("folder", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images"):
        open_splits("folder", tmp_path)
    assert set(DATASETS) >= {"demo", "folder", "imagenet", "cifar10", "ade20k", "imagenet-depth", "deepfashion"}


def test_mask_of_another_size_is_refused(demo, tmp_path):
    import shutil

    shutil.copytree(demo / "ADEChallengeData2016", tmp_path / "ade")
    mask = sorted((tmp_path / "ade/annotations/validation").iterdir())[0]
    Image.new("L", (8, 8)).save(mask)
    with pytest.raises(InputError, match="segmentation is"):
        open_splits("ade20k", tmp_path / "ade")["val"].read(0, 32, conditions=("segmentation",))
