"""The reader `webdataset`, and tars of every form."""

import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import all_shades, mask, png, put, put_tar, shades

from vqgan.data import open_splits
from vqgan.errors import InputError


def test_webdataset(tmp_path):
    for shard in range(2):
        members = {}
        for n in (2 * shard, 2 * shard + 1):
            members[f"{n:04d}.png"] = png(n)
            members[f"{n:04d}.cls"] = str(n % 3).encode()
            members[f"{n:04d}.seg.png"] = mask(n)
        put_tar(tmp_path / f"train-{shard:06d}.tar", members)
    put_tar(tmp_path / "val" / "0.tar", {"a.b.c/x.png": png(7), "a.b.c/x.json": json.dumps({"label": 2}).encode()})
    put_tar(tmp_path / "test" / "0.tar", {"a.b.c/x.png": png(9)})  # val is there: test is not for validation
    splits = open_splits("webdataset", tmp_path)
    assert shades(splits["train"]) == {f"{n:04d}": (n, n % 3) for n in range(4)}
    assert shades(splits["val"]) == {"a%2Eb%2Ec/x": (7, 2)}
    assert splits["train"].read(3, 8, conditions=("segmentation",)).conditions["segmentation"][0, 0] == 3
    put_tar(tmp_path / "train-000009.tar", {"0001.png": png(1)})
    with pytest.raises(InputError, match="share the key '0001'"):
        open_splits("webdataset", tmp_path)
    put_tar(tmp_path / "train-000009.tar", {"z.png": png(1), "z.cls": b"cat"})
    with pytest.raises(InputError, match="label 'cat' of z is a word, while others are numbers"):
        open_splits("webdataset", tmp_path)
    put_tar(tmp_path / "train-000009.tar", {"z.png": png(1)}, mode="w:gz")
    with pytest.raises(InputError, match="uncompressed tar"):
        open_splits("webdataset", tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_scattered_members_links_and_unusual_names_are_read(tmp_path):
    put_tar(
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
    with pytest.raises(InputError, match=r"7: 7.png: it is a link to etc/passwd, which is not a file of the archive"):
        split.read(index, 8)
    found = {
        key: (int(split.read(index, 8).image[0, 0, 0]), split.items[index].label)
        for key, (split, index) in items.items()
    }
    assert found == {
        "abs/1": (1, 1), "2": (2, 2), "3": (3, 0), "4": (4, None), "5": (3, 0), "x/6": (8, 2), "8": (8, None),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_read_as_the_original_file(tmp_path, form):
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


def test_concatenated_tars_are_read_and_truncated_ones_refused(tmp_path):
    for number in range(3):
        put_tar(tmp_path / f"{number}.tar", (f"{number}a.png", png(number)), (f"{number}b.png", png(number + 10)))
    parts = [(tmp_path / f"{number}.tar").read_bytes() for number in range(3)]
    whole = tmp_path / "data/train.tar"
    put(whole, b"".join(parts))
    assert {key: shade for key, (shade, _) in all_shades(open_splits("webdataset", tmp_path / "data")).items()} == {
        "0a": 0, "0b": 10, "1a": 1, "1b": 11, "2a": 2, "2b": 12,
    }  # fmt: skip
    size = max(place for place, byte in enumerate(parts[0]) if byte) + 1
    for cut in {300, 512, 600, size - 700, size - 100, -(-size // 512) * 512}:
        put(whole, parts[0][:cut])
        with pytest.raises(InputError, match=r"train\.tar cannot be read as an uncompressed tar"):
            open_splits("webdataset", tmp_path / "data")
    put(whole, parts[0] + b"signature".ljust(512, b"!"))
    with pytest.raises(InputError, match="no header of a member at byte 10,240: it is broken"):
        open_splits("webdataset", tmp_path / "data")
    broken = bytearray(parts[0])
    broken[1024:1536] = b"\x01" * 512  # the header of the second member
    put(whole, bytes(broken))
    with pytest.raises(InputError, match="no header of a member at byte 1,024"):
        open_splits("webdataset", tmp_path / "data")
    put_tar(tmp_path / "i/ILSVRC2012_img_train.tar", ("n01440764.tar", parts[0][:2048]), ("n01440765.tar", parts[1]))
    with pytest.raises(InputError, match=r"without an end mark|truncated"):
        open_splits("imagenet", tmp_path / "i")


def test_a_sparse_member_of_terabytes_is_refused(tmp_path):
    with (tmp_path / "1.png").open("wb") as file:
        file.truncate(2**41)
    (tmp_path / "data").mkdir()
    subprocess.run(["tar", "--sparse", "-C", tmp_path, "-cf", tmp_path / "data/train.tar", "1.png"], check=True)
    with pytest.raises(InputError, match="sparse and declares 2,199,023,255,552 bytes"):
        open_splits("webdataset", tmp_path / "data")


def test_ambiguous_samples_are_refused_and_those_without_an_image_counted(tmp_path, caplog):
    put_tar(tmp_path / "train.tar", ("1.jpg", png()), ("1.png", png()))
    with pytest.raises(InputError, match=r"1 has pictures \.jpg and \.png"):
        open_splits("webdataset", tmp_path)
    put_tar(tmp_path / "train.tar", ("1.jpg", png()), ("1.jpg", png()))
    with pytest.raises(InputError, match=r"1\.jpg occurs twice"):
        open_splits("webdataset", tmp_path)
    put_tar(
        tmp_path / "train.tar", ("1.jpg", png(1)), ("2.txt", b""), ("3.input.jpg", png(3)), ("3.output.jpg", png(4))
    )
    assert all_shades(open_splits("webdataset", tmp_path)) == {"1": (1, None), "3": (3, None)}
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
        (broken_tar({"GNU.sparse.map": "-9,3", "GNU.sparse.size": "10"}), "its map points outside it"),
        (broken_tar({"GNU.sparse.map": "900,3", "GNU.sparse.size": "10"}), "its map points outside it"),
        (broken_tar({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "not enough values"),
        (nested_long_names(3000), "recursion"),
    ],
)
def test_empty_tars_and_broken_headers_are_refused_by_name(tmp_path, content, words):
    put_tar(tmp_path / "train-0.tar", ("a.png", png()), ("b.png", png()))
    put(tmp_path / "train-1.tar", content)
    with pytest.raises(InputError, match=rf"train-1\.tar cannot be read as an uncompressed tar .*{words}"):
        open_splits("webdataset", tmp_path)


def test_an_empty_tar_of_a_class_does_not_shift_the_labels_of_others(tmp_path):
    put_tar(tmp_path / "one.tar", ("a.JPEG", png()), ("b.JPEG", png()))
    put_tar(tmp_path / "none.tar")
    one, none = ((tmp_path / f"{name}.tar").read_bytes() for name in ("one", "none"))
    for inner in (none, b""):
        put_tar(tmp_path / "i/ILSVRC2012_img_train.tar", ("n01440764.tar", inner), ("n01443537.tar", one))
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
    assert all_shades(open_splits("webdataset", tmp_path)) == {
        "a%2Eb/0": (0, None), "a%2Eb/1": (1, 4), "a%2Eb/2": (2, None), "c/3": (2, None), "c/4": (2, None),
    }  # fmt: skip


def test_compressed_tars_and_maps_of_other_formats_are_counted(tmp_path, caplog):
    put_tar(tmp_path / "train-0.tar", *((f"{n}.png", png()) for n in range(3)))
    put(tmp_path / "train-1.tar.gz", b"")
    open_splits("webdataset", tmp_path)
    put(tmp_path / "f/train/1.png")
    put(tmp_path / "f/val/1.png")
    put(tmp_path / "f/train_depth/1.exr", b"")
    open_splits("folder", tmp_path / "f")
    assert "1 .gz" in caplog.text
    assert "1 .exr" in caplog.text
