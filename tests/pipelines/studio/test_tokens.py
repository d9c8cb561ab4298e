"""The tab of codes: what is said of a code, editing, orders and scales."""

import base64
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_shards import make_dataset

from codeshards.format import ShardDataset
from codeshards.tools.inspect import inspect
from imagepriors.api.tokenizers import ImageTokenizer
from imagepriors.decode.rows import read_codes
from imagepriors.studio.codebook import CodeRequest, UsageRequest, code, usage
from imagepriors.studio.contents import Contents
from imagepriors.studio.rows import RowsRequest, row_pictures, rows
from imagepriors.studio.tokens import (
    DecodeRequest,
    EncodeRequest,
    OrdersRequest,
    ScalesRequest,
    decode,
    encode,
    orders,
    scales,
)
from runkit.errors import UserError
from vqgan.config import ModelConfig
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer

ROW = """
import numpy as np

class Row:
    resolution, grid, codebook_size, fingerprint = 32, (1, 4), 16, "row"

    def encode(self, pictures):
        return (pictures.reshape(len(pictures), 1, 4, -1).mean(-1) // 16).astype(np.int64)

    def decode(self, codes):
        return np.uint8(16 * codes.reshape(-1, 4, 1, 1, 1) + np.zeros((8, 32, 3))).reshape(-1, 32, 32, 3)
"""
SMALL = {"resolution": 32, "ch": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "attn_resolutions": (), "z_channels": 8}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def contents_of(*tokenizers):
    named = {f"t{i}": one for i, one in enumerate(tokenizers)}
    return Contents(title="", priors={}, tokenizers=named, shards={}, typed={}, fingerprints={})


def random_tokenizer(**values):
    torch.manual_seed(0)
    config = ModelConfig(**{**SMALL, "embed_dim": 8, "codebook_size": 64} | values)
    return ImageTokenizer.of(Tokenizer(config, VQGAN(config), "made", torch.device("cpu"), "float32"), Path("made"))


