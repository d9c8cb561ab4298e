"""A studio over a tiny run, and a browser that opens it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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


@pytest.fixture
def page(open_page: Callable[..., Any], studio: str) -> Any:
    """A page on the studio, on which any error fails the test."""
    page = open_page(studio, viewport={"width": 1024, "height": 900})
    page.wait_for_selector("[role=tab]")
    return page
