"""The demo scenes: exact, deterministic, in the real layouts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeshards.format import ShardError
from imagepriors.demo.layouts import write_demo_data
from imagepriors.demo.scenes import CAMERA_M, CLASS_NAMES, FAR_M, HORIZON, SEGMENTATION_NAMES, render_scene


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=10, n_val=4, size=32, workers=1)
    return out


def test_bytes_do_not_depend_on_the_number_of_workers(demo, tmp_path):
    write_demo_data(tmp_path, n_train=10, n_val=4, size=32, workers=2)
    assert tree(demo) == tree(tmp_path)


def test_second_call_returns_and_other_settings_are_refused(demo):
    before = tree(demo)
    write_demo_data(demo, n_train=10, n_val=4, size=32)
    assert tree(demo) == before
    with pytest.raises(ShardError, match="n_train 10 → 11"):
        write_demo_data(demo, n_train=11, n_val=4, size=32)


@pytest.mark.parametrize("changes", [{"size": 30}, {"size": 16}, {"n_train": 0}, {"n_val": -1}])
def test_bad_settings_are_refused(tmp_path, changes):
    with pytest.raises(ShardError, match=next(iter(changes))):
        write_demo_data(tmp_path, **{"n_train": 1, "n_val": 1, "size": 32, **changes})


def test_layouts_contain_the_rendered_scenes(demo):
    ade = demo / "ADEChallengeData2016"
    categories = dict(line.split() for line in (ade / "sceneCategories.txt").read_text().splitlines())
    assert len(categories) == 14
    with (demo / "deepfashion" / "fasion-annotation-train.csv").open() as file:
        poses = list(csv.DictReader(file, delimiter=":"))
    for index in range(10):
        scene, stem = render_scene(0, index, 32), f"DEMO_train_{index + 1:08d}"
        name = CLASS_NAMES[scene.label]
        assert categories[stem] == name
        mask = np.asarray(Image.open(ade / "annotations" / "training" / f"{stem}.png"))
        np.testing.assert_array_equal(mask, scene.segmentation)
        packed = np.asarray(Image.open(demo / "imagenet-depth" / "train_depth" / name / f"{stem}.png"))
        np.testing.assert_array_equal(np.ascontiguousarray(packed).view("<f4")[..., 0], scene.depth)
        assert poses[index]["name"] == f"{stem}.jpg"
        found = np.array([json.loads(poses[index]["keypoints_x"]), json.loads(poses[index]["keypoints_y"])]).T
        np.testing.assert_array_equal(found, np.rint(scene.keypoints).clip(max=31))
    with (ade / "objectInfo150.txt").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert tuple(row["Name"] for row in rows) == SEGMENTATION_NAMES


def test_depth_is_exact_on_the_ground_and_far_in_the_sky():
    scene = render_scene(0, 3, 64)
    v = (np.arange(64) + 0.5) / 64
    rows, columns = np.nonzero(scene.segmentation == SEGMENTATION_NAMES.index("ground") + 1)
    expected = np.minimum(CAMERA_M / (v[rows] - HORIZON), FAR_M)
    np.testing.assert_allclose(scene.depth[rows, columns], expected, rtol=1e-4)
    sky = scene.segmentation == 1
    assert (scene.depth[sky] == FAR_M).all()
    assert (scene.depth[~sky] > 0).all()


def test_keypoints_are_on_the_person():
    person = SEGMENTATION_NAMES.index("person") + 1
    inside = total = 0
    for index in range(20):
        scene = render_scene(1, index, 64)
        joints = scene.keypoints[[0, 1, 3, 6, 9, 12]]  # nose, neck, elbows, knees
        seen = (joints >= 0).all(1)
        assert ((joints[seen] < 64) & (joints[seen] >= 0)).all()
        x, y = joints[seen].astype(int).T
        inside += int((scene.segmentation[y, x] == person).sum())
        total += int(seen.sum())
    assert inside > 0.75 * total  # the others are behind an object


def test_a_modest_sample_has_every_class_and_every_label():
    scenes = [render_scene(0, index, 32) for index in range(80)]
    assert {scene.label for scene in scenes} == set(range(len(CLASS_NAMES)))
    found = set(np.unique(np.stack([scene.segmentation for scene in scenes])).tolist())
    assert found == set(range(1, len(SEGMENTATION_NAMES) + 1))


def test_splits_and_seeds_have_different_scenes():
    images = [
        render_scene(seed, index, 32, split=split).image for seed in (0, 1) for split in (0, 1) for index in (0, 1)
    ]
    for i, first in enumerate(images):
        for second in images[i + 1 :]:
            assert not np.array_equal(first, second)