@pytest.fixture(scope="module")
def row_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("row")
    (folder / "row_of_codes.py").write_text(ROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        made = ImageTokenizer(Path("row_of_codes:Row"))
        assert made.loaded.config.grid == (1, 4)
        yield made


@pytest.fixture(scope="module")
def counted(contents):
    events = []
    return usage(contents, UsageRequest(shards="shards"), lambda *event: events.append(event)), events


def test_frequencies_are_those_of_the_shards(contents, counted, demo_run):
    found, events = counted
    expected = inspect(demo_run / "shards").codes["image"]
    assert (found["codes"], found["used"]) == (expected.counts_K.sum(), (expected.counts_K > 0).sum())
    assert [done for done, _ in events] == sorted(done for done, _ in events)
    assert events[-1][0] == events[-1][1]
    frequent = int(expected.counts_K.argmax())
    said = code(contents, CodeRequest(tokenizer="tokenizer", code=frequent, shards="shards"))
    assert (said["count"], said["rank"]) == (expected.counts_K.max(), 1)
    unused = int(expected.counts_K.argmin())
    said = code(contents, CodeRequest(tokenizer="tokenizer", code=unused, shards="shards"))
    assert (said["count"], said["share"], said["places"]) == (0, 0, 0)
    assert said["patch"]  # of the code alone


def test_the_typical_patch_is_the_mean_where_the_code_occurs(contents, counted):
    dataset, tokenizer = contents.dataset("shards"), contents.tokenizer("tokenizer").loaded
    codes_Nhw, _ = read_codes(dataset, "val", np.arange(dataset.rows("val")))
    number = int(np.bincount(codes_Nhw.ravel()).argmax())
    decoded, side = tokenizer.decode(codes_Nhw), tokenizer.config.factor
    patches = [
        decoded[n, side * row : side * (row + 1), side * column : side * (column + 1)]
        for n, row, column in np.argwhere(codes_Nhw == number)
    ]
    said = code(contents, CodeRequest(tokenizer="tokenizer", code=number, shards="shards"))
    assert said["places"] == len(patches)
    assert np.abs(pixels(said["patch"]) - np.mean(patches, 0)).max() <= 0.51
    assert np.allclose(counted[0]["colours"][number], np.mean(patches, (0, 1, 2)), atol=1)


@pytest.mark.parametrize("empty", [("val",), ("train", "val")])
def test_shards_with_empty_splits_are_counted(tmp_path, empty):
    keys = {"train": [f"sample1-{i:04d}" for i in range(10)], "val": [f"sample2-{i:04d}" for i in range(3)]}
    made = make_dataset(tmp_path / "shards", fails=[key for split in empty for key in keys[split]])
    contents = replace(
        contents_of(random_tokenizer(resolution=16, codebook_size=50)),
        shards={"shards": ShardDataset.open(tmp_path / "shards")},
        fingerprints={"image-tokenizer": "t0"},
    )
    found = usage(contents, UsageRequest(shards="shards"), lambda *_: None)
    assert found["pictures"] == len(made["train"]["keys"])
    assert set(map(str, found["colours"])) == set(map(str, np.unique(made["train"]["codes_NHW"])))
    for split in empty:
        request = RowsRequest(shards="shards", split=split, columns=True)
        assert rows(contents, request) == {"total": 0, "rows": []}
        assert row_pictures(contents, request, lambda *_, **__: None) == {}


def test_nearest_codes_are_those_of_the_quantiser():
    names = {"vq": {}, "l2": {}, "simvq": {}, "fsq": {"levels": (4, 4, 4), "embed_dim": 3}, "gumbel": {}}
    bits = {name: {"embed_dim": 6} for name in ("lfq", "bsq")}
    for name, values in (names | bits).items():
        tokenizer = random_tokenizer(quantizer=name, **values)
        said = code(contents_of(tokenizer), CodeRequest(tokenizer="t0", code=9))
        vectors = tokenizer.loaded._model.quantize.codebook().detach().numpy()
        distances = np.linalg.norm(vectors - vectors[9], axis=1)
        distances[9] = np.inf
        assert said["measure"] == "distance"
        assert np.allclose([one["distance"] for one in said["nearest"]], np.sort(distances)[:8], atol=1e-5), name
        assert np.allclose([distances[one["code"]] for one in said["nearest"]], np.sort(distances)[:8], atol=1e-5)


def test_a_quantiser_of_dot_products_is_not_given_distances():
    tokenizer = random_tokenizer(quantizer="ibq")
    vectors = tokenizer.loaded._model.quantize.codebook().detach().numpy()
    said = code(contents_of(tokenizer), CodeRequest(tokenizer="t0", code=9))
    products = np.delete(vectors @ vectors[9], 9)
    assert said["measure"] == "dot product"
    assert np.allclose([one["distance"] for one in said["nearest"]], -np.sort(-products)[:8], atol=1e-4)


def test_a_large_codebook_is_searched_for_the_asked_code_only():
    tokenizer = random_tokenizer(quantizer="lfq", embed_dim=18, codebook_size=2**18)
    tokenizer.loaded.decode(np.zeros((1, 8, 8), np.int64))
    started = time.monotonic()
    said = code(contents_of(tokenizer), CodeRequest(tokenizer="t0", code=2**18 - 1))
    assert time.monotonic() - started < 5
    assert {one["code"] for one in said["nearest"]} <= {2**18 - 1 - 2**bit for bit in range(18)}


def test_codes_in_a_row_have_no_cells(row_tokenizer):
    contents = contents_of(row_tokenizer)
    said = code(contents, CodeRequest(tokenizer="t0", code=3))
    assert (said["patch"], said["nearest"]) == (None, [])
    assert "does not show its code vectors" in said["why"]
    assert "only square" in scales(contents, ScalesRequest(tokenizer="t0", codes=[1, 2, 3, 4]))["why"]
    found = orders(contents, OrdersRequest(tokenizer="t0"))
    assert set(found["undefined"]) == {"spiral_out", "subsample"}
    one, other = decode(contents, DecodeRequest(tokenizer="t0", codes=[[1, 2, 3, 4], [1, 2, 9, 4]]))["pictures"]
    assert (pixels(one) != pixels(other)).any((1, 2)).tolist() == [False] * 16 + [True] * 8 + [False] * 8


def test_decoding_and_encoding_are_those_of_the_tokenizer(contents):
    tokenizer = contents.tokenizer("tokenizer")
    grids = np.random.default_rng(0).integers(0, tokenizer.config.codebook_size, (2, *tokenizer.config.grid))
    request = DecodeRequest(tokenizer="tokenizer", codes=grids.reshape(2, -1).tolist(), exact=True)
    shown = decode(contents, request)["pictures"]
    assert np.array_equal(np.stack([pixels(uri) for uri in shown]), tokenizer.decode_arrays(grids))
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    file = io.BytesIO()
    photo.save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    codes = encode(contents, EncodeRequest(tokenizer="tokenizer", picture=uri))["codes"]
    assert np.array_equal(codes, tokenizer.encode(photo).reshape(-1))


def test_scales_are_those_of_rescale_or_stored(contents):
    tokenizer = contents.tokenizer("tokenizer")
    height, width = tokenizer.config.grid
    codes = np.arange(height * width).reshape(1, height, width)
    found = scales(contents, ScalesRequest(tokenizer="tokenizer", codes=codes.reshape(-1).tolist()))["scales"]
    assert [one["side"] for one in found] == [2**k for k in range(int(np.log2(height)))]
    for one in found:
        rescaled = tokenizer.loaded.rescale(codes, one["side"])
        assert np.array_equal(one["codes"], rescaled.reshape(-1))
        assert np.array_equal(pixels(one["picture"]), tokenizer.decode_arrays(rescaled)[0])
        assert not one["stored"]


def test_stored_scales_are_those_of_the_row(tmp_path):
    rows = make_dataset(tmp_path / "shards")["val"]
    contents = Contents(
        title="",
        priors={},
        tokenizers={"t0": random_tokenizer(resolution=16, codebook_size=50)},
        shards={"shards": ShardDataset.open(tmp_path / "shards")},
        typed={},
        fingerprints={"image-tokenizer": "t0"},
    )
    codes = rows["codes_NHW"][2].reshape(-1).tolist()
    row = {"shards": "shards", "split": "val", "index": 2}
    found = scales(contents, ScalesRequest(tokenizer="t0", codes=codes, **row))["scales"]
    assert [(one["side"], one["stored"]) for one in found] == [(1, True), (2, True)]
    assert [one["codes"] for one in found] == [rows["scales"][side][2].reshape(-1).tolist() for side in (1, 2)]
    edited = scales(contents, ScalesRequest(tokenizer="t0", codes=codes))["scales"]
    assert not any(one["stored"] for one in edited)
    with pytest.raises(UserError, match="no row 3"):
        scales(contents, ScalesRequest(tokenizer="t0", codes=codes, **row | {"index": 3}))


@pytest.mark.parametrize("codes", [[0], [0] * 63 + [-1], [0] * 63 + [512]])
def test_codes_that_do_not_fit_are_refused(contents, codes):
    height, width = contents.tokenizer("tokenizer").config.grid
    codes = codes[-1:] * (height * width) if len(codes) > 1 else codes
    with pytest.raises(UserError, match=r"codes: a picture|not in the codebook"):
        decode(contents, DecodeRequest(tokenizer="tokenizer", codes=[codes]))
    with pytest.raises(UserError, match="not in the codebook"):
        code(contents, CodeRequest(tokenizer="tokenizer", code=10**6))


def open_tab(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("tab", name="Tokens").click()
    page.locator("#tokens .candidate").first.wait_for()
    page.locator("#tokens .counting").wait_for(state="hidden")


def copied(page):
    page.evaluate("() => navigator.clipboard.writeText('')")
    page.get_by_role("button", name=re.compile("Copy as JSON|Copied")).click()
    page.wait_for_function("() => navigator.clipboard.readText()")
    return np.array(json.loads(page.evaluate("() => navigator.clipboard.readText()")))


def decoded(page, text):
    page.locator("#tokens .token-work > [role=status]", has_text=text).filter(has_text="Decoded in").wait_for()
    return page.locator("#tokens .board-layers img").get_attribute("src")


def at(board, row, column, cells):
    """The middle of a cell, in pixels of the board."""
    box = board.bounding_box()
    return {"x": (column + 0.5) * box["width"] / cells, "y": (row + 0.5) * box["height"] / cells}


def test_a_code_is_looked_at_changed_and_restored(page, contents):
    open_tab(page)
    tab = page.locator("#tokens")
    before = copied(page)
    picture, grid = tab.locator(".boards .board").first, tab.locator(".boards .board").last
    picture.hover(position=at(picture, 1, 2, len(before)))
    tab.get_by_role("heading", name=f"Code {before[1, 2]}", exact=True).wait_for()
    assert grid.locator(".cell-mark").is_visible()
    assert "row 2, column 3" in tab.locator(".code-card").inner_text()
    grid.click(position=at(grid, 1, 2, len(before)))
    nearest = tab.locator(".candidate").first
    number = int(nearest.locator("b").inner_text())
    original = picture.locator("img").get_attribute("src")
    nearest.click()
    changed = decoded(page, f"Code {before[1, 2]} is now {number}")
    edited = before.copy()
    edited[1, 2] = number
    assert np.array_equal(copied(page), edited)
    assert np.array_equal(pixels(changed), contents.tokenizer("tokenizer").decode_arrays(edited[None])[0])
    tab.get_by_role("button", name="Difference").click()
    assert "1 changed code" in tab.inner_text()
    tab.get_by_role("button", name="Picture", exact=True).click()
    page.keyboard.press("Control+z")
    assert decoded(page, "Undone") == original
    tab.get_by_role("button", name="Redo").click()
    assert decoded(page, "Redone") == changed
    grid.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    tab.get_by_label("Code in row 2, column 4").fill("5")
    page.keyboard.press("Enter")
    decoded(page, "is now 5 in row 2, column 4")
    tab.get_by_role("button", name="Reset").click()
    assert decoded(page, "Reset") == original


def test_a_region_of_another_picture_is_pasted(page):
    open_tab(page)
    tab = page.locator("#tokens")
    before = copied(page)
    tab.locator("summary", has_text="Paste a region").click()
    tab.locator(".paste .choice").nth(2).click()
    source, target = tab.locator(".paste .board"), tab.locator(".boards .board").first
    source.scroll_into_view_if_needed()
    box, (start, end) = source.bounding_box(), (at(source, row, row, len(before)) for row in (1, 2))
    page.mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + end["x"], box["y"] + end["y"], steps=3)
    page.mouse.up()
    target.click(position=at(target, 2, 0, len(before)))
    decoded(page, "2 × 2 codes of")
    by_mouse = copied(page)
    unchanged = np.ones(before.shape, bool)
    unchanged[2:4, 0:2] = False
    assert np.array_equal(by_mouse[unchanged], before[unchanged])
    tab.get_by_role("button", name="Undo").click()
    decoded(page, "Undone")
    source.focus()  # the frame is still there: the keyboard takes it again
    page.keyboard.press("Enter")
    for key in ("ArrowUp", "Enter"):
        page.keyboard.press(key)
    decoded(page, "2 × 2 codes of")
    assert np.array_equal(copied(page)[1:3, 0:2], by_mouse[2:4, 0:2])


def test_orders_and_scales_are_shown(page):
    open_tab(page)
    tab = page.locator("#tokens")
    tab.get_by_role("img", name="Path of spiral_out").scroll_into_view_if_needed()
    assert tab.locator(".order-card figcaption").all_inner_texts() == [
        "row_major", "spiral_out", "zcurve", "subsample", "alternate",
    ]  # fmt: skip
    count = copied(page).size
    assert f"{count} of {count}" in tab.locator(".order-player").inner_text()  # still, because motion is reduced
    tab.get_by_role("button", name="Play the orders").click()
    tab.get_by_role("button", name="Pause the orders").click()
    assert f"{count} of {count}" not in tab.locator(".order-player").inner_text()
    slider = tab.get_by_label("Keep the first scales")
    slider.scroll_into_view_if_needed()
    tab.get_by_text(f"of {count} codes").or_(tab.get_by_text("the picture is decoded from")).first.wait_for()
    slider.focus()
    page.keyboard.press("Home")
    assert "decoded from 1 × 1 codes" in tab.locator(".kept-scales").inner_text()
    assert tab.locator(".tiers .dropped").count() == tab.locator(".tiers .picture").count() - 1


def test_a_picture_of_the_disk_is_encoded(page, contents, tmp_path):
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 255, (5, 7, 3), dtype=np.uint8)).resize((70, 50))
    photo.save(tmp_path / "photo.png")
    open_tab(page)
    tab = page.locator("#tokens")
    assert not tab.get_by_role("button", name="As uploaded").is_visible()
    tab.locator(".picker input[type=file]").first.set_input_files(tmp_path / "photo.png")
    tab.get_by_role("button", name="As uploaded").click()
    assert np.array_equal(copied(page), contents.tokenizer("tokenizer").encode(photo))
    with page.expect_download() as download:
        tab.get_by_role("button", name="Download PNG").click()
    assert download.value.suggested_filename == "photo.png"
    saved = np.asarray(Image.open(download.value.path()).convert("RGB"))
    decoded_again = contents.tokenizer("tokenizer").decode_arrays(copied(page)[None])
    assert np.array_equal(saved, decoded_again[0])
