"""Readers of photos with masks or keypoints, the demo data, and texts beside the images."""

import os

import numpy as np
import pytest
from tiny_pictures import mask, png, put, tar_bytes

from imagepriors.demo.layouts import write_demo_data
from imagepriors.demo.scenes import CLASS_NAMES, SEGMENTATION_NAMES, render_scene
from vqgan.data import open_splits
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
    np.testing.assert_allclose(
        sample.picture("depth") * np.ptp(scene.depth) + scene.depth.min(), scene.depth, atol=1e-4
    )
    assert sample.conditions["pose"].shape == (32, 32, 3)
    assert splits["val"].class_names[sample.label] == CLASS_NAMES[scene.label]
    assert splits["train"].label_names[scene.segmentation[0, 0]] == "sky"
    assert splits["val"].label_names == ("unlabelled", *SEGMENTATION_NAMES)


@pytest.mark.parametrize(
    ("name", "folder", "conditions"),
    [
        ("imagenet", "imagenet", ()),
        ("ade20k", "ADEChallengeData2016", ("segmentation",)),
        ("imagenet-depth", "imagenet-depth", ("depth",)),
        ("deepfashion", "deepfashion", ("pose",)),
    ],
)
def test_each_demo_layout_is_read_by_its_reader(demo, name, folder, conditions):
    for split, count in (("train", 12), ("val", 4)):
        data = open_splits(name, demo / folder)[split]
        assert len(data) == count
        assert data.conditions == conditions
        assert data.strays == ()
        assert data.read(0, 16, conditions=conditions).image.shape == (16, 16, 3)


def test_landscapes(tmp_path):
    for number in range(4):
        put(tmp_path / "images" / "coast" / f"{number}.png", png(number))
        put(tmp_path / "segmentations" / "coast" / f"{number}.png", mask(181 if number else 182))
    splits = open_splits("landscapes", tmp_path)
    read = {
        item.key: (split, index) for split in splits.values() for index, item in enumerate(split.items)
    }  # fmt: skip
    split, index = read["coast/1"]
    assert split.read(index, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 181
    split, index = read["coast/0"]
    with pytest.raises(InputError, match="label 182"):
        split.read(index, 8, conditions=("segmentation",))
    (tmp_path / "segmentations").rename(tmp_path / "masks")
    with pytest.raises(InputError, match="segmentations is missing"):
        open_splits("landscapes", tmp_path)


def test_deepfashion_lines(tmp_path):
    for split in ("train", "test"):
        for number in range(3):
            put(tmp_path / split / f"{number}.png", png(number))
    ys, xs = [2] * 17 + [-1], [3] * 17 + [-1]
    lines = ["name:keypoints_y:keypoints_x", f"0.png: {ys}: {xs}", f"1.png: {ys[:5]}: {xs}", f"9.png: {ys}: {xs}"]
    for split in ("train", "test"):
        put(tmp_path / f"fasion-resize-annotation-{split}.csv", "\n".join(lines).encode())
    split = open_splits("deepfashion", tmp_path)["train"]
    assert split.read(0, 8, conditions=("pose",)).conditions["pose"].shape == (8, 8, 3)
    with pytest.raises(InputError, match=r"1: fasion-resize-annotation-train.csv, line 3"):
        split.read(1, 8, conditions=("pose",))
    with pytest.raises(InputError, match="2: no pose"):
        split.read(2, 8, conditions=("pose",))
    assert split.strays == ("fasion-resize-annotation-train.csv, line 4",)
    put(tmp_path / "fasion-annotation-train.csv", b"picture,x,y\n")
    with pytest.raises(InputError, match="expected the header"):
        open_splits("deepfashion", tmp_path)


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.json": b"[" * 100_000}}, "label of a.*nested too deep"),
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.cls": b"1000000000"}}, "label '1000000000' of a is too large"),
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.json": b'{"label": 1e999}'}}, "label inf of a is too large"),
        ("webdataset", {"train.tar": {"a.jpg": b"", "a.cls": b"\xff"}}, "label of a"),
        ("ade20k", {"images/training/a.jpg": b"", "sceneCategories.txt": b"a caf\xe9\n"}, "is not UTF-8"),
        ("ade20k", {"objectInfo150.txt": b"Idx\tName\n1\twall\n3\tsky\n"}, "line 3: expected the number 2"),
        ("ade20k", {"objectInfo150.txt": b"1,0.1576,11664,1172,wall\n"}, "line 1: expected the number 1, tabs"),
        ("ade20k", {"objectInfo150.txt": b"".join(b"%d\tx\n" % n for n in range(1, 152))}, "names 152 labels"),
        ("folder", {"segmentation_labels.txt": b"sky\n\nwall\n"}, "line 2 is empty"),
        ("folder", {"segmentation_labels.txt": b"caf\xe9\n"}, "is not UTF-8"),
        ("folder", {"segmentation_labels.txt": b"x\n" * 257}, "names 257 labels"),
        ("imagenet", {"LOC_val_solution.csv": b"a,b\n1,2\n"}, "not a list of ImageId"),
        ("imagenet", {"LOC_val_solution.csv": b"ImageId,PredictionString\nx,\n"}, "not a list of ImageId"),
        ("imagenet", {"LOC_val_solution.csv": b"ImageId,PredictionString\n" + b"x" * 200_000}, "not a list of ImageId"),
        ("deepfashion", {"fasion-annotation-train.csv": b"name:keypoints_y:keypoints_x\n" + b"x" * 200_000}, "line 1"),
    ],
)
def test_broken_texts_beside_the_images_are_refused(tmp_path, name, files, words):
    put(tmp_path / "train/n01/1.png", png(1))
    put(tmp_path / "val/ILSVRC2012_val_00000001.png", png(2))
    for path, content in files.items():
        put(tmp_path / path, tar_bytes(content) if isinstance(content, dict) else content)
    with pytest.raises(InputError, match=words):
        open_splits(name, tmp_path)


