"""Data as they are found in the world: names of splits, archives, labels, what is no picture, which layout it is."""

import io
import json
import logging
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqgan.data import AUTO, open_splits, resolve
from vqgan.data.labels import read_labels
from vqgan.data.split_names import SPLIT_NAMES, by_split
from vqgan.errors import InputError


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, data=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tar(path, *members) -> None:
    """A tar of (name, bytes) and of links as TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for entry in members:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))


def shades(split) -> dict[str, tuple[int, int | None]]:
    """Key → (the red of its picture, its label)."""
    return {item.key: (int(split.read(index, 8).image[0, 0, 0]), item.label) for index, item in enumerate(split.items)}


def both(splits) -> dict[str, tuple[int, int | None]]:
    return shades(splits["train"]) | shades(splits["val"])


# Splits


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
        tar(tmp_path / f"{train}-0.tar", *((f"{n}.png", png()) for n in range(3)))
        tar(tmp_path / other / "0.tar", *((f"{n}.png", png()) for n in range(2)))
    elif kind == "table":
        for name, count in ((f"{train}-00000-of-00001", 3), (other, 2)):
            pq.write_table(pa.table({"image": [{"bytes": png(), "path": None}] * count}), tmp_path / f"{name}.parquet")
    else:
        rows = [f"{n}.png,{train if n < 3 else other}" for n in range(5)]
        put(tmp_path / "images.csv", "\n".join(["image,split", *rows]).encode())
    reader = {"folder": "folder", "tar": "webdataset", "table": "huggingface", "list": "folder"}[kind]
    assert {name: len(split) for name, split in open_splits(reader, tmp_path).items()} == {"train": 3, "val": 2}


def test_the_year_behind_a_split_and_the_path_above_the_data_count_for_nothing(tmp_path):
    root = tmp_path / "val" / "test-data"
    for name, count in (("train2017", 3), ("val2017", 2)):
        for number in range(count):
            put(root / name / f"{number}.png")
    assert [len(split) for split in open_splits("folder", root).values()] == [3, 2]
    for number in range(4):
        tar(tmp_path / "dev" / f"{number}.tar", (f"{number}.png", png()))
    assert sum(len(split) for split in open_splits("webdataset", tmp_path / "dev").values()) == 4


def test_what_names_no_split_or_another_is_named(tmp_path, caplog):
    assert by_split(["train-0.tar", "train-1.tar", "extra.tar", "val.tar", "test.tar"], tmp_path) == {
        "train": ["train-0.tar", "train-1.tar"],
        "val": ["val.tar"],
    }
    assert "test.tar is not read, because val is val" in caplog.text
    assert "extra.tar is not read" in caplog.text
    with pytest.raises(InputError, match=r"extra\.tar is not read.*nothing is called train"):
        by_split(["extra.tar", "val.tar"], tmp_path)
    with pytest.raises(InputError, match="names two splits, test and train"):
        by_split(["test-set/train.tar"], tmp_path)


def test_folders_beside_the_splits_are_named(tmp_path, caplog):
    for name in ("train/1", "train/2", "val/1", "extra/1", "4"):
        put(tmp_path / f"{name}.png")
    put(tmp_path / "documents/readme.txt", b"")
    put(tmp_path / "train_depth/1.png")
    splits = open_splits("folder", tmp_path)
    assert [len(split) for split in splits.values()] == [2, 1]
    assert "4.png and 1 more are not read" in caplog.text
    assert "documents" not in caplog.text
    (tmp_path / "train").rename(tmp_path / "extra2")
    with pytest.raises(InputError, match=r"not read.*nothing is called train"):
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
    with pytest.raises(InputError, match="train is a link to nothing"):
        open_splits(reader, tmp_path)
    (tmp_path / "train").unlink()
    assert sum(len(split) for split in open_splits(reader, tmp_path).values()) == 4
    assert "has no train: a part of its val is held out" in caplog.text


def test_tars_of_classes_that_were_not_unpacked_are_not_read_without_labels(tmp_path, caplog):
    for number in range(3):
        tar(tmp_path / f"train/n0144076{number}.tar", (f"n0144076{number}_1.JPEG", png()))
    put(tmp_path / "val/n01440760/1.png")
    with pytest.raises(InputError, match=r"train of .* has no image, though its folder or file is there"):
        open_splits(AUTO, tmp_path)
    assert "3 .tar" in caplog.text


def test_two_folders_of_one_name_are_refused(tmp_path):
    for name in ("train", "Train"):
        put(tmp_path / name / "1.png")
    with pytest.raises(InputError, match="name one split"):
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
def test_splits_are_found_in_a_folder_of_their_own_and_by_longer_names(tmp_path, train, val):
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


def test_splits_of_several_folders_are_refused_and_classes_stay_classes(tmp_path, caplog):
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


def test_readers_with_folders_of_their_own_know_the_names_of_splits(tmp_path):
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
    assert both(open_splits(AUTO, tmp_path / "snapshots/1")) == {"0": (0, None), "1": (0, None)}


# What is a picture


def test_suffixes_that_pillow_reads_are_read_and_others_are_counted(tmp_path, caplog):
    for suffix, kind in (
        ("jpe", "JPEG"), ("jfif", "JPEG"), ("GIF", "GIF"), ("pgm", "PPM"), ("pbm", "PPM"), ("avif", "AVIF"),
        ("dib", "BMP"),
    ):  # fmt: skip
        grey = Image.new("1" if suffix == "pbm" else "L", (8, 8), 1 if suffix == "pbm" else 200)
        with (tmp_path / f"{suffix}.{suffix}").open("wb") as file:
            grey.save(file, format=kind)
    for name in ("a.heic", "b.heic", "c.mp4", "d", "read.me.txt"):
        put(tmp_path / name, b"?")
    found = both(open_splits("folder", tmp_path))
    assert found.keys() == {"jpe", "jfif", "GIF", "pgm", "pbm", "avif", "dib"}
    assert all(abs(shade - (255 if key == "pbm" else 200)) < 4 for key, (shade, _) in found.items())
    assert "by suffix: 2 .heic, 1 without a suffix, 1 .mp4" in caplog.text


def test_a_compressed_tar_and_a_foreign_map_are_counted(tmp_path, caplog):
    tar(tmp_path / "train-0.tar", *((f"{n}.png", png()) for n in range(3)))
    put(tmp_path / "train-1.tar.gz", b"")
    open_splits("webdataset", tmp_path)
    put(tmp_path / "f/train/1.png")
    put(tmp_path / "f/val/1.png")
    put(tmp_path / "f/train_depth/1.exr", b"")
    open_splits("folder", tmp_path / "f")
    assert "1 .gz" in caplog.text
    assert "1 .exr" in caplog.text


def test_what_systems_add_is_neither_class_nor_picture_nor_table_nor_member(tmp_path):
    junk = (
        "__MACOSX/._1.png",
        "@eaDir/1.png/THUMB.png",
        "lost+found/x.png",
        "cat/@eaDir/1.png",
        "cat/._1.png",
        "$RECYCLE.BIN/2.png",
    )
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", *junk):
        put(tmp_path / "f" / name)
    splits = open_splits("folder", tmp_path / "f")
    assert both(splits).keys() == {"cat/1", "cat/2", "dog/1"}
    assert splits["train"].class_names == ("cat", "dog")
    names = ("._1.cls", "1.cls", "._1.png", "1.png", "__MACOSX/1.png", "2.png", "2.cls", "./@eaDir/2.png")
    tar(tmp_path / "t/train.tar", *((name, b"1" if name.endswith("cls") else png()) for name in names))
    assert both(open_splits("webdataset", tmp_path / "t")) == {"1": (0, 1), "2": (0, 1)}
    tar(
        tmp_path / "i/ILSVRC2012_img_val.tar",
        *((name, png()) for name in ("._ILSVRC2012_val_00000001.JPEG", "x/ILSVRC2012_val_00000001.JPEG")),
    )
    tar(tmp_path / "n01440764.tar", ("._a.JPEG", b""), ("a.JPEG", png(3)), ("b.JPEG", png(4)), ("notes.txt", b""))
    inner = (tmp_path / "n01440764.tar").read_bytes()
    tar(tmp_path / "i/ILSVRC2012_img_train.tar", ("._n01440764.tar", b"\0\5\x16\7"), ("./n01440764.tar", inner))
    put(tmp_path / "i/imagenet_2012_validation_synset_labels.txt", b"n01440764\n")
    found = open_splits("imagenet", tmp_path / "i")
    assert shades(found["train"]) == {"n01440764/a": (3, 0), "n01440764/b": (4, 0)}
    assert found["val"].keys == ["ILSVRC2012_val_00000001"]


def test_a_link_to_itself_costs_its_sample_and_a_hidden_list_nothing(tmp_path):
    for number in range(3):
        put(tmp_path / f"train/n01440764/{number}.png")
    put(tmp_path / "val/ILSVRC2012_val_00000001.png")
    (tmp_path / "train/n01440764/loop.png").symlink_to("loop.png")
    put(tmp_path / "._imagenet_2012_validation_synset_labels.txt", b"\0\5\x16\7\xff")
    put(tmp_path / "imagenet_2012_validation_synset_labels.txt", b"\xef\xbb\xbfn01440764\r\n")
    splits = open_splits("imagenet", tmp_path)
    assert splits["val"].items[0].label == 0
    with pytest.raises(InputError, match=r"n01440764/loop: loop\.png: .*symbolic links"):
        splits["train"].read(3, 8)


def test_maps_have_the_suffixes_of_lossless_pictures_and_one_file_for_an_image(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / split / "1.png")
        for kind, suffix in (("TIFF", "tif"), ("GIF", "gif")):
            folder = tmp_path / f"{split}_{'depth' if suffix == 'tif' else 'segmentation'}"
            folder.mkdir()
            Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / f"1.{suffix}", kind)
    sample = open_splits("folder", tmp_path)["train"].read(0, 8, conditions=["depth", "segmentation"])
    for name in ("depth", "segmentation"):
        np.testing.assert_array_equal(sample.conditions[name], np.arange(64).reshape(8, 8))
    put(tmp_path / "train_depth/1.npy", b"")
    with pytest.raises(InputError, match="are maps of one image"):
        open_splits("folder", tmp_path)


# Archives


def test_members_apart_links_and_odd_names_keep_their_bytes_and_labels(tmp_path):
    tar(
        tmp_path / "train.tar",
        ("/abs/1.png", png(1)), ("./2.input.jpg", png(2)), ("3.png", png(3)), ("../4.png", png(4)),
        member("5.png", tarfile.LNKTYPE, "3.png"), member("x/6.png", tarfile.SYMTYPE, "../8.png"),
        member("7.png", tarfile.SYMTYPE, "/etc/passwd"), ("8.png", png(8)), ("8.depth.png", png()),
        ("abs/1.cls", b"1"), ("2.cls", b"2"), ("3.cls", b"0"), ("5.cls", b"0\n"), ("x/6.json", b'{"label": 2.0}'),
    )  # fmt: skip
    splits = open_splits("webdataset", tmp_path)
    items = {item.key: (split, index) for split in splits.values() for index, item in enumerate(split.items)}
    assert items.keys() == {"abs/1", "2", "3", "4", "5", "x/6", "7", "8"}
    split, index = items.pop("7")
    with pytest.raises(InputError, match=r"7: 7.png: it is a link to etc/passwd, which is no file of the archive"):
        split.read(index, 8)
    found = {
        key: (int(split.read(index, 8).image[0, 0, 0]), split.items[index].label)
        for key, (split, index) in items.items()
    }
    assert found == {
        "abs/1": (1, 1), "2": (2, 2), "3": (3, 0), "4": (4, None), "5": (3, 0), "x/6": (8, 2), "8": (8, None),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_the_file(tmp_path, form):
    depth = np.zeros((96, 96), np.uint16)
    depth[40:50], depth[90:] = 7, 1234
    buffer = io.BytesIO()
    np.save(buffer, depth)
    with (tmp_path / "1.depth.npy").open("wb") as file:
        for place, byte in enumerate(buffer.getvalue()):
            if byte:
                file.seek(place)
                file.write(bytes([byte]))
    Image.new("RGB", (96, 96)).save(tmp_path / "1.png")
    put(tmp_path / "2.png")
    (tmp_path / "data").mkdir()
    command = ["tar", f"--format={form}", "--sparse", "--hole-detection=raw", "-C", tmp_path]
    subprocess.run([*command, "-cf", tmp_path / "data/train.tar", "1.depth.npy", "1.png", "2.png"], check=True)
    with tarfile.open(tmp_path / "data/train.tar") as archive:
        assert any(info.issparse() for info in archive)
    items = {item.key: item for split in open_splits("webdataset", tmp_path / "data").values() for item in split.items}
    with items["1"].conditions["depth"].open() as file:
        np.testing.assert_array_equal(np.load(file), depth)


def test_joined_tars_are_read_whole_and_cut_ones_refused(tmp_path):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", (f"{number}a.png", png(number)), (f"{number}b.png", png(number + 10)))
    parts = [(tmp_path / f"{number}.tar").read_bytes() for number in range(3)]
    whole = tmp_path / "data/train.tar"
    put(whole, b"".join(parts))
    assert {key: shade for key, (shade, _) in both(open_splits("webdataset", tmp_path / "data")).items()} == {
        "0a": 0, "0b": 10, "1a": 1, "1b": 11, "2a": 2, "2b": 12,
    }  # fmt: skip
    size = max(place for place, byte in enumerate(parts[0]) if byte) + 1
    for cut in {300, 512, 600, size - 700, size - 100, -(-size // 512) * 512}:
        put(whole, parts[0][:cut])
        with pytest.raises(InputError, match=r"train\.tar cannot be read as an uncompressed tar"):
            open_splits("webdataset", tmp_path / "data")
    put(whole, parts[0] + b"signature".ljust(512, b"!"))
    with pytest.raises(InputError, match="no member's header at byte 10,240: it is broken"):
        open_splits("webdataset", tmp_path / "data")
    broken = bytearray(parts[0])
    broken[1024:1536] = b"\x01" * 512  # the header of the second member
    put(whole, bytes(broken))
    with pytest.raises(InputError, match="no member's header at byte 1,024"):
        open_splits("webdataset", tmp_path / "data")
    tar(tmp_path / "i/ILSVRC2012_img_train.tar", ("n01440764.tar", parts[0][:2048]), ("n01440765.tar", parts[1]))
    with pytest.raises(InputError, match=r"without an end mark|cut short"):
        open_splits("imagenet", tmp_path / "i")


def test_a_sparse_member_of_terabytes_is_refused(tmp_path):
    with (tmp_path / "1.png").open("wb") as file:
        file.truncate(2**41)
    (tmp_path / "data").mkdir()
    subprocess.run(["tar", "--sparse", "-C", tmp_path, "-cf", tmp_path / "data/train.tar", "1.png"], check=True)
    with pytest.raises(InputError, match="sparse and promises 2,199,023,255,552 bytes"):
        open_splits("webdataset", tmp_path / "data")


def test_samples_that_are_not_clear_are_refused_and_imageless_ones_counted(tmp_path, caplog):
    tar(tmp_path / "train.tar", ("1.jpg", png()), ("1.png", png()))
    with pytest.raises(InputError, match=r"1 has pictures \.jpg and \.png"):
        open_splits("webdataset", tmp_path)
    tar(tmp_path / "train.tar", ("1.jpg", png()), ("1.jpg", png()))
    with pytest.raises(InputError, match=r"1\.jpg stands there twice"):
        open_splits("webdataset", tmp_path)
    tar(tmp_path / "train.tar", ("1.jpg", png(1)), ("2.txt", b""), ("3.input.jpg", png(3)), ("3.output.jpg", png(4)))
    assert both(open_splits("webdataset", tmp_path)) == {"1": (1, None), "3": (3, None)}
    assert "1 samples without an image are left out, such as 2" in caplog.text


def broken_tar(header: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = member("1.png")
        info.size, info.pax_headers = 512, header
        archive.addfile(info, io.BytesIO(bytes(512)))
    return buffer.getvalue()


def nested_long_names(count: int) -> bytes:
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 4
    return (info.tobuf(tarfile.GNU_FORMAT) + b"a.b".ljust(512, b"\0")) * count + bytes(1024)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (broken_tar({"GNU.sparse.map": "a", "GNU.sparse.size": "9"}), "invalid literal"),
        (broken_tar({"GNU.sparse.map": "-9,3", "GNU.sparse.size": "10"}), "its map leads out of it"),
        (broken_tar({"GNU.sparse.map": "900,3", "GNU.sparse.size": "10"}), "its map leads out of it"),
        (broken_tar({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "not enough values"),
        (nested_long_names(3000), "recursion"),
    ],
)
def test_an_empty_tar_and_odd_headers_are_refused_by_name(tmp_path, content, words):
    tar(tmp_path / "train-0.tar", ("a.png", png()), ("b.png", png()))
    put(tmp_path / "train-1.tar", content)
    with pytest.raises(InputError, match=rf"train-1\.tar cannot be read as an uncompressed tar .*{words}"):
        open_splits("webdataset", tmp_path)


def test_a_class_of_imagenet_whose_tar_is_empty_does_not_move_the_others(tmp_path):
    tar(tmp_path / "one.tar", ("a.JPEG", png()), ("b.JPEG", png()))
    tar(tmp_path / "none.tar")
    one, none = ((tmp_path / f"{name}.tar").read_bytes() for name in ("one", "none"))
    for inner in (none, b""):
        tar(tmp_path / "i/ILSVRC2012_img_train.tar", ("n01440764.tar", inner), ("n01443537.tar", one))
        with pytest.raises(InputError, match="is empty"):
            open_splits("imagenet", tmp_path / "i")


@pytest.mark.parametrize("form", ["v7", "oldgnu", "ustar", "gnu", "posix"])
def test_every_form_of_tar_that_gnu_tar_writes_is_read(tmp_path, form):
    for number in range(3):
        put(tmp_path / f"x/a.b/{number}.png", png(number))
    put(tmp_path / "x/a.b/1.CLS", b"\xef\xbb\xbf4\r\n")
    (tmp_path / "x/c").mkdir()
    os.link(tmp_path / "x/a.b/2.png", tmp_path / "x/c/3.png")
    (tmp_path / "x/c/4.png").symlink_to("3.png")
    subprocess.run(["tar", f"--format={form}", "-b1", "-C", tmp_path / "x", "-cf", tmp_path / "t.tar", "."], check=True)
    assert both(open_splits("webdataset", tmp_path)) == {
        "a%2Eb/0": (0, None), "a%2Eb/1": (1, 4), "a%2Eb/2": (2, None), "c/3": (2, None), "c/4": (2, None),
    }  # fmt: skip


# Labels


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([2, 0, "11", " 3", "4.0", 5.0, np.int64(6).item(), True], [2, 0, 11, 3, 4, 5, 6, 1], 12),
        ([-1, "-1", -7.0, None, "", " ", float("nan"), "NaN", 1], [None] * 8 + [1], 2),
        (["fox", "cat", "fox", None], [1, 0, 1, None], ("cat", "fox")),
        ([b"fox", "cat"], [1, 0], ("cat", "fox")),
        ([None, ""], [None, None], ()),
    ],
)
def test_numbers_stand_for_themselves_and_words_are_classes(values, labels, names):
    found = read_labels(((str(place), value) for place, value in enumerate(values)), "list")
    assert found[1] == labels
    assert found[0] == (tuple(map(str, range(names))) if isinstance(names, int) else names)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1.5], "label 1.5 of 1 is not a whole number"),
        ([0, "0.5"], "not a whole number"),
        ([50_000_000], "too large"),
        ([-(10**30)], "too large or too small"),
        ([float("inf")], "too large"),
        ([0, "cat"], "label 'cat' of 1 is a word, while others are numbers"),
        ([[1, 2]], "neither a number nor a name"),
        ([{"a": 1}], "neither a number nor a name"),
        ([1j], "is a complex"),
    ],
)
def test_other_labels_are_refused_by_name(values, words):
    with pytest.raises(InputError, match=words):
        read_labels(((str(place), value) for place, value in enumerate(values)), "list")


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.none(), st.integers(), st.floats(), st.text(max_size=6), st.binary(max_size=3), st.lists(st.integers())
        ),
        max_size=6,
    )
)
def test_any_label_is_read_or_one_message(values):
    try:
        names, labels = read_labels(((str(place), value) for place, value in enumerate(values)), "list")
    except InputError:
        return
    assert len(labels) == len(values)
    assert all(label is None or 0 <= label < len(names) for label in labels)


def test_words_categories_lists_and_large_types_in_tables(tmp_path):
    one = {"bytes": png(), "path": None}
    words = pa.array(["b", "a", "b"], pa.large_string())
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    for name, columns, labels in (
        ("words", {"image": [one] * 3, "label": ["b", "a", None]}, [1, 0, None]),
        ("categories", {"image": [one] * 3, "label": pa.array(["b", "a", "b"]).dictionary_encode()}, [1, 0, 1]),
        ("floats", {"image": [one] * 3, "label": [2.0, None, -1.0]}, [2, None, None]),
        ("lists", {"image": [[one]] * 3, "label": [[2], [0], [1]]}, [2, 0, 1]),
        ("polars", {"image": pa.array([one] * 3, large), "label": words}, [1, 0, 1]),
        ("capitals", {"Image": [one] * 3, "Label": [1, 0, 2], "Depth": [one] * 3}, [1, 0, 2]),
        ("bytes", {"PNG": pa.array([png()] * 3, pa.large_binary()), "labels": [1, 0, 2]}, [1, 0, 2]),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        for split in ("TRAIN", "val"):
            pq.write_table(pa.table(columns), tmp_path / name / f"{split}.Parquet")
        splits = open_splits("huggingface", tmp_path / name)
        for split in splits.values():
            assert [item.label for item in split.items] == labels, name
            split.read(2, 8)
            assert split.conditions == (("depth",) if name == "capitals" else ())
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table({"image": [one] * 3, "label": [[1, 2], [0], [1]]}), tmp_path / "two/train.parquet")
    with pytest.raises(InputError, match="neither a number nor a name"):
        open_splits("huggingface", tmp_path / "two")


VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
PLAIN = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "images",
    [
        pa.array([{"bytes": png(), "path": None}], VIEWS),
        pa.array([png()], pa.binary_view()),
        pa.array([[png()]]),
        pa.array([[{"bytes": png(), "path": "x"}]], pa.list_(PLAIN, 1)),
        pa.array([{"bytes": None, "path": "a/1.png"}]),
    ],
    ids=lambda images: str(images.type)[:20],
)  # fmt: skip
def test_images_in_columns_of_any_type_are_read(tmp_path, images, kind):
    put(tmp_path / "a/1.png")
    for split in ("train", "val"):
        table = pa.table({"image": images, "label": pa.array([b"cat"], pa.binary_view())})
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{split}.parquet")
        else:
            with pa.ipc.new_stream(tmp_path / f"{split}.arrow", table.schema) as file:
                file.write_table(table)
    splits = open_splits("huggingface", tmp_path)
    assert shades(splits["val"]) == {"val/0000000": (0, 0)}
    assert splits["train"].class_names == ("cat",)


def test_dates_beyond_the_calendar_and_tables_with_other_classes_are_refused(tmp_path):
    image = pa.array([{"bytes": png(), "path": None}] * 2)
    days = pa.array([2**31 - 1, 0], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"image": image, "label": days}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet cannot be read: days"):
        open_splits("huggingface", tmp_path)
    (tmp_path / "list").mkdir()
    pq.write_table(pa.table({"image": ["1.png", "2.png"], "label": days}), tmp_path / "list/images.parquet")
    with pytest.raises(InputError, match=r"images\.parquet cannot be read: days"):
        open_splits("folder", tmp_path / "list")
    (tmp_path / "list/images.parquet").unlink()
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        about = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
        table = pa.table({"image": image, "label": [0, 1]}, metadata={"huggingface": about})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match="names other classes than the files before it"):
        open_splits("huggingface", tmp_path)


def test_of_a_saved_dataset_the_listed_files_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(20)], "label": [n % 3 for n in range(20)]}
    saved = datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    )
    datasets.DatasetDict({"train": saved, "test": saved.select(range(5))}).save_to_disk(tmp_path / "d")
    loaded = datasets.load_from_disk(tmp_path / "d")["train"]
    loaded.map(lambda row: {"label": row["label"] + 1}).shuffle(seed=0)  # both leave a cache beside the data
    assert list((tmp_path / "d/train").glob("cache-*.arrow"))
    splits = open_splits("huggingface", tmp_path / "d")
    assert [item.label for item in splits["train"].items] == rows["label"]
    assert len(splits["val"]) == 5
    (tmp_path / "d/train/data-00000-of-00001.arrow").unlink()
    with pytest.raises(InputError, match=r"is missing, though the state.json beside it names it"):
        open_splits("huggingface", tmp_path / "d")


# Text


@pytest.mark.parametrize(
    ("encoding", "read"), [("utf-8", True), ("utf-8-sig", True), ("latin-1", False), ("utf-16", False)]
)
def test_lists_in_other_encodings_are_right_or_one_message(tmp_path, encoding, read):
    put(tmp_path / "1.png")
    put(tmp_path / "2.png")
    put(tmp_path / "images.csv", "image,label\n1.png,café\n2.png,bar\n".encode(encoding))
    if read:
        assert open_splits("folder", tmp_path)["train"].class_names == ("bar", "café")
    else:
        with pytest.raises(InputError, match=r"images\.csv is not UTF-8.*iconv"):
            open_splits("folder", tmp_path)


def test_a_list_from_windows_with_quoted_line_breaks_is_read(tmp_path):
    for number in range(3):
        put(tmp_path / f"a/{number}.png", png(number))
    rows = ["image,label,key", 'a\\0.png,"two\r\nlines",', "a\\1.png,b,0", "a/2.png,b,"]
    put(tmp_path / "images.csv", "\r\n".join(rows).encode("utf-8-sig"))
    splits = open_splits("folder", tmp_path)
    assert both(splits) == {"a/0": (0, 1), "0": (1, 0), "a/2": (2, 0)}
    pq.write_table(pa.table({"image": ["a/0.png", "a/1.png"], "key": [0, 1]}), tmp_path / "images.parquet")
    assert both(open_splits("folder", tmp_path)) == {"0": (0, None), "1": (1, None)}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([("image", pa.array([b"1.png", b"2.png"]))], "row 1: image is no path but bytes"),
        ([("image", pa.array([{"bytes": b"", "path": ""}] * 2))], "row 1: image is no path but dict"),
        ([("image", pa.array([1, 2]))], "row 1: image is no path but int"),
        ([("image", pa.array(["1.png", "2.png"]))] * 2, "column 'image' is there twice"),
    ],
)
def test_a_list_whose_images_are_no_paths_is_refused(tmp_path, columns, words):
    pq.write_table(
        pa.table([values for _, values in columns], [name for name, _ in columns]), tmp_path / "images.parquet"
    )
    with pytest.raises(InputError, match=words):
        open_splits("folder", tmp_path)


def test_scenes_of_ade20k_may_have_dots_and_spaces(tmp_path):
    for name in ("a.0", "a.1"):
        put(tmp_path / f"images/training/{name}.png")
        put(tmp_path / f"images/validation/{name}.png")
    put(tmp_path / "sceneCategories.txt", "a.0 living room\r\na.1 bar\r\n".encode("utf-8-sig"))
    splits = open_splits("ade20k", tmp_path)
    assert splits["val"].class_names == ("bar", "living room")
    assert [item.label for item in splits["train"].items] == [1, 0]


# Which layout it is


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
    assert "is read as landscapes: images/ and segmentations/ are there" in caplog.text
    put(tmp_path / "list/images.csv", b"image\n")
    assert resolve(AUTO, tmp_path / "list") == "folder"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no dataset is recognised"):
        open_splits(AUTO, tmp_path / "nothing")
    with pytest.raises(InputError, match="does not exist"):
        open_splits(AUTO, tmp_path / "nowhere")


def test_a_folder_that_looks_like_another_layout_is_named(tmp_path, caplog):
    for number in range(3):
        put(tmp_path / f"images/a/{number}.png")
        put(tmp_path / f"segmentations/a/{number}.png", png())
    open_splits("folder", tmp_path)
    assert "is read as folder, but looks like landscapes: images/ and segmentations/ are there" in caplog.text


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


def test_folders_of_maps_that_are_read_as_classes_are_named(tmp_path, caplog):
    for split in ("train", "valid"):
        for folder in ("images", "masks"):
            put(tmp_path / split / folder / "1.png")
    open_splits("folder", tmp_path)
    assert "images/, masks/ are read as classes; if one has the maps of another" in caplog.text
