"""Crop, pad and stretch: image, masks, depth and poses stay together, in every view; a drawn pose is not mirrored."""

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vqgan.batches import training_pictures
from vqgan.checkpoint import fingerprint, load_config, save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig, dataset_geometry
from vqgan.data import CENTRE, Item, Split, View, views_of
from vqgan.data.poses import JOINTS, Keypoints
from vqgan.data.sources import Memory
from vqgan.errors import InputError
from vqgan.modalities import to_input, to_pictures
from vqgan.model import VQGAN
from vqgan.palette import fit_palette
from vqgan.train import train_tokenizer

GEOMETRIES = ("crop", "pad", "stretch")
MAPS = ("segmentation", "depth")


def stored(pixels: np.ndarray, form: str = "PNG", **options) -> Memory:
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, pixels)
    else:
        Image.fromarray(pixels).save(buffer, form, **options)
    return Memory(f"it.{form.lower()}", buffer.getvalue())


def scene(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row; no pixel is white or 0."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 1 + np.arange(width), 1 + np.arange(height)[:, None]
    return pixels


def split_of(pixels: np.ndarray, **conditions) -> Split:
    """The picture with a mask of its columns and the depth of its rows."""
    maps = {"segmentation": stored(pixels[..., 0].copy()), "depth": stored(pixels[..., 1].astype(np.float32), "npy")}
    return Split([Item(key="k", image=stored(pixels), conditions={**maps, **conditions})])


sides = st.integers(2, 60)
views = st.builds(View, st.floats(0.3, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())


@settings(max_examples=40, deadline=None)
@given(sides, sides)
def test_pad_keeps_the_whole_picture_centred_in_its_proportions(height, width):
    size = max(height, width)
    sample = split_of(scene(height, width)).read(0, size, conditions=MAPS, geometry="pad")
    filled = (sample.image == 255).all(-1)
    rows, columns = np.flatnonzero(~filled.all(1)), np.flatnonzero(~filled.all(0))
    np.testing.assert_array_equal(sample.image[np.ix_(rows, columns)], scene(height, width))
    for found in (rows, columns):
        assert abs(found[0] - (size - 1 - found[-1])) <= 1
    np.testing.assert_array_equal(sample.conditions["segmentation"] == 0, filled)
    assert (sample.picture("depth")[filled] == 0).all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_square_picture_is_the_same_in_every_geometry(geometry):
    split = split_of(scene(40, 40))
    for view in views_of(12):
        plain = split.read(0, 24, conditions=MAPS, view=view)
        other = split.read(0, 24, conditions=MAPS, view=view, geometry=geometry)
        np.testing.assert_array_equal(plain.image, other.image)
        for name in MAPS:
            np.testing.assert_array_equal(plain.conditions[name], other.conditions[name])


def test_stretch_resizes_each_side_and_keeps_the_whole_picture():
    pixels = scene(30, 90)
    found = split_of(pixels).read(0, 45, conditions=("segmentation",), geometry="stretch")
    np.testing.assert_array_equal(found.image, Image.fromarray(pixels).resize((45, 45), Image.Resampling.BICUBIC))
    assert found.conditions["segmentation"].min() <= 2
    assert found.conditions["segmentation"].max() >= 89


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["crop", "pad"]), sides, sides, views, st.sampled_from([None, *range(12)]))
def test_image_and_maps_show_the_same_window(geometry, height, width, view, number):
    """At the window's own size nothing is resampled, and so the maps must equal the picture's channels."""
    view = view if number is None else views_of(12)[number]
    assume(view.scale >= 0.9 or not view.within_centre)  # a smaller window may be beside the image
    size = view.window(width, height, geometry).width
    sample = split_of(scene(height, width)).read(0, size, conditions=MAPS, view=view, geometry=geometry)
    filled = (sample.image == 255).all(-1)
    assert not filled.all()
    assert geometry == "pad" or not filled.any()
    np.testing.assert_array_equal(np.where(filled, 0, sample.image[..., 0]), sample.conditions["segmentation"])
    rows = np.where(filled, 1, sample.image[..., 1].astype(float))
    np.testing.assert_allclose(rows, 1 + sample.picture("depth") * (height - 1), atol=1e-4)


def test_a_window_beside_the_image_is_filled():
    view = View(0.3, 0.0, 0.0, within_centre=True)
    sample = split_of(scene(4, 60)).read(0, 16, conditions=MAPS, view=view, geometry="pad")
    assert (sample.image == 255).all()
    assert (sample.picture("depth") == 0).all()
    assert (sample.conditions["segmentation"] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(GEOMETRIES), st.integers(40, 60), st.integers(20, 39), views, st.integers(8, 64))
