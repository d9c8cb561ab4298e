"""What a picture's numbers mean, and which way up it is: every format, mode and orientation, image and map alike."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqgan.data import Item, Split, views_of
from vqgan.data.sources import File, Memory
from vqgan.errors import InputError

UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""EXIF orientation → how an upright picture is stored."""
MODES = {
    "PNG": ("L", "RGB", "RGBA", "LA", "P", "I;16", "1"),
    "TIFF": ("L", "RGB", "RGBA", "CMYK", "P", "I;16", "1", "YCbCr"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
}


def blocks(height: int, width: int) -> np.ndarray:
    """Grey levels that differ in each corner, in blocks of 8, so that JPEG keeps them."""
    rows, columns = np.mgrid[:height, :width] // 8
    return (40 * (columns + 1) + 90 * (rows % 2)).clip(0, 255).astype(np.uint8)


def in_mode(grey: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(grey)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "1":
        return image.point(lambda level: 255 * (level > 127)).convert("1")
    if mode == "P":
        image = image.convert("P")
        image.putpalette([level for level in range(256) for _ in range(3)])
        return image
    return image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else image.convert(mode)


def encoded(image: Image.Image, form: str, orientation: int) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = image.transpose(UNDO[orientation]) if orientation in UNDO else image
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    stored.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def one(image, **conditions) -> Split:
    image = image if not isinstance(image, bytes) else Memory("picture", image)
    return Split([Item(key="k", image=image, conditions=conditions)])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(form, mode) for form, modes in MODES.items() for mode in modes]),
    st.integers(1, 8),
    st.sampled_from([(24, 40), (40, 24), (16, 16)]),
    st.sampled_from(["PNG", "TIFF"]),
    st.integers(1, 8),
)
def test_size_pixels_and_maps_are_transposed_alike(kind, orientation, shape, map_form, map_orientation):
    (form, mode), grey = kind, blocks(*shape)
    maps = {
        "segmentation": Memory("mask", encoded(Image.fromarray(grey), map_form, map_orientation)),
        "depth": Memory("depth", encoded(in_mode(grey, "I;16"), map_form, map_orientation)),
    }
    split = one(encoded(in_mode(grey, mode), form, orientation), **maps)
    expected = grey if mode != "1" else np.where(grey > 127, 255, 0)
    assert split.image_size(0) == (shape[1], shape[0])
    whole = split.read_whole(0)
    slack = {"JPEG": 4, "TIFF": 2 * (mode in ("CMYK", "YCbCr"))}.get(form, 0)
    np.testing.assert_allclose(whole, np.repeat(expected[..., None], 3, 2), atol=slack)
    sample = split.read(0, max(shape), conditions=tuple(maps), geometry="pad")
    top, left = ((max(shape) - side) // 2 for side in shape)
    inner = np.s_[top : top + shape[0], left : left + shape[1]]
    np.testing.assert_array_equal(sample.image[inner], whole)
    np.testing.assert_array_equal(sample.conditions["segmentation"][inner], grey)
    low, high = int(grey.min()), int(grey.max())
    np.testing.assert_allclose(sample.picture("depth")[inner] * (high - low) + low, grey, atol=1e-3)


# Pictures of two pixels, written by hand, since Pillow writes few of these.


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(bits: int, colour_type: int, row: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 2, 1, bits, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(bits: int, row: bytes, *, end: str = "<", sample: int = 1, white: int = 1) -> bytes:
    """A TIFF of two grey pixels; `sample` 1 is unsigned, 2 signed, 3 float; `white` 0 is a negative."""
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, white), (273, 4, 0), (277, 3, 1)]
    tags += [(278, 3, 1), (279, 4, len(row)), (339, 3, sample)]
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(end + "IH", 8, len(tags))
    start = len(head) + 12 * len(tags) + 4
    for tag, kind, value in tags:
        content = start if tag == 273 else value
        head += struct.pack(end + "HHI", tag, kind, 1)
        head += struct.pack(end + "HH", content, 0) if kind == 3 else struct.pack(end + "I", content)
    return head + struct.pack(end + "I", 0) + row


