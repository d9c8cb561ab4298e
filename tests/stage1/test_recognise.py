"""The layout of a folder is recognised."""

import logging
import os
from pathlib import Path

import pytest
from tiny_pictures import png, put

from vqgan.data import AUTO, open_splits, resolve
from vqgan.data.recognise import recognise
from vqgan.errors import InputError


def test_the_layout_is_recognised(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, files in {
        "ade20k": ["ADEChallengeData2016/images/training/1.jpg"],
        "landscapes": ["images/a/1.jpg", "segmentations/a/1.png"],
        "deepfashion": ["train/1.jpg", "fasion-annotation-train.csv"],
        "imagenet-depth": ["val/n01440764/1.JPEG", "val_depth/n01440764/1.png"],
        "imagenet": ["train/n01440764/1.JPEG"],
        "cifar10": ["cifar-10-batches-py/data_batch_1"],
        "webdataset": ["train-000.tar", "preview.png", "train-001.tar"],
        "huggingface": ["data/train-00000-of-00001.parquet"],
        "folder": ["Train/cat/1.jpg", "Train/dog/1.jpg", "old.tar"],
        "demo": ["demo.json", "images/training/1.png", "annotations/training/1.png"],
    }.items():
        for file in files:
            put(tmp_path / name / file)
        assert resolve(AUTO, tmp_path / name) == name
    put(tmp_path / "landscapes/images/a/1.jpg", png(1))
    put(tmp_path / "landscapes/images/a/2.jpg", png(2))
    open_splits(AUTO, tmp_path / "landscapes")
    assert "is read as landscapes: it has images/ and segmentations/" in caplog.text
    assert recognise(tmp_path / "huggingface")[1] == "it has 1 table"
    put(tmp_path / "list/images.csv", b"image\n")
    assert resolve(AUTO, tmp_path / "list") == "folder"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no dataset is recognised"):
        open_splits(AUTO, tmp_path / "nothing")
    with pytest.raises(InputError, match="does not exist"):
        open_splits(AUTO, tmp_path / "nowhere")


def test_a_folder_that_looks_like_another_layout_is_reported(tmp_path, caplog):
    for number in range(3):
        put(tmp_path / f"images/a/{number}.png")
        put(tmp_path / f"segmentations/a/{number}.png", png())
    open_splits("folder", tmp_path)
    assert "is read as folder, but looks like landscapes: it has images/ and segmentations/" in caplog.text


@pytest.mark.skipif(not os.environ.get("IMAGEPRIORS_DATA"), reason="IMAGEPRIORS_DATA is unset: no real data")
def test_real_folders_are_recognised():

    root = Path(os.environ["IMAGEPRIORS_DATA"])
    found = {
        name: resolve(AUTO, root / name)
        for name in ("ade20k", "cifar10", "imagenet-depth", "imagenet-sample", "landscapes")
    }
    assert found == {
        "ade20k": "ade20k", "cifar10": "cifar10", "imagenet-depth": "imagenet-depth", "imagenet-sample": "imagenet",
        "landscapes": "landscapes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["train/n01440764/1.JPEG", "train/.ipynb_checkpoints/1.png", "val/@eaDir/1.png"], "imagenet"),
        (["Data/CLS-LOC/train/n01440764/1.JPEG", "Annotations/CLS-LOC/train/1.xml"], "imagenet"),
        (["images/train2017/1.jpg", "images/val2017/2.jpg", "annotations/instances_train2017.json"], "folder"),
        (["train2017/1.jpg", "val2017/1.jpg", "annotations/panoptic_train2017/1.png"], "folder"),
        (["images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt"], "folder"),
        (["images/1.jpg", "annotations/trimaps/1.png", "annotations/xmls/1.xml"], "folder"),
        (["00000.tar", "00001.tar", "00000.parquet", "00001.parquet", "00000_stats.json"], "webdataset"),
        (["train/1.jpg", ".git/1.png", ".cache/huggingface/1.parquet", "README.md"], "folder"),
    ],
)
def test_layouts_of_other_datasets_and_junk_do_not_mislead(tmp_path, files, layout):
    for file in files:
        put(tmp_path / file)
    assert resolve(AUTO, tmp_path) == layout