def test_byte_order_marks_and_other_encodings_of_names_are_accepted(tmp_path):
    put(tmp_path / "train/1.png", png(1))
    put(tmp_path / "val/ILSVRC2012_val_00000001.png", png(2))
    put(tmp_path / "train/n01/2.png", png(1))
    rows = "\ufeffImageId,PredictionString\nILSVRC2012_val_00000001,n01 1 2 3 4\n"
    put(tmp_path / "LOC_val_solution.csv", rows.encode())
    assert open_splits("imagenet", tmp_path)["val"].items[0].label == 0
    header = b"\xef\xbb\xbfname:keypoints_y:keypoints_x\n"
    for split, line in (("train", b"0\xe9.png: [1]: [1]\n"), ("val", b"")):
        put(tmp_path / f"fasion-annotation-{split}.csv", header + line)
    assert open_splits("deepfashion", tmp_path)["train"].keys


def test_pipes_among_the_files_are_refused(tmp_path):
    for name, file in (("webdataset", "train.tar"), ("huggingface", "train.parquet"), ("huggingface", "train.arrow")):
        folder = tmp_path / file
        folder.mkdir()
        os.mkfifo(folder / file)
        with pytest.raises(InputError, match=r"(no|not a) regular file"):
            open_splits(name, folder)


def test_scenes_of_ade20k_may_have_dots_and_spaces(tmp_path):
    for name in ("a.0", "a.1"):
        put(tmp_path / f"images/training/{name}.png")
        put(tmp_path / f"images/validation/{name}.png")
    put(tmp_path / "sceneCategories.txt", "a.0 living room\r\na.1 bar\r\n".encode("utf-8-sig"))
    splits = open_splits("ade20k", tmp_path)
    assert splits["val"].class_names == ("bar", "living room")
    assert [item.label for item in splits["train"].items] == [1, 0]


def test_labels_of_ade20k_have_the_names_of_the_releases_table(tmp_path):
    put(tmp_path / "images/training/a.png", png(1))
    put(tmp_path / "images/training/b.png", png(2))
    assert open_splits("ade20k", tmp_path)["val"].label_names == ()
    # Lines as they are in the release, with spaces after some numbers and names.
    lines = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall", "2\t0.1072\t6046\t612\tbuilding, edifice"]
    put(tmp_path / "objectInfo150.txt", "\r\n".join([*lines, "3 \t0.0231\t1906\t199\tbed ", ""]).encode())
    for split in open_splits("ade20k", tmp_path).values():  # val is held out
        assert split.subset([0]).label_names == ("unlabelled", "wall", "building, edifice", "bed")
    put(tmp_path / "segmentation_labels.txt", b"none\nmur\n")
    assert open_splits("ade20k", tmp_path)["train"].label_names == ("none", "mur")
