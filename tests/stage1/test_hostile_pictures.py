"""Pictures, maps and keypoints made to run something, to hang, to fill the memory or to end a job cost themselves."""

import ast
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqgan.data import Item, Split
from vqgan.data.pictures import FORMATS
from vqgan.data.poses import JOINTS, Keypoints
from vqgan.data.sources import File, Memory
from vqgan.errors import InputError

ROOT = Path(__file__).parents[2]
PIXELS = np.zeros((16, 24, 3), np.uint8)
PIXELS[..., 0], PIXELS[..., 1] = 10 * np.arange(24), 10 * np.arange(16)[:, None]


def encoded(pixels, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def one(image, **conditions) -> Split:
    image = image if not isinstance(image, bytes) else Memory("picture", image)
    return Split([Item(key="k", image=image, conditions=conditions)])


def test_postscript_starts_no_other_program_whatever_its_suffix(tmp_path, monkeypatch):
    """Pillow hands it to Ghostscript, in which `{} loop` never ends."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 36\n%%EndComments\n{} loop\n"
    for name in ("x.png", "x.jpg", "x.tif", "x.eps"):
        path = tmp_path / name
        path.write_bytes(script)
        split = one(File(str(path)))
        for read in (split.image_size, split.read_whole, lambda index, split=split: split.read(index, 8)):
            with pytest.raises(InputError, match=f"k: {name}: cannot identify image file"):
                read(0)
        with pytest.raises(InputError, match="cannot identify image file"):
            one(encoded(PIXELS), pose=File(str(path))).read(0, 8, conditions=("pose",))
    assert not (tmp_path / "started").exists()


def test_pictures_are_opened_in_one_place():
    """Elsewhere Pillow would take a file for any of its 40 formats."""
    found = []
    for folder in ("common", "stage1", "tokenize", "stage2", "pipelines", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value) == "Image":
                    found.append(path.relative_to(ROOT).as_posix())
    # The benchmark's rival reads what the benchmark itself has written.
    assert set(found) == {"stage1/vqgan/data/pictures.py", "benchmarks/priorbench/decode.py"}


@pytest.mark.parametrize("form", ["ICO", "PCX", "TGA", "SGI", "IM"])
def test_rare_formats_are_refused(form):
    assert form not in FORMATS
    with pytest.raises(InputError, match="cannot identify image file"):
        one(encoded(np.zeros((16, 16, 3), np.uint8), form)).read(0, 8)


def test_the_listed_formats_are_read():
    for form in FORMATS:
        if form in Image.SAVE:
            assert one(encoded(PIXELS, form)).image_size(0) == (24, 16)
    both = io.BytesIO()
    Image.fromarray(PIXELS).save(both, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS[::-1].copy())])
    assert one(both.getvalue()).image_size(0) == (24, 16)


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
def test_a_tiff_is_transposed_once_and_its_size_agrees(orientation, compression):
    stored = Image.fromarray(PIXELS)
    stored = stored.transpose(UNDO[orientation]) if orientation in UNDO else stored
    buffer = io.BytesIO()
    stored.save(buffer, "TIFF", tiffinfo={274: 1}, compression=compression)
    before, after = (struct.pack("<HHIH", 274, 3, 1, value) for value in (1, orientation))  # libtiff writes 1 … 8 alone
    assert before in buffer.getvalue()
    mask = PIXELS[..., 0]
    split = one(buffer.getvalue().replace(before, after), segmentation=Memory("m.png", encoded(mask)))
    assert split.image_size(0) == (24, 16)
    np.testing.assert_array_equal(split.read_whole(0), PIXELS)
    sample = split.read(0, 16, conditions=("segmentation",))
    np.testing.assert_array_equal(sample.image[..., 0], sample.conditions["segmentation"])


def test_the_orientation_of_a_map_is_applied_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.asarray(Image.fromarray(PIXELS).transpose(UNDO[6]))
    mask = Memory("m.png", encoded(np.ascontiguousarray(stored[..., 0]), exif=exif))
    sample = one(encoded(stored, exif=exif), segmentation=mask).read(0, 16, conditions=("segmentation",))
    np.testing.assert_array_equal(sample.image, PIXELS[:, 4:20])
    np.testing.assert_array_equal(sample.conditions["segmentation"], PIXELS[:, 4:20, 0])


def exif_bytes(*entries: bytes, data: bytes = b"") -> bytes:
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(entries) + struct.pack("<I", 0) + data


ODD_EXIF = {
    # As Pillow #8965: a resolution of -1/0, which Pillow reads and cannot write.
    "signed": exif_bytes(
        struct.pack("<HHIHH", 0x112, 3, 1, 1, 0), struct.pack("<HHII", 0x11A, 10, 1, 38), data=struct.pack("<ii", -1, 0)
    ),
    "text": exif_bytes(struct.pack("<HHI4s", 0x112, 2, 2, b"6\0\0\0")),
    "nine": exif_bytes(struct.pack("<HHIHH", 0x112, 3, 1, 9, 0)),
    "far": exif_bytes(struct.pack("<HHII", 0x112, 3, 2**31, 2**31)),
    "loop": exif_bytes(struct.pack("<HHII", 0x8769, 4, 1, 8)),
    "cut": b"Exif\0\0II*\0\xff\xff",
    "noise": b"Exif\0\0" + bytes(range(256)),
}


@pytest.mark.parametrize("name", ODD_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_invalid_exif_is_ignored(name, form):
    options = {"lossless": True} if form == "WEBP" else {}
    if form == "PNG":  # Pillow would not write all of these
        plain = encoded(PIXELS)
        data = plain[:33] + chunk(b"eXIf", ODD_EXIF[name][6:]) + plain[33:]
    else:
        data = encoded(PIXELS, form, exif=ODD_EXIF[name], **options)
    split = one(data)
    assert split.image_size(0) == (24, 16)
    assert split.read_whole(0).shape == PIXELS.shape
    assert split.read(0, 8).image.shape == (8, 8, 3)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


REMARKS = {
    "a long text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000))),
    "many texts": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 1_000_000)) * 70,
    "a long profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(5_000_000))),
    "a broken profile": chunk(b"iCCP", b"icc\0\0" + b"no zlib"),
    "a wrong sum": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0",
    "a short size": chunk(b"pHYs", b"\0"),
}


@pytest.mark.parametrize("name", REMARKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_invalid_texts_in_a_png_are_ignored(name, place):
    whole = encoded(PIXELS)
    at = 33 if place == "before" else -12
    split = one(whole[:at] + REMARKS[name] + whole[at:])
    np.testing.assert_array_equal(split.read_whole(0), PIXELS)
    assert split.image_size(0) == (24, 16)


def tiff(*tags: tuple[int, int, int, int], following: int) -> bytes:
    """A grey TIFF of 4×4 pixels in one strip at 200, with more tags, whose directory names the next one."""
    base = [
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (277, 3, 1, 1),
        (278, 3, 1, 4),
        (279, 4, 1, 16),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted([*base, *tags]))
    data = b"II*\0" + struct.pack("<IH", 8, len(base) + len(tags)) + entries + struct.pack("<I", following)
    return data.ljust(200, b"\0") + bytes(range(16))


LOOPS = {
    "itself": tiff(following=8),
    "middle": tiff(following=10),
    "sub directories": tiff((330, 4, 1, 8), following=0),
    "exif": tiff((34665, 4, 1, 8), following=8),
    "gps": tiff((34853, 4, 1, 8), (34665, 4, 1, 8), following=0),
}
READ = """
import sys
from vqgan.data import Item, Split
from vqgan.data.sources import File

for path in sys.argv[1:]:
    split = Split([Item(key="k", image=File(path))])
    try:
        print(split.image_size(0), split.read(0, 8).image.shape, split.read_whole(0).shape)
    except ValueError as error:
        print(error)
"""


def test_tiffs_whose_directories_form_a_loop_end(tmp_path):
    for name, data in LOOPS.items():
        (tmp_path / f"{name}.tif").write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")  # for which a reader would wait as well
    paths = [str(tmp_path / f"{name}.tif") for name in LOOPS] + [str(tmp_path / "pipe.png"), "/dev/zero"]
    command = [sys.executable, "-c", READ, *paths]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert lines[: len(LOOPS)] == ["(4, 4) (8, 8, 3) (4, 4, 3)"] * len(LOOPS)
    assert lines[len(LOOPS) :] == ["k: pipe.png: it is not a regular file", "k: zero: it is not a regular file"]
    assert time.monotonic() - start < 30


def header(shape: str, kind: str = "<f4", order: str = "False", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header("(10000000, 10000000)"), r"depth is \(10000000, 10000000\), its image \(24, 16\)"),
        (header("(10000000, 10000000)", order="True"), r"depth is \(10000000, 10000000\)"),
        (header("(16, 24)", kind="|O"), "object"),
        (header("(16, 24)", kind="|V900000000"), "expected numbers"),
        (header("(16, 24)", kind="<U90000000"), "expected numbers"),
        (header("(16, 24)", kind="<c16"), "expected numbers"),
        (header("(16, 24)"), "map.npy"),  # no bytes follow
        (header("(-16, -24)"), "depth is"),
        (header("(16, 24, 1000000000)"), "expected grey"),
        (header("(" + "-" * 7000 + "16, 24)", version=b"\x02\x00"), "map.npy"),
        (header("(" + "(" * 7000 + "16, 24)", version=b"\x02\x00"), "map.npy"),
        (header("(16, 24)", version=b"\x03\x00"), "version 3"),
        (b"PK\x03\x04" + bytes(100), "magic"),
    ],
)
def test_an_array_with_a_false_header_costs_its_sample_alone(data, words):
    split = one(encoded(PIXELS), depth=Memory("map.npy", data))
    with pytest.raises(InputError, match=words):
        split.read(0, 8, conditions=("depth",))


def test_arrays_of_either_order_are_read():
    depth = np.arange(16 * 24, dtype=np.float64).reshape(16, 24)
    for array in (depth, np.asfortranarray(depth), depth.astype(">f4"), depth.astype(np.int16)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        split = one(encoded(PIXELS), depth=Memory("map.npy", buffer.getvalue()))
        found = split.read(0, 16, conditions=("depth",)).picture("depth")
        np.testing.assert_allclose(found * (16 * 24 - 1), depth[:, 4:20], atol=1e-4)


def test_a_huge_map_costs_its_sample_alone():
    large = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0))
    for name, source in (
        ("depth", Memory("m.pfm", b"Pf\n100000 1000\n-1.0\n")),
        ("depth", Memory("m.pfm", b"Pf\n1000000000 1000000000\n-1.0\n")),
        ("segmentation", Memory("m.png", large)),
    ):
        with pytest.raises(InputError, match=r"k: m\.\w+: "):
            one(encoded(PIXELS), **{name: source}).read(0, 8, conditions=(name,))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "[1]", "null", "9" * 400, "[" * 100_000])
def test_invalid_keypoints_cost_their_sample_alone(value):
    good = str([3] * len(JOINTS))
    bad = good.replace("3", value, 1)
    for xs, ys in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match="k: line 2: the keypoints"):
            one(encoded(PIXELS), pose=Keypoints(ys=ys, xs=xs, name="line 2")).read(0, 8, conditions=("pose",))


class Failing:
    """A source that raises an exception of its own class."""

    name = "it.png"

    def __init__(self, error):
        self.error = error

    def open(self):
        raise self.error

    def nbytes(self):
        return 1


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), AttributeError("odd"), struct.error("odd"), ZeroDivisionError("odd")]
)
def test_any_exception_of_a_decoder_costs_one_sample(error):
    items = [
        Item(key=str(number), image=Failing(error) if number == 1 else Memory("p", encoded(PIXELS)))
        for number in range(3)
    ]
    split = Split(items)
    for read in (split.image_size, split.read_whole, lambda index: split.read(index, 8)):
        with pytest.raises(InputError, match=r"1: it\.png: odd"):
            read(1)
    assert split.read_good(1, 8).key == "2"


def test_a_machine_without_memory_ends_the_job_and_names_the_sample():
    with pytest.raises(MemoryError, match=r"k: it\.png: out of memory"):
        one(Failing(MemoryError())).read(0, 8)


def test_huge_labels_are_refused(tmp_path):
    from vqgan.data import open_splits

    (tmp_path / "a.png").write_bytes(encoded(PIXELS))
    for label in ("1000000000", "1e400", "9" * 5000):
        (tmp_path / "images.csv").write_text(f"image,label\na.png,{label}\na.png,1\n")
        with pytest.raises(InputError, match="too large"):
            open_splits("folder", tmp_path)
