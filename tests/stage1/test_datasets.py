"""The dataset interface: geometry, views, conditions, and what becomes of bad input."""

import contextlib
import io
import os
import pickle
import struct
import warnings
import zlib
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqgan.data import CENTRE, Item, Split, View, open_splits, spread, views_of
from vqgan.data.files import find_files, make_key
from vqgan.data.poses import JOINTS, LIMBS, Keypoints, draw_pose
from vqgan.data.sources import File, Memory
from vqgan.errors import InputError


def png(pixels: np.ndarray | Image.Image, form: str = "PNG", **options) -> Memory:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Memory(f"picture.{form.lower()}", buffer.getvalue())


def ramp(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return pixels


def one(image, n_labels: int = 256, **conditions) -> Split:
    return Split([Item(key="k", image=image, conditions=conditions)], n_labels=n_labels)


def npy(array: np.ndarray) -> Memory:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return Memory("map.npy", buffer.getvalue())


def keypoints(**joints: tuple[float, float]) -> Keypoints:
    xs, ys = ([joints.get(name, (-1, -1))[axis] for name in JOINTS] for axis in (0, 1))
    return Keypoints(ys=str(ys), xs=str(xs), name="poses.csv, line 2")


def test_the_centre_view_is_the_centre_square():
    image = one(png(ramp(40, 100))).read(0, 40).image
    np.testing.assert_array_equal(image, ramp(40, 100)[:, 30:70])


def test_views_are_centre_mirror_and_the_ten_crop():
    views = views_of(12)
    assert views[0] == CENTRE
    assert views[1] == CENTRE._replace(mirror=True)
    boxes = [view.window(110, 220) for view in views[2::2]]
    corners = [(5, 60), (0, 55), (10, 55), (0, 65), (10, 65)]
    assert boxes == [(*corner, 100, 100) for corner in corners]
    assert all(b == a._replace(mirror=True) for a, b in zip(views[::2], views[1::2], strict=True))
    assert views_of(2) == views[:2]


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.floats(0.3, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_image_mask_and_depth_show_the_same_window(height, width, scale, x, y, mirror):
    pixels = ramp(height, width)
    split = one(
        png(pixels), segmentation=png(pixels[..., 0]), depth=npy(pixels[..., 1].astype(np.float32))
    )  # fmt: skip
    view = View(scale, x, y, mirror)
    size = view.window(width, height).width
    sample = split.read(0, size, conditions=("segmentation", "depth"), view=view)
    np.testing.assert_array_equal(sample.image[..., 0], sample.conditions["segmentation"])
    np.testing.assert_allclose(sample.image[..., 1], sample.picture("depth") * (height - 1), atol=1e-4)


def test_a_mirror_swaps_left_and_right_joints():
    pose = keypoints(neck=(20, 10), right_shoulder=(10, 10), right_elbow=(6, 20), left_shoulder=(30, 10))
    plain, mirrored = one(png(ramp(40, 40)), pose=pose).read_views(0, 40, views_of(2), conditions=("pose",))
    swapped = keypoints(neck=(19, 10), left_shoulder=(29, 10), left_elbow=(33, 20), right_shoulder=(9, 10))
    expected = draw_pose(swapped.joints((40, 40)), (0, 0, 40, 40), 40)
    np.testing.assert_array_equal(mirrored.conditions["pose"], np.asarray(expected))
    assert not np.array_equal(plain.conditions["pose"][:, ::-1], mirrored.conditions["pose"])


def test_limbs_without_a_joint_are_left_out_and_thickness_follows_size():
    joints = keypoints(neck=(20, 10), nose=(20, 2)).joints((40, 40))
    widths = []
    for size in (40, 160, 320):
        drawn = np.asarray(draw_pose(joints, (0, 0, 40, 40), size))
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 2  # one limb on black
        widths.append((drawn[size * 6 // 40].max(-1) > 0).sum())
    assert widths == [1, 4, 8]
    assert len(LIMBS) == 17


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_for_image_and_size(orientation):
    upright = Image.fromarray(ramp(16, 24))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    split = one(png(stored, exif=exif), segmentation=png(ramp(16, 24)[..., 0]))
    assert split.image_size(0) == (24, 16)
    sample = split.read(0, 16, conditions=("segmentation",))
    np.testing.assert_array_equal(sample.image[..., 0], sample.conditions["segmentation"])
    np.testing.assert_array_equal(sample.image, ramp(16, 24)[:, 4:20])


@pytest.mark.parametrize(
    ("mode", "color", "form", "expected"),
    [
        ("L", 100, "PNG", (100, 100, 100)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("P", 7, "PNG", None),
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
        ("LA", (10, 128), "PNG", (132, 132, 132)),
        ("I;16", 0x6400, "PNG", (100, 100, 100)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
    ],
)
def test_colour_modes_become_rgb_by_stated_rules(mode, color, form, expected):
    image = Image.new(mode, (8, 8), color)
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 2 * index % 256, 9)])
        expected = (7, 14, 9)
    assert tuple(one(png(image, form)).read(0, 8).image[4, 4]) == expected


def test_draft_gives_nearly_the_same_picture_of_a_large_jpeg():
    smooth = Image.fromarray(ramp(32, 48)).resize((768, 512), Image.Resampling.BICUBIC)
    split = one(png(smooth, "JPEG", quality=95), segmentation=png(np.zeros((512, 768), np.uint8)))
    plain, drafted = (
        split.read_views(0, 64, views_of(12), conditions=("segmentation",), draft=draft) for draft in (False, True)
    )
    for a, b in zip(plain, drafted, strict=True):
        assert np.abs(a.image.astype(int) - b.image).mean() < 2


def test_keys_are_dot_free_unique_and_reversible():
    for path in ("a.b/c d.x.jpg", "100%.png", "é/日本.webp", "tab\there.png", "plain.JPEG"):
        key = make_key(path)
        assert "." not in key
        assert not any(character.isspace() for character in key)
        assert unquote(key) == path.rpartition(".")[0]
    assert make_key("a.b.png") != make_key("a_b.png")
    picture = png(ramp(8, 8))
    with pytest.raises(InputError, match="share the key 'k'"):
        Split([Item(key="k", image=picture), Item(key="k", image=picture)])


def broken(kind: str) -> Memory:
    good = png(ramp(16, 16)).data
    if kind == "bomb":  # a header that declares 400 million pixels
        header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + header
        return Memory("bomb.png", good[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    data = {"empty": b"", "truncated": good[: len(good) // 2], "not an image": b"<html>404</html>"}[kind]
    return Memory(f"{kind}.png", data)


@pytest.mark.parametrize("kind", ["empty", "truncated", "not an image", "bomb"])
def test_a_bad_image_costs_its_sample_alone_and_is_named(kind):
    split = Split([Item(key=str(n), image=broken(kind) if n == 1 else png(ramp(16, 16))) for n in range(3)])
    with pytest.raises(InputError, match=f"1: {kind}.png"):
        split.read(1, 8)
    assert split.read(2, 8).key == "2"
    assert split.read_good(1, 8).key == "2"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_pictures_raise_input_errors_only(form, data):
    good = bytearray(png(ramp(24, 24), form).data)
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(good)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        with contextlib.suppress(InputError):
            assert one(Memory("x", bytes(good[:cut]))).read(0, 8).image.shape == (8, 8, 3)


FLAT = np.full((16, 16), 3, np.float32)
SLOPE = np.arange(256, dtype=np.float32).reshape(16, 16)


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("segmentation", png(np.zeros((8, 16), np.uint8)), r"segmentation is \(16, 8\), its image \(16, 16\)"),
        ("segmentation", png(np.full((16, 16), 9, np.uint8)), "label 9, wanted 0 … 8"),
        ("segmentation", png(ramp(16, 16)), "mode RGB"),
        ("segmentation", broken("truncated"), "truncated.png"),
        ("depth", npy(FLAT), "constant"),
        ("depth", npy(np.where(SLOPE == 7, np.nan, SLOPE)), "NaN"),
        ("depth", npy(np.where(SLOPE == 7, np.inf, SLOPE)), "infinite"),
        ("depth", npy(SLOPE[:8]), "depth is"),
        ("depth", npy(np.zeros((16, 16, 3), np.float32)), "shape"),
        ("depth", Memory("map.npy", b"\x93NUMPY"), "map.npy"),
        ("pose", Keypoints(ys="[1, 2]", xs="[1, 2]", name="line 2"), "line 2: .*keypoints, expected 18"),
        ("pose", Keypoints(ys="[1, 2", xs="", name="line 2"), "not two lists of numbers"),
        ("pose", keypoints(nose=(16, 3)), "nose at x 16, y 3 is outside the image of 16×16"),
        ("pose", keypoints(neck=(-1, 3)), "neck at x -1"),
    ],
)
def test_a_bad_condition_costs_its_sample_alone_and_is_explained(name, source, words):
    split = one(png(ramp(16, 16)), n_labels=9, **{name: source})
    with pytest.raises(InputError, match=words):
        split.read(0, 8, conditions=(name,))
    assert split.read(0, 8).image.shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["npy", "pfm", "png8", "png16", "rgba"])
def test_depth_comes_in_every_published_form(kind):
    if kind == "pfm":
        source = Memory("d.pfm", b"Pf\n16 16\n-1.0\n" + SLOPE[::-1].astype("<f4").tobytes())
    elif kind == "rgba":
        source = png(Image.fromarray(np.ascontiguousarray(SLOPE).view(np.uint8).reshape(16, 16, 4), "RGBA"))
    else:
        source = {"npy": npy(SLOPE), "png8": png(SLOPE.astype(np.uint8)), "png16": png(SLOPE.astype(np.uint16))}[kind]
    depth = one(png(ramp(16, 16)), depth=source).read(0, 16, conditions=("depth",)).picture("depth")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, np.linspace(0, 1, 256).reshape(16, 16), atol=1e-7)


def test_a_missing_condition_costs_its_sample_alone():
    mask = png(np.zeros((16, 16), np.uint8))
    items = [Item(key="a", image=png(ramp(16, 16)), conditions={"segmentation": mask})]
    split = Split([*items, Item(key="b", image=png(ramp(16, 16)))])
    assert split.conditions == ()
    with pytest.raises(InputError, match="b: no segmentation for this image"):
        split.read(1, 8, conditions=("segmentation",))
    assert split.having("segmentation").keys == ["a"]
    with pytest.raises(InputError, match="no sample has depth"):
        split.having("depth")


def test_training_skips_bad_files_up_to_ten_in_a_row(caplog):
    split = Split([Item(key=str(n), image=broken("empty")) for n in range(20)])
    with pytest.raises(InputError, match="10 samples in a row"):
        split.read_good(0, 8)
    assert "left out" in caplog.text


def test_unreadable_files_links_and_loops(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "ok.png")
    (tmp_path / "a" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / ".hidden.png").touch()
    assert find_files(tmp_path) == ["a/dangling.png", "a/ok.png"]
    split = open_splits("folder", tmp_path)
    both = {key: part for part in split.values() for key in part.keys}
    with pytest.raises(InputError, match=r"dangling\.png"):
        both["a/dangling"].read(both["a/dangling"].keys.index("a/dangling"), 8)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="symbolic link to a folder above it"):
        open_splits("folder", tmp_path)


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


def test_splits_are_picklable_and_a_subset_keeps_what_readers_need():
    split = one(png(ramp(16, 16)), n_labels=9, segmentation=png(np.full((16, 16), 9, np.uint8)))
    copy = pickle.loads(pickle.dumps(split)).subset([0])
    np.testing.assert_array_equal(copy.read(0, 8).image, split.read(0, 8).image)
    with pytest.raises(InputError, match="label 9"):
        copy.read(0, 8, conditions=("segmentation",))
    assert copy.source_hash() == split.source_hash()


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    """As old archives unpack: 'café' in Latin-1."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a.png")
    (tmp_path / "train" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(InputError, match=r"'caf\\udce9': this name is not UTF-8.*rename the file"):
        open_splits("folder", tmp_path)


def test_source_hash_follows_keys_labels_and_sizes(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"123")
    item = Item(key="x", image=File(str(path)), label=1)
    before = Split([item]).source_hash()
    assert Split([Item(key="x", image=File(str(path)), label=2)]).source_hash() != before
    path.write_bytes(b"1234")
    assert Split([item]).source_hash() != before


def test_spread_is_even():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 10) == [0, 1, 2]


def test_wrong_names_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"did you mean cifar10\? Choose one of auto, ade20k"):
        open_splits("cifar", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_splits("folder", tmp_path / "nowhere")
    for name in ("folder", "webdataset", "huggingface", "imagenet"):
        with pytest.raises(InputError, match="no images found"):
            open_splits(name, tmp_path)
