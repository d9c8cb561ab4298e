"""The reader `folder`: class folders, maps, lists, and what is not read."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_pictures import all_shades, gradient, mask, png, put, put_tar, shades

from runkit.errors import UserError
from runkit.folders import check_apart
from vqgan.data import open_splits, sources_of
from vqgan.errors import InputError


def test_folder_with_classes_maps_and_strays(tmp_path):
    for split in ("training", "test"):
        for number, name in enumerate(("b", "a")):
            put(tmp_path / split / name / f"{number}.png", png(number))
            put(tmp_path / f"{split}_segmentation" / name / f"{number}.png", mask(number))
    put(tmp_path / "training_segmentation" / "a" / "lost.png", mask(0))
    splits = open_splits("folder", tmp_path)
    assert set(splits) == {"train", "val"}
    assert splits["train"].class_names == ("a", "b")
    assert shades(splits["train"]) == {"a/1": (1, 0), "b/0": (0, 1)}
    assert [Path(path).name for path in splits["train"].strays] == ["lost.png"]
    assert splits["val"].conditions == ("segmentation",)
    assert splits["val"].read(0, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 1


def test_a_flat_folder_has_its_maps_beside_it(tmp_path, monkeypatch):
    for number in range(3):
        put(tmp_path / "photos" / f"{number}.png", png(number))
        put(tmp_path / "photos_depth" / f"{number}.png", gradient())
    monkeypatch.chdir(tmp_path / "photos")
    for root in (tmp_path / "photos", Path()):
        splits = open_splits("folder", root)
        assert sum(map(len, splits.values())) == 3
        assert splits["train"].conditions == ("depth",)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_folder_with_a_list(tmp_path, form):
    for number in range(4):
        put(tmp_path / "any" / f"{number}.png", png(number))
        put(tmp_path / "masks" / f"{number}.png", mask(number))
    rows = [
        {"image": f"any/{n}.png", "label": "cat" if n % 2 else "ant", "split": "val" if n == 3 else "train",
         "key": f"00{n}", "segmentation": f"masks/{n}.png"}
        for n in range(4)
    ]  # fmt: skip
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    else:
        with (tmp_path / "images.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    splits = open_splits("folder", tmp_path)
    assert shades(splits["train"]) == {"000": (0, 0), "001": (1, 1), "002": (2, 0)}
    assert shades(splits["val"]) == {"003": (3, 1)}
    assert splits["val"].read(0, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture,label\na.png,1\n", "column 'image' is missing|unknown column 'picture'"),
        ("image,labels\na.png,1\n", "unknown column 'labels'"),
        ("image,label\n,1\n", "row 1: image is empty"),
        ("image,split\na.png,other\n", "split is 'other'"),
        ("image,label\na.png,1,2\n", "cannot be read"),
        ("image,label\na.png,99999999\n", "too large"),
        ("image,key\na.png,x\nb.png,x\n", "share the key 'x'"),
    ],
)
def test_an_invalid_list_is_refused_before_any_work(tmp_path, text, words):
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        open_splits("folder", tmp_path)


@pytest.mark.parametrize(
    ("encoding", "read"), [("utf-8", True), ("utf-8-sig", True), ("latin-1", False), ("utf-16", False)]
)
def test_lists_in_other_encodings_are_read_or_refused(tmp_path, encoding, read):
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
    assert all_shades(splits) == {"a/0": (0, 1), "0": (1, 0), "a/2": (2, 0)}
    pq.write_table(pa.table({"image": ["a/0.png", "a/1.png"], "key": [0, 1]}), tmp_path / "images.parquet")
    assert all_shades(open_splits("folder", tmp_path)) == {"0": (0, None), "1": (1, None)}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([("image", pa.array([b"1.png", b"2.png"]))], "row 1: image is not a path but bytes"),
        ([("image", pa.array([{"bytes": b"", "path": ""}] * 2))], "row 1: image is not a path but dict"),
        ([("image", pa.array([1, 2]))], "row 1: image is not a path but int"),
        ([("image", pa.array(["1.png", "2.png"]))] * 2, "column 'image' occurs twice"),
    ],
)
def test_a_list_whose_images_are_not_paths_is_refused(tmp_path, columns, words):
    pq.write_table(
        pa.table([values for _, values in columns], [name for name, _ in columns]), tmp_path / "images.parquet"
    )
    with pytest.raises(InputError, match=words):
        open_splits("folder", tmp_path)


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
    found = all_shades(open_splits("folder", tmp_path))
    assert found.keys() == {"jpe", "jfif", "GIF", "pgm", "pbm", "avif", "dib"}
    assert all(abs(shade - (255 if key == "pbm" else 200)) < 4 for key, (shade, _) in found.items())
    assert "by suffix: 2 .heic, 1 without a suffix, 1 .mp4" in caplog.text


def test_files_of_operating_systems_are_never_read(tmp_path):
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
    assert all_shades(splits).keys() == {"cat/1", "cat/2", "dog/1"}
    assert splits["train"].class_names == ("cat", "dog")
    names = ("._1.cls", "1.cls", "._1.png", "1.png", "__MACOSX/1.png", "2.png", "2.cls", "./@eaDir/2.png")
    put_tar(tmp_path / "t/train.tar", *((name, b"1" if name.endswith("cls") else png()) for name in names))
    assert all_shades(open_splits("webdataset", tmp_path / "t")) == {"1": (0, 1), "2": (0, 1)}
    put_tar(
        tmp_path / "i/ILSVRC2012_img_val.tar",
        *((name, png()) for name in ("._ILSVRC2012_val_00000001.JPEG", "x/ILSVRC2012_val_00000001.JPEG")),
    )
    put_tar(tmp_path / "n01440764.tar", ("._a.JPEG", b""), ("a.JPEG", png(3)), ("b.JPEG", png(4)), ("notes.txt", b""))
    inner = (tmp_path / "n01440764.tar").read_bytes()
    put_tar(tmp_path / "i/ILSVRC2012_img_train.tar", ("._n01440764.tar", b"\0\5\x16\7"), ("./n01440764.tar", inner))
    put(tmp_path / "i/imagenet_2012_validation_synset_labels.txt", b"n01440764\n")
    found = open_splits("imagenet", tmp_path / "i")
    assert shades(found["train"]) == {"n01440764/a": (3, 0), "n01440764/b": (4, 0)}
    assert found["val"].keys == ["ILSVRC2012_val_00000001"]


def test_a_link_to_itself_costs_its_sample_and_a_hidden_list_is_ignored(tmp_path):
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


def test_maps_are_lossless_and_one_per_image(tmp_path):
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
    with pytest.raises(InputError, match="are maps of the same image"):
        open_splits("folder", tmp_path)


def test_folders_of_maps_that_are_read_as_classes_are_reported(tmp_path, caplog):
    for split in ("train", "valid"):
        for folder in ("images", "masks"):
            put(tmp_path / split / folder / "1.png")
    open_splits("folder", tmp_path)
    assert "images/, masks/ are read as classes; if one holds the maps of another" in caplog.text


def test_an_output_must_be_apart_from_the_folders_of_samples(tmp_path):
    for name in ("train/cat", "val/cat", "train_depth/cat"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            mode, colour = ("L", number) if "depth" in name else ("RGB", (number, 0, 0))
            Image.new(mode, (8, 8), colour).save(tmp_path / name / f"{number}.png")
    found = sources_of(open_splits("folder", tmp_path), tmp_path)
    assert found == [tmp_path / "train", tmp_path / "train_depth", tmp_path / "val"]
    check_apart(tmp_path / "run", data=found)  # beside them: no reader looks there
    for out in (".", "train", "train/run", "train_depth/cat", ".."):
        with pytest.raises(UserError, match="the input data"):
            check_apart(tmp_path / out, data=found)
    flat = sources_of(open_splits("folder", tmp_path / "train"), tmp_path / "train")
    assert flat == [
        tmp_path / "train",
        tmp_path / "train_depth",
    ]  # these are classes, and a further folder would be one
