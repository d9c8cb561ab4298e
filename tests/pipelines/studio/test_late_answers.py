"""Answers that arrive after the person has chosen something else."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studio_server import running
from tiny_shards import make_dataset

from codeshards.format import ShardDataset
from imagepriors.api.tokenizers import ImageTokenizer
from imagepriors.studio.contents import Contents
from imagepriors.studio.guard import Access
from imagepriors.studio.server import make_app
from vqgan.config import ModelConfig
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer


@contextmanager
def held(page, path):
    """Requests to a path wait until the block ends."""
    routes = []
    page.route(f"**/api/{path}", lambda route: routes.append(route))
    yield
    for route in routes:
        route.continue_()
    page.unroute(f"**/api/{path}")


@pytest.fixture
def two_tokenizers(demo_run, open_page, tmp_path):
    """A page on two tokenizers of pictures, each with shards of its own."""
    make_dataset(tmp_path / "shards")
    small = {"resolution": 16, "ch": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
    config = ModelConfig(**small, z_channels=8, embed_dim=8, codebook_size=50)
    other = ImageTokenizer.of(Tokenizer(config, VQGAN(config), "made", torch.device("cpu"), "float32"), Path("made"))
    contents = Contents.open([demo_run])
    both = replace(
        contents,
        tokenizers={**contents.tokenizers, "other": other},
        shards={**contents.shards, "more": ShardDataset.open(tmp_path / "shards")},
        typed={**contents.typed, "other": "other", "more": "more"},
        fingerprints={**contents.fingerprints, "image-tokenizer": "other"},
    )
    with running(make_app(both, Access())) as url:
        page = open_page(url, viewport={"width": 1024, "height": 900})
        yield page
        page.goto("about:blank")  # it asks no more before the server ends


def test_cells_are_those_of_the_chosen_prior_at_once(page):
    tab = page.locator("#complete")
    page.get_by_role("tab", name="Complete").click()
    tab.locator(".choice[aria-pressed=true]").wait_for()
    with held(page, "*"):
        tab.get_by_label("Prior").select_option("prior-any-class")
        tab.get_by_role("button", name="Corner").click()
        assert tab.get_by_text("4 of 16 codes are kept").is_visible()
    tab.get_by_role("button", name="Complete", exact=True).click()
    tab.locator(".job[data-state=done]").wait_for()
    assert tab.get_by_text("4 of 16 codes are kept").is_visible()


def test_pictures_of_another_tokenizer_are_not_offered(two_tokenizers):
    page, tab = two_tokenizers, two_tokenizers.locator("#tokens")
    page.get_by_role("tab", name="Tokens").click()
    tab.locator(".candidate").first.wait_for()
    old = tab.locator(".choice").evaluate_all("all => all.map(one => one.title)")
    with held(page, "rows"):
        tab.get_by_label("Tokenizer").select_option("other")
        assert tab.locator(".choice").count() == 0
    tab.locator(".controls .choice").first.wait_for()
    new = tab.locator(".controls .choice").evaluate_all("all => all.map(one => one.title)")
    assert new
    assert not set(new) & set(old)


def test_a_side_that_has_another_prior_shows_no_pictures_of_the_old_one(page):
    tab = page.locator("#compare")
    page.get_by_role("tab", name="Compare").click()
    tab.get_by_label("Prior A", exact=True).select_option("prior-row_major-class")
    tab.get_by_label("Prior B", exact=True).select_option("prior-row_major-class")
    with held(page, "jobs/draw"):
        tab.get_by_role("button", name="Draw both").click()
        tab.get_by_label("Prior A", exact=True).select_option("prior-any-class")
    side = tab.get_by_role("region", name="Side B").filter(visible=True)
    side.locator(".job[data-state=done]").wait_for()
    assert tab.get_by_alt_text("Picture 1, B").is_visible()
    assert not tab.get_by_alt_text("Picture 1, A").is_visible()
    assert not tab.get_by_role("region", name="Side A").filter(visible=True).locator(".job").is_visible()


def test_rows_that_were_found_in_another_split_are_not_shown(page):
    tab = page.locator("#shards")
    page.get_by_role("tab", name="Shards").click()
    tab.locator(".row img").first.wait_for()
    with held(page, "rows"):
        with held(page, "jobs/find"):
            tab.get_by_label("Text in key or caption").fill("1")
            page.keyboard.press("Enter")
            tab.locator(".job[data-state=waiting]").wait_for()
            tab.get_by_label("Split").select_option("train")
        page.wait_for_timeout(300)  # for an answer that must not count
    tab.get_by_text("Index 0 to 23 of 24 rows").wait_for()
    tab.locator(".row").nth(23).locator("img").first.wait_for()
    assert not tab.get_by_text("that match").is_visible()
    assert tab.locator(".row").evaluate_all("all => all.map(one => Number(one.dataset.index))") == list(range(24))