def test_maps_follow_the_image_at_any_size(geometry, height, width, view, size):
    assume(view.scale >= 0.9 or not view.within_centre)  # a smaller window may be beside the image
    sample = split_of(scene(height, width)).read(0, size, conditions=MAPS, view=view, geometry=geometry)
    inside = sample.conditions["segmentation"] > 0
    window = view.window(width, height, geometry)
    slack = 2 + 2 * max(window.width, window.height) / size  # bicubic edges, and what one pixel spans
    columns = sample.image[..., 0].astype(float) - sample.conditions["segmentation"]
    rows = sample.image[..., 1] - 1 - sample.picture("depth") * (height - 1)
    assert np.abs(columns[inside]).max() <= slack
    assert np.abs(rows[inside]).max() <= slack


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("view", [*views_of(12), View(0.8, 0.2, 0.9), View(0.9, 1.0, 0.0, True)])
def test_keypoints_move_with_the_picture(geometry, view):
    """A limb is drawn over a line that is in the picture."""
    height, width = 128, 88
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[24:104, 42:47] = 1, 200, 1  # a bar from (44, 24) to (44, 103)
    xs, ys = [-1] * 18, [-1] * 18
    for name, y in (("neck", 24), ("nose", 103)):
        xs[JOINTS.index(name)], ys[JOINTS.index(name)] = 44, y
    split = split_of(pixels + 1, pose=Keypoints(ys=str(ys), xs=str(xs), name="line 2"))
    sample = split.read(0, 64, conditions=("pose",), view=view, geometry=geometry)
    limb = sample.conditions["pose"].max(-1) > 0
    bar = (sample.image[..., 1] > 100) & (sample.image[..., 0] < 100)
    assert limb.sum() > 20
    assert (limb & bar).sum() >= 0.95 * limb.sum()
    bar_rows, limb_rows = (np.flatnonzero(found.any(1)) for found in (bar, limb))
    assert np.abs(bar_rows[[0, -1]] - limb_rows[[0, -1]]).max() <= 2


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_shows_the_same_window(geometry, orientation):
    smooth = Image.fromarray(scene(24, 40) * 4).resize((960, 640), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    split = Split([Item(key="k", image=stored(np.asarray(smooth), "JPEG", quality=95, exif=exif))])
    for plain, drafted in zip(
        *(split.read_views(0, 64, views_of(12), geometry=geometry, draft=draft) for draft in (False, True)), strict=True
    ):
        assert np.abs(plain.image.astype(int) - drafted.image).mean() < 2
        assert not np.array_equal(plain.image, drafted.image)  # it was coarser


def test_extreme_proportions_are_read_in_little_memory():
    split = Split([Item(key="k", image=stored(np.full((1, 30_000), 9, np.uint8)))])
    image = split.read(0, 32, geometry="pad").image
    assert (image.min(-1) < 255).any(1).sum() == 1
    assert (split.read(0, 32, geometry="stretch").image == 9).all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("crop_scale", [0.0, 0.6])
def test_training_and_palettes_see_the_models_geometry(geometry, crop_scale, tmp_path):
    model = ModelConfig(resolution=32, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), geometry=geometry)
    config = TrainConfig(model=model, batch_size=6, crop_scale=crop_scale)
    split = split_of(scene(40, 20))
    with ThreadPoolExecutor(1) as pool:
        pictures = training_pictures(split, config, 0, pool)
    whole = split.read(0, 32, geometry=geometry).image
    if crop_scale == 0:
        assert all(any(np.array_equal(seen, side) for side in (whole, whole[:, ::-1])) for seen in pictures)
    else:
        assert len({seen.tobytes() for seen in pictures}) == 6
    assert all((seen == 255).all(-1).any() == (geometry == "pad") for seen in pictures)
    fit_palette(split, tmp_path, colours=8, resolution=16, geometry=geometry)
    assert load_config(tmp_path).model.geometry == geometry


# Depth


def test_depth_is_scaled_over_the_whole_map_so_that_crops_agree():
    depth = np.random.default_rng(0).normal(7, 3, (40, 60))
    depth[3, 2], depth[30, 59] = -500, 900  # the extremes are outside the centre square
    split = split_of(scene(40, 60), depth=stored(depth, "npy"))
    whole = split.read(0, 60, conditions=("depth",), geometry="pad").picture("depth")[10:50]
    assert (whole.min(), whole.max()) == (0, 1)
    centre = split.read(0, 40, conditions=("depth",)).picture("depth")
    np.testing.assert_allclose(centre, whole[:, 10:50], atol=1e-6)
    assert 0.3 < centre.min() < centre.max() < 0.4
    corner = split.read(0, 20, conditions=("depth",), view=View(0.5, 0, 0)).picture("depth")
    np.testing.assert_allclose(corner, whole[:20, :20], atol=1e-6)
    np.testing.assert_allclose(whole * 1400 - 500, depth, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(4, 40), st.sampled_from(GEOMETRIES), views)