BIG, SMALL = struct.pack(">HH", 0x1234, 0xC0FF), struct.pack("<HH", 0x1234, 0xC0FF)
READ = {
    "png16.png": (png(16, 0, BIG), (0x12, 0xC0)),
    "png16rgb.png": (png(16, 2, BIG[:2] * 3 + BIG[2:] * 3), (0x12, 0xC0)),
    "png16key.png": (png(16, 0, BIG, chunk(b"tRNS", BIG[:2])), (0xFF, 0xC0)),
    "png16opaque.png": (png(16, 4, BIG[:2] + b"\xff\xff" + BIG[2:] + b"\xff\xff"), (0x12, 0xC0)),
    "png16clear.png": (png(16, 4, BIG[:2] + b"\0\0" + BIG[2:] + b"\xff\xff"), (0xFF, 0xC0)),
    "pgm65535.pgm": (b"P5\n2 1\n65535\n" + BIG, (0x12, 0xC0)),
    "pgm1023.pgm": (b"P5\n2 1\n1023\n" + struct.pack(">HH", 0, 1023), (0, 0xFF)),
    "plain65535.pgm": (b"P2\n2 1\n65535\n4660 49407\n", (0x12, 0xC0)),
    "pgm100.pgm": (b"P5\n2 1\n100\n" + bytes([0, 100]), (0, 0xFF)),
    "ppm65535.ppm": (b"P6\n2 1\n65535\n" + BIG[:2] * 3 + BIG[2:] * 3, (0x12, 0xC0)),
    "tiff16.tif": (tiff(16, SMALL), (0x12, 0xC0)),
    "tiff16big.tif": (tiff(16, BIG, end=">"), (0x12, 0xC0)),
    "tiff16negative.tif": (tiff(16, SMALL, white=0), (0xED, 0x3F)),
    "tiff12.tif": (tiff(12, bytes([0x12, 0x3C, 0x0F])), (0x12, 0xC0)),
    "tiff8negative.tif": (tiff(8, b"\x12\xc0", white=0), (0xED, 0x3F)),
    "tiff4.tif": (tiff(4, b"\x1c"), (0x11, 0xCC)),
    "bits.pbm": (b"P4\n2 1\n" + bytes([0b10000000]), (0, 0xFF)),
}
REFUSED = {
    "float.pfm": (b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0, 1), "floats"),
    "float.tif": (tiff(32, struct.pack("<ff", 0, 1), sample=3), "floats"),
    "floatbig.tif": (tiff(32, struct.pack(">ff", 0, 1), end=">", sample=3), "floats"),
    "int32.tif": (tiff(32, struct.pack("<ii", 1, -2), sample=2), "signed or 32-bit integers"),
    "uint32.tif": (tiff(32, struct.pack("<II", 1, 2**32 - 1)), "signed or 32-bit integers"),
    "int16.tif": (tiff(16, struct.pack("<hh", 1, -2), sample=2), "signed or 32-bit integers"),
    "int16big.tif": (tiff(16, struct.pack(">hh", 1, -2), end=">", sample=2), "signed or 32-bit integers"),
}


@pytest.mark.parametrize("name", READ)
def test_every_depth_of_grey_keeps_its_levels(name, tmp_path):
    data, levels = READ[name]
    (tmp_path / name).write_bytes(data)
    whole = one(File(str(tmp_path / name))).read_whole(0)
    # Pillow scales 65,535 to 255 in PPM where others take the high byte.
    np.testing.assert_allclose(whole, np.repeat(np.array(levels)[None, :, None], 3, 2), atol=name.endswith(".ppm"))


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_without_a_defined_white_are_refused(name, tmp_path):
    data, kind = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    split = one(File(str(tmp_path / name)))
    assert split.image_size(0) == (2, 1)
    for read in (split.read_whole, lambda index: split.read(index, 8)):
        with pytest.raises(InputError, match=f"k: {name}: its pixels are {kind}.*save it with 8 or 16 bits"):
            read(0)


@pytest.mark.parametrize("name", [*REFUSED, *(name for name in READ if "rgb" not in name and "png16" not in name)])
def test_depth_requires_no_defined_white(name):
    """The same files as depth maps: the lower value is 0, the higher 1; a negative is inverted."""
    data, _ = (REFUSED | READ)[name]
    falls = "negative" in name or name in ("int32.tif", "int16.tif", "int16big.tif")
    image = encoded(Image.new("RGB", (2, 1)), "PNG", 1)
    depth = one(image, depth=Memory(name, data)).read(0, 2, conditions=("depth",), geometry="pad").picture("depth")
    row = depth[depth.any(1)][0]
    assert row.tolist() == ([1, 0] if falls else [0, 1])


