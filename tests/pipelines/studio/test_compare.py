"""The tab that shows two priors or two tokenizers side by side."""

import base64
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagepriors.studio.comparing import FiguresRequest, ReconstructRequest, figures, reconstruct
from imagepriors.studio.contents import Contents
from imagepriors.studio.pictures import read_picture
from runkit.errors import UserError


def test_figures_that_are_no_finite_numbers_are_left_out(demo_run, tmp_path):
    folder = Path(shutil.copytree(demo_run / "prior-any-class", tmp_path / "run/prior"))
    contents = Contents.open([folder.parent])
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**whole, "val_nll_nats": math.nan}))
    for damaged in (None, [], 3, {"fid": math.inf, "kid": "low"}):
        (folder / "evaluation.json").write_text(json.dumps({"figures": damaged}))
        found = figures(contents, FiguresRequest(prior="prior"))["figures"]
        assert found["steps"] == whole["steps"]
        assert not {"val_nll_nats", "fid", "kid"} & found.keys()


def run_job(contents, **values):
    return reconstruct(contents, ReconstructRequest(tokenizer="tokenizer", **values), lambda done, total: None)


def uri_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_picture_is_reconstructed_as_the_tokenizer_does_it(contents):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    found = run_job(contents, pictures=[uri_of(pixels)])
    tokenizer = contents.tokenizer("tokenizer")
    codes = tokenizer.encode(pixels)
    decoded = np.asarray(tokenizer.decode(codes), np.float64)
    assert np.array_equal(read_picture(found["originals"][0]), pixels)
    assert np.array_equal(read_picture(found["reconstructions"][0]), decoded)
    assert np.array_equal(read_picture(found["differences"][0]), np.minimum(255, 4 * np.abs(decoded - pixels)))
    error = float(np.mean((decoded - pixels) ** 2))
    assert found["psnr_db"] == [pytest.approx(20 * math.log10(255) - 10 * math.log10(error), abs=1e-3)]
    assert found["used"] == len(set(codes.ravel().tolist()))
    assert 2 ** (found["bits"] / codes.size) == pytest.approx(found["codebook_size"])


def test_pictures_of_shards_are_named_and_shifted(contents):
    values = {"shards": "shards", "split": "val", "n": 2}
    first, second = (run_job(contents, first=first, **values) for first in (0, 1))
    keys = next(contents.dataset("shards").batches("val", ["key"]))["key"].tolist()
    assert first["names"] == [keys[0], keys[5]]
    assert second["names"] == [keys[0], keys[1]]
    assert len(first["reconstructions"]) == 2
    assert first["mean_psnr_db"] == pytest.approx(np.mean(first["psnr_db"]))


def test_figures_of_training_are_shown(contents):
    found = figures(contents, FiguresRequest(prior="prior-row_major-class"))["figures"]
    summary = contents.prior("prior-row_major-class").summary
    assert found["val_nll_nats"] == summary["val_nll_nats"]
    assert found["parameters"] == summary["parameters"]


def test_what_does_not_fit_is_refused(contents):
    with pytest.raises(UserError, match="encodes depth"):
        reconstruct(contents, ReconstructRequest(tokenizer="tokenizer-depth"), lambda *_: None)
    with pytest.raises(UserError, match="shards '' is not on this page"):
        run_job(contents)
    with pytest.raises(UserError, match="cannot be read"):
        run_job(contents, pictures=["data:image/png;base64,AAAA"])


def test_two_priors_draw_the_same_class_and_seed(page):
    tab = page.locator("#compare")
    page.get_by_role("tab", name="Compare").click()
    tab.get_by_label("Prior A", exact=True).select_option("prior-row_major-class")
    tab.get_by_label("Prior B", exact=True).select_option("prior-row_major-class")
    tab.get_by_label("Class").select_option("dusk")
    tab.get_by_label("Pictures", exact=True).first.fill("2")
    draw(tab)
    assert tab.get_by_text("A: dusk").count() == tab.get_by_text("B: dusk").count() == 2
    pictures = sources(tab)
    assert pictures[0] == pictures[1] != pictures[2] == pictures[3]  # one prior, one seed: the sides are equal
    tab.get_by_role("row", name="Seconds per picture, here").wait_for()
    tab.get_by_role("row", name="Validation nll, nats per code").wait_for()
    second = tab.get_by_role("form", name="How prior B draws")
    second.get_by_text("Sampling").click()
    second.get_by_label("Temperature").fill("2")
    draw(tab)
    again = sources(tab)
    assert again[::2] == pictures[::2]
    assert again[1::2] != pictures[1::2]


def draw(tab):
    tab.get_by_role("button", name="Draw both").click()
    for side in ("Side A", "Side B"):
        tab.get_by_role("region", name=side).filter(visible=True).locator(".job[data-state=done]").wait_for()


def sources(tab):
    return tab.locator(".compared img:visible").evaluate_all("all => all.map(one => one.src)")


def test_two_tokenizers_reconstruct_the_same_picture(page, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    tab = page.locator("#compare")
    page.get_by_role("tab", name="Compare").click()
    tab.get_by_role("button", name="Tokenizers").click()
    tab.get_by_role("button", name="Reconstruct", exact=True).click()
    tab.get_by_text("DEMO_val_00000001").wait_for()
    tab.get_by_role("cell", name="dB").nth(1).wait_for()
    assert len(sources(tab)) == 3 * 6
    tab.get_by_label("Pictures of", exact=True).first.select_option("")
    with page.expect_file_chooser() as chooser:
        tab.get_by_role("button", name="Open pictures").click()
    chooser.value.set_files(tmp_path / "noise.png")
    pair = tab.locator(".compared figure").filter(has_text="noise.png")
    pair.get_by_text("B: ").filter(has_text="dB").wait_for()
    original, left, right = sources(tab)
    assert original != left == right
    tab.get_by_role("button", name="As each tokenizer sees it").click()
    assert sources(tab) == [original] * 3
    tab.get_by_role("button", name="Differences").click()
    assert len({original, left, *sources(tab)}) == 3
