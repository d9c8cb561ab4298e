"""Names of splits: which folders, files and rows belong to train and val."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pictures import all_shades, png, put, put_tar

from vqgan.data import AUTO, open_splits, resolve
from vqgan.data.split_names import SPLIT_NAMES, by_split
from vqgan.errors import InputError


@pytest.mark.parametrize("other", [name for name, split in SPLIT_NAMES.items() if split == "val"])
@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("kind", ["folder", "tar", "table", "list"])
def test_every_name_of_a_split_is_known_to_every_reader(tmp_path, kind, train, other):
    other = other.upper()
    if kind == "folder":
        for name, count in ((train, 3), (other, 2)):
            for number in range(count):
                put(tmp_path / name / f"{number}.png")
    elif kind == "tar":
        put_tar(tmp_path / f"{train}-0.tar", *((f"{n}.png", png()) for n in range(3)))
        put_tar(tmp_path / other / "0.tar", *((f"{n}.png", png()) for n in range(2)))
    elif kind == "table":
        for name, count in ((f"{train}-00000-of-00001", 3), (other, 2)):
            pq.write_table(pa.table({"image": [{"bytes": png(), "path": None}] * count}), tmp_path / f"{name}.parquet")
    else:
        rows = [f"{n}.png,{train if n < 3 else other}" for n in range(5)]
        put(tmp_path / "images.csv", "\n".join(["image,split", *rows]).encode())
    reader = {"folder": "folder", "tar": "webdataset", "table": "huggingface", "list": "folder"}[kind]
    assert {name: len(split) for name, split in open_splits(reader, tmp_path).items()} == {"train": 3, "val": 2}


def test_a_year_after_a_split_and_the_path_above_the_data_are_ignored(tmp_path):
    root = tmp_path / "val" / "test-data"
    for name, count in (("train2017", 3), ("val2017", 2)):
        for number in range(count):
            put(root / name / f"{number}.png")
    assert [len(split) for split in open_splits("folder", root).values()] == [3, 2]
    for number in range(4):
        put_tar(tmp_path / "dev" / f"{number}.tar", (f"{number}.png", png()))
    assert sum(len(split) for split in open_splits("webdataset", tmp_path / "dev").values()) == 4


def test_files_that_name_no_split_or_another_are_reported(tmp_path, caplog):
    assert by_split(["train-0.tar", "train-1.tar", "extra.tar", "val.tar", "test.tar"], tmp_path) == {
        "train": ["train-0.tar", "train-1.tar"],
        "val": ["val.tar"],
    }
    assert "test.tar is not read, because val is val" in caplog.text
    assert "extra.tar is not read" in caplog.text
    with pytest.raises(InputError, match=r"extra\.tar is not read.*nothing is named train"):
        by_split(["extra.tar", "val.tar"], tmp_path)
    with pytest.raises(InputError, match="names two splits, test and train"):
        by_split(["test-set/train.tar"], tmp_path)


def test_folders_beside_the_splits_are_reported(tmp_path, caplog):
    for name in ("train/1", "train/2", "val/1", "extra/1", "4"):
        put(tmp_path / f"{name}.png")
    put(tmp_path / "documents/readme.txt", b"")
    put(tmp_path / "train_depth/1.png")
    splits = open_splits("folder", tmp_path)
    assert [len(split) for split in splits.values()] == [2, 1]
    assert "4.png and 1 more are not read" in caplog.text
    assert "documents" not in caplog.text
    (tmp_path / "train").rename(tmp_path / "extra2")
    with pytest.raises(InputError, match=r"not read.*nothing is named train"):
        open_splits("folder", tmp_path)


@pytest.mark.parametrize("reader", ["folder", "imagenet", "imagenet-depth"])
def test_an_empty_or_missing_train_is_not_replaced_by_val(tmp_path, reader, caplog):
    for number in range(4):
        put(tmp_path / f"val/n01440764/{number}.png")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train of .* has no image"):
        open_splits(reader, tmp_path)
    (tmp_path / "train").rmdir()
    (tmp_path / "train").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match="train is a dangling link"):
        open_splits(reader, tmp_path)
    (tmp_path / "train").unlink()
    assert sum(len(split) for split in open_splits(reader, tmp_path).values()) == 4
    assert "has no train: a part of its val is held out" in caplog.text


def test_packed_classes_are_not_read_without_labels(tmp_path, caplog):
    for number in range(3):
        put_tar(tmp_path / f"train/n0144076{number}.tar", (f"n0144076{number}_1.JPEG", png()))
    put(tmp_path / "val/n01440760/1.png")
    with pytest.raises(InputError, match=r"train of .* has no image, although its folder or file exists"):
        open_splits(AUTO, tmp_path)
    assert "3 .tar" in caplog.text


def test_two_folders_of_one_split_are_refused(tmp_path):
    for name in ("train", "Train"):
        put(tmp_path / name / "1.png")
    with pytest.raises(InputError, match="name the same split"):
        open_splits("folder", tmp_path)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("data/train", "data/val"),
        ("a/b/Training", "a/b/dev"),
        ("images/train2017", "images/val2017"),
        ("train/train", "test1/test1"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_images", "test_images"),
        ("trainset", "testset"),
        ("imagesTr_train", "imagesTr_valid"),
    ],
)
def test_splits_in_a_common_folder_and_with_longer_names_are_found(tmp_path, train, val):
    for folder in (train, val):
        for name in ("cat", "dog"):
            put(tmp_path / folder / name / "1.png")
    put(tmp_path / "labels/train/1.txt", b"")  # no images
    splits = open_splits("folder", tmp_path)
    assert [split.keys for split in splits.values()] == [["cat/1", "dog/1"]] * 2
    assert splits["val"].class_names == ("cat", "dog")
    for folder in (train, val):  # where `annotate` puts maps
        for name in ("cat", "dog"):
            put(tmp_path / f"{folder}_depth" / name / "1.png")
    splits = open_splits("folder", tmp_path)
    assert [(split.keys, split.conditions) for split in splits.values()] == [(["cat/1", "dog/1"], ("depth",))] * 2


def test_splits_in_several_folders_are_refused_and_classes_remain_classes(tmp_path, caplog):
    for name in ("a/cat/train", "a/cat/test", "a/dog/train", "a/dog/test", "b/train_station", "b/bus", "c/data/val"):
        put(tmp_path / name / "1.png")
        put(tmp_path / name / "2.png")
    with pytest.raises(InputError, match="cat/ and dog/ have splits of their own"):
        open_splits("folder", tmp_path / "a")
    assert open_splits("folder", tmp_path / "b")["train"].class_names == ("bus", "train_station")
    put(tmp_path / "c/data/train/1.png")
    put(tmp_path / "c/extra/1.png")
    assert [len(split) for split in open_splits("folder", tmp_path / "c").values()] == [1, 2]
    assert "extra/ is not read: the splits are in data/" in caplog.text


def test_a_row_without_a_split_beside_rows_with_one_is_refused(tmp_path):
    put(tmp_path / "images.csv", b"image,split\n1.png,train\n2.png,val\n3.png,\n")
    with pytest.raises(InputError, match="row 3: split is None: choose one"):
        open_splits("folder", tmp_path)


def test_readers_of_masks_and_poses_know_all_names_of_splits(tmp_path):
    for split, masks in (("Train", "training"), ("VAL", "validation")):
        for number in range(2):
            put(tmp_path / f"ade/images/{split}/{number}.png")
            put(tmp_path / f"ade/annotations/{masks}/{number}.png")
            put(tmp_path / f"land/images/{split}/{number}.png")
            put(tmp_path / f"land/segmentations/{masks}/{number}.png")
            put(tmp_path / f"fashion/{split}/{number}.png")
        list_name = "fasion-resize-annotation-test.CSV" if split == "VAL" else "fasion-annotation-train.csv"
        put(tmp_path / f"fashion/{list_name}", b"name:keypoints_y:keypoints_x\n0.png: [1]: [1]\n1.png: [1]: [1]\n")
    for folder, reader, condition in (
        ("ade", "ade20k", "segmentation"), ("land", "landscapes", "segmentation"), ("fashion", "deepfashion", "pose"),
    ):  # fmt: skip
        splits = open_splits(AUTO, tmp_path / folder)
        assert resolve(AUTO, tmp_path / folder) == reader
        assert [(split.keys, split.conditions) for split in splits.values()] == [(["0", "1"], (condition,))] * 2


def test_two_snapshots_of_the_hub_are_not_read_as_one_dataset(tmp_path):
    put(tmp_path / "blobs/a", png())
    put(tmp_path / "refs/main", b"1")
    for snapshot in ("1", "2"):
        (tmp_path / "snapshots" / snapshot / "train").mkdir(parents=True)
        for number in range(2):
            (tmp_path / f"snapshots/{snapshot}/train/{number}.png").symlink_to("../../../blobs/a")
    with pytest.raises(InputError, match="has 2 snapshots of one dataset: pass one"):
        open_splits(AUTO, tmp_path)
    assert all_shades(open_splits(AUTO, tmp_path / "snapshots/1")) == {"0": (0, None), "1": (0, None)}