def test_resizing_depth_leaves_no_value_outside_its_range(seed, size, geometry, view):
    depth = np.random.default_rng(seed).integers(0, 2, (20, 30)).astype(np.float32)
    depth[0, :2] = 0, 1
    found = split_of(scene(20, 30), depth=stored(depth, "npy")).read(
        0, size, conditions=("depth",), view=view, geometry=geometry
    )
    config = ModelConfig(modality="depth")
    fed = to_input([found.picture("depth")], config)
    assert -1 <= fed.min() <= fed.max() <= 1
    np.testing.assert_allclose(to_pictures(fed, config)[0], found.picture("depth"), atol=1e-6)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
def test_depth_that_is_not_scaled_is_refused(value):
    depth = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    depth[0, 0] = value
    with pytest.raises(InputError, match="scale each map"):
        to_input([depth], ModelConfig(modality="depth"))


def test_depth_that_overflows_costs_its_sample_alone():
    depth = np.zeros((20, 30))
    depth[0, 0], depth[1, 1] = -1.5e308, 1.5e308
    with pytest.raises(InputError, match=r"it\.npy: depth map ranges from -1\.5e\+308"):
        split_of(scene(20, 30), depth=stored(depth, "npy")).read(0, 8, conditions=("depth",))


# Drawn poses

NET = ModelConfig(
    modality="pose", resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8,
    embed_dim=8, codebook_size=8,
)  # fmt: skip


def test_a_drawn_pose_is_not_mirrored():
    drawn = split_of(scene(20, 30), pose=stored(scene(20, 30)))
    assert drawn.read(0, 16, conditions=("pose",)).conditions["pose"].shape == (16, 16, 3)
    with pytest.raises(InputError, match=r"k: it\.png: a drawn pose cannot be mirrored"):
        drawn.read_views(0, 16, views_of(2), conditions=("pose",))
    assert len(drawn.read_views(0, 16, views_of(2), conditions=MAPS)) == 2


def test_training_on_drawn_poses_is_refused_at_once_with_a_remedy(tmp_path):
    splits = dict.fromkeys(("train", "val"), split_of(scene(20, 30), pose=stored(scene(20, 30))))
    loss = LossConfig(perceptual="none", disc_weight=0.0)
    config = TrainConfig(model=NET, loss=loss, steps=1, batch_size=1, device="cpu")
    with pytest.raises(InputError, match="set mirror = false, or give keypoints"):
        train_tokenizer(config, splits, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train_tokenizer(dataclasses.replace(config, mirror=False), splits, tmp_path / "run")["steps"] == 1


# Configs


def test_old_tokenizers_are_crops_and_keep_their_fingerprints(tmp_path):
    """The constant was computed before there was a choice; that version's config.json has no such field."""
    net = dataclasses.replace(NET, modality="rgb", resolution=8, ch_mult=(1,))
    model = VQGAN(net)
    with torch.no_grad():
        for weights in model.state_dict().values():
            weights.fill_(0.25)
    save_model(tmp_path, TrainConfig(model=net), model)
    assert fingerprint(tmp_path, "bdfc439ef789680c") == "bdfc439ef789680c"
    text = (tmp_path / "config.json").read_text()
    old = text.replace('"geometry": "crop",', "")
    assert old != text
    (tmp_path / "config.json").write_text(old)
    assert load_config(tmp_path).model.geometry == "crop"
    assert fingerprint(tmp_path, "bdfc439ef789680c") == "bdfc439ef789680c"
    save_model(tmp_path, TrainConfig(model=dataclasses.replace(net, geometry="pad")), model)
    assert fingerprint(tmp_path) != "bdfc439ef789680c"


def test_geometries_are_checked_and_follow_the_dataset():
    with pytest.raises(InputError, match="geometry"):
        ModelConfig(geometry="squeeze")
    assert dataset_geometry("deepfashion") == "pad"
    assert dataset_geometry("imagenet") == ModelConfig().geometry == "crop"
    assert CENTRE.window(176, 256, "pad") == (-40, 0, 256, 256)
