"""A studio over a tiny run, and a browser that opens it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM
from studio_server import running

from imagepriors.studio.contents import Contents
from imagepriors.studio.guard import Access
from imagepriors.studio.server import make_app


@pytest.fixture(scope="session")
def contents(demo_run: Path) -> Contents:
    return Contents.open([demo_run])


@pytest.fixture(scope="session")
def studio(contents: Contents) -> Iterator[str]:
    """The URL of a running studio."""
    with running(make_app(contents, Access())) as url:
        yield url


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A running Chromium."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, studio):
    """A page on the studio, on which any error fails the test."""
    context = chromium.new_context(viewport={"width": 1024, "height": 900})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: errors.append(f"{message.text} {message.location['url']}") if message.type == "error" else None,
    )
    page.goto(studio)
    page.wait_for_selector("[role=tab]")
    yield page
    context.close()
    assert not errors