LABELS = {
    "png4.png": (png(4, 0, b"\x1c"), (1, 12)),
    "png2.png": (png(2, 0, b"\x60"), (1, 2)),
    "png4palette.png": (png(4, 3, b"\x1c", chunk(b"PLTE", bytes(48))), (1, 12)),
    "png8.png": (png(8, 0, b"\x01\x0c"), (1, 12)),
    "tiff4.tif": (tiff(4, b"\x1c"), (1, 12)),
    "tiff8.tif": (tiff(8, b"\x01\xc8"), (1, 200)),
    "pgm150.pgm": (b"P5\n2 1\n150\n" + bytes([77, 149]), (77, 149)),
    "plain12.pgm": (b"P2\n2 1\n12\n1 12\n", (1, 12)),
    "pgm255.pgm": (b"P5\n2 1\n255\n" + bytes([77, 149]), (77, 149)),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_fewer_bits_are_not_scaled(name):
    """Pillow makes white of the highest grey: tools that make PNG small would turn label 1 into 17 or 85."""
    data, labels = LABELS[name]
    image = encoded(Image.new("RGB", (2, 1)), "PNG", 1)
    split = Split(
        [Item(key="k", image=Memory("p", image), conditions={"segmentation": Memory(name, data)})], n_labels=201
    )
    mask = split.read(0, 2, conditions=("segmentation",), geometry="stretch").conditions["segmentation"]
    assert mask[0].tolist() == list(labels)


def test_every_label_of_every_pgm_is_read():
    image = encoded(Image.new("RGB", (256, 1)), "PNG", 1)
    for highest in range(1, 256):
        labels = np.arange(256).clip(0, highest).astype(np.uint8)
        data = f"P5\n256 1\n{highest}\n".encode() + labels.tobytes()
        split = one(image, segmentation=Memory("m.pgm", data))
        found = split.read(0, 256, conditions=("segmentation",), geometry="stretch").conditions["segmentation"]
        np.testing.assert_array_equal(found[0], labels)


def test_a_coloured_depth_map_is_refused_and_a_grey_palette_is_grey():
    grey = blocks(16, 24)
    image = encoded(Image.fromarray(grey), "PNG", 1)
    palette = Image.fromarray(grey).convert("P")
    palette.putpalette([255 - level for level in range(256) for _ in range(3)])
    read = {}
    for name, source in (("L", Image.fromarray(255 - grey)), ("P", palette), ("RGB", palette.convert("RGB"))):
        split = one(image, depth=Memory("d.png", encoded(source, "PNG", 1)))
        read[name] = split.read(0, 16, conditions=("depth",)).picture("depth")
    np.testing.assert_array_equal(read["L"], read["P"])
    np.testing.assert_array_equal(read["L"], read["RGB"])
    palette.putpalette([channel for level in range(256) for channel in (level, 0, 255 - level)])
    with pytest.raises(InputError, match=r"d\.png: it has colours \(mode P\), expected grey levels"):
        one(image, depth=Memory("d.png", encoded(palette, "PNG", 1))).read(0, 16, conditions=("depth",))


def test_a_drawn_pose_on_a_transparent_ground_is_on_black():
    pose = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    pose.paste((255, 0, 0, 255), (4, 4, 8, 8))
    split = one(encoded(Image.new("RGB", (16, 16)), "PNG", 1), pose=Memory("p.png", encoded(pose, "PNG", 1)))
    drawn = split.read(0, 16, conditions=("pose",)).conditions["pose"]
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert drawn[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("geometry", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (64, 90), (33, 31), (64, 64)])
def test_torch_resizes_like_pillow(tmp_path, geometry, width, height):
    smooth = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    split = Split([Item(key="a", image=File(str(tmp_path / "a.png")))])
    for view in views_of(12):
        pillow, torch = (
            split.read(0, 64, view=view, geometry=geometry, resampler=name).image for name in ("pillow", "torch")
        )
        gap = np.abs(pillow.astype(int) - torch)
        assert pillow.shape == torch.shape == (64, 64, 3)
        assert gap.mean() < 0.5
        assert gap.max() <= 8
