"""A studio over a tiny run, and a browser that opens it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from browser import CHROMIUM

from imagepriors.studio.contents import Contents
from imagepriors.studio.guard import Access
from imagepriors.studio.serve import listen
from imagepriors.studio.server import make_app


@pytest.fixture(scope="session")
def contents(demo_run: Path) -> Contents:
    return Contents.open([demo_run])


@pytest.fixture(scope="session")
def studio(contents: Contents) -> Iterator[str]:
    """The URL of a running studio."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(contents, Access()), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


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
