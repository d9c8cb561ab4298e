"""Descriptions of the known part of a picture: which codes they denote, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_job import write_tokenizer
from tiny_shards import SPEC, make_dataset

import imagepriors as ip
from codeprior.config import PriorError, SequenceSpec
from codeprior.sample_config import SampleConfig
from codeshards.format import ShardError, order
from imagepriors.cli import main
from imagepriors.decode.draw import draw_codes
from imagepriors.decode.partial import known_codes
from imagepriors.reports.run_priors import _animations
from vqgan.checkpoint import fingerprint


def any_order(height=4, width=4, **options):
    return SequenceSpec(
        height=height, width=width, codebook_size=8, order="zcurve", fingerprint="f", objective="any_order", **options
    )


def cells(sequence, given):
    """The known cells as rows of x and ., in raster order."""
    known_T = known_codes(sequence, given)
    known = np.empty(known_T.shape, bool)
    known[order(sequence.order, sequence.height, sequence.width)] = known_T
    rows = known.reshape(sequence.height, sequence.width)
    return " ".join("".join("x" if cell else "." for cell in row) for row in rows)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("upper", "xxxx xxxx .... ...."),
        ("not-upper", ".... .... xxxx xxxx"),
        ("left", "xx.. xx.. xx.. xx.."),
        ("corner", "xx.. xx.. .... ...."),
        ("centre", ".... .xx. .xx. ...."),
        ("not-centre", "xxxx x..x x..x xxxx"),
        ("checkerboard", "x.x. .x.x x.x. .x.x"),
        ("5", "xxx. xx.. .... ...."),
        (5, "xxx. xx.. .... ...."),
        ("0.25,0,1,0.5", ".xxx .xxx .... ...."),
        ("0.2,0,0.8,0.6", ".xx. .xx. .... ...."),
        ("not-0.5,0.5,1,1", "xxxx xxxx xx.. xx.."),
    ],
)
def test_every_description_denotes_cells(given, expected):
    assert cells(any_order(), given) == expected


def test_thirds_of_a_grid_are_exact():
    sequence = SequenceSpec(
        height=3, width=3, codebook_size=8, order="row_major", fingerprint="f", objective="any_order"
    )
    assert cells(sequence, f"{1 / 3},{1 / 3},{2 / 3},{2 / 3}") == "... .x. ..."


@pytest.mark.parametrize("side", [4, 10, 34])
def test_a_mask_is_known_where_a_cell_is_wholly_white(tmp_path, side):
    mask = np.full((side, side), 255, np.uint8)
    mask[side // 2, side - 1] = 0  # one pixel, in the third row and the last column
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert cells(any_order(), str(tmp_path / "mask.png")) == "xxxx xxxx xxx. xxxx"
    assert cells(any_order(), mask > 0) == "xxxx xxxx xxx. xxxx"
    colour = Image.fromarray(mask).convert("RGB")
    colour.save(tmp_path / "not-a-region.png")
    assert cells(any_order(), str(tmp_path / "not-a-region.png")) == "xxxx xxxx xxx. xxxx"
    assert cells(any_order(), f"not-{tmp_path / 'mask.png'}") == ".... .... ...x ...."


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("middle", ShardError, r"given = 'middle': use a number of codes, upper, left"),
        ("0.5,0,0.5,1", ShardError, "a rectangle LEFT,TOP,RIGHT,BOTTOM"),
        ("0.1,0.1,0.2,0.2", ShardError, "no cell of the 4×4 grid is wholly inside"),
        (-1, ShardError, "leave some to draw"),
        ("16", ShardError, "have 16 codes; leave some to draw"),
        ("0,0,1,1", ShardError, "leave some to draw"),
        ("nowhere.png", ShardError, r"'nowhere.png': the file does not exist"),
        ("scales-1", ShardError, "has 0 scales"),
        (np.ones((2, 2), bool), ShardError, r"a mask \[2, 2\]: use \[H, W\], at least 4×4"),
    ],
)
def test_what_denotes_no_part_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        known_codes(any_order(), given)


def test_codes_in_a_row_have_no_cells():
    row = any_order(height=1, width=8)
    assert known_codes(row, np.int64(3)).sum() == 3
    with pytest.raises(ShardError, match="have no cells on the picture; use a number of codes"):
        known_codes(row, "left")


def test_a_prior_of_one_order_names_the_orders_that_begin_with_the_part():
    sequence = SequenceSpec(height=4, width=4, codebook_size=8, order="zcurve", fingerprint="f")
    with pytest.raises(PriorError, match="orders that begin with them: spiral_out\\. A prior of objective 'any_order'"):
        known_codes(sequence, "centre")


@pytest.fixture
def prior(tmp_path):
    """A prior of any order for 4×4 codes of 8×8 pictures in three classes."""
    folder = write_tokenizer(tmp_path / "tokenizer", resolution=8, ch_mult=(1, 1), codebook_size=50)
    spec = replace(SPEC, image=replace(SPEC.image, fingerprint=fingerprint(folder)))
    make_dataset(tmp_path / "shards", spec=spec, tokenizer=folder, labelled=True)
    return ip.train_prior(
        tmp_path / "shards", condition="class", objective="any_order", out=tmp_path / "any", steps=2, batch_size=4,
        model={"n_layer": 1, "n_head": 2, "n_embd": 16},
    )  # fmt: skip


def test_an_animation_shows_the_cells_in_the_order_in_which_they_are_drawn(prior):
    drawn = draw_codes(prior.loaded, prior.folder, prior.shards, 3, config=SampleConfig(), frames=True)
    frames = _animations(prior.sequence, prior.decoder, drawn, 1)
    assert len(frames) == 3
    for of_one in frames:
        grey = [int((pixels.reshape(4, 2, 4, 2, 3) == 128).all((1, 3, 4)).sum()) for pixels in of_one]  # cells
        assert grey == sorted(grey, reverse=True)
        assert grey[0] >= 13  # at most 2 of 16 codes, and one cell of that colour
        assert grey[-1] <= 1
    first = [(of_one[0].reshape(4, 2, 4, 2, 3) != 128).any((1, 3, 4)) for of_one in frames]
    assert not all((cells == first[0]).all() for cells in first)  # each sample has an order of its own


def test_images_of_ones_own_are_completed(prior, tmp_path, capsys):
    assert "any order" in repr(prior)
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for file, pixels in zip(files, np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8), strict=True):
        Image.fromarray(pixels).save(file)
    codes = prior.tokenizer.encode(files).astype(np.int64)
    mask = np.zeros((8, 8), bool)
    mask[2:6] = True  # rows 1 and 2 of the 4 rows of cells
    drawn = prior.sample(3, images=files, given=mask, condition=["dog", 2], steps=5)
    assert drawn.conditions["class"].tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(drawn.codes[:, 1:3], codes[[0, 0, 1, 1], 1:3])
    assert (drawn.codes[0] != drawn.codes[1]).any()
    command = ["sample", "--prior", str(prior.folder), "--out", str(tmp_path / "s"), "--n", "4", "--steps", "5"]
    command += ["--images", *map(str, files), "--given", "0,0.25,1,0.75", "--condition"]
    assert main([*command, "dog", "2"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "s/codes.npz")["codes"], drawn.codes)
    assert main([*command, "owl"]) == 0
    assert np.load(tmp_path / "s/codes.npz")["condition_class"].tolist() == [2] * 4
    capsys.readouterr()
    assert main([*command, "0", "1", "2"]) == 2
    assert "condition has 3 classes for n = 2" in capsys.readouterr().err
    for options, words in (
        ({"given": 0}, "name with given which part of them is known"),
        ({"condition": None}, "name the class of each picture"),
        ({"images": []}, "images is empty"),
    ):
        with pytest.raises(ip.UserError, match=words):
            prior.sample(2, **{"images": files, "given": "left", "condition": 0, **options})
