"""A studio over a tiny run, and a browser that opens it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

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


@pytest.fixture
def page(open_page: Callable[..., Any], studio: str) -> Any:
    """A page on the studio, on which any error fails the test."""
    page = open_page(studio, viewport={"width": 1024, "height": 900})
    page.wait_for_selector("[role=tab]")
    return page
