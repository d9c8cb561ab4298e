"""Pages in a headless Chromium of Debian, which Playwright drives."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Path of the browser; None where none is installed."""

_FAULTS = ("error", "assert")
"""Types of messages in the console that a page must not write."""


class Chromium:
    """A running browser; use it as a context manager.

    Playwright leaves its event loop marked as running in this thread between calls, which would end any ``asyncio.run``
    of later tests: the mark is here during `pages` only.
    """

    def __enter__(self) -> Chromium:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._loop = asyncio.get_running_loop()
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        self.browser: Browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        asyncio._set_running_loop(None)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio._set_running_loop(self._loop)
        self.browser.close()
        self._playwright.stop()

    @contextmanager
    def pages(self) -> Iterator[Callable[..., Page]]:
        """A function that opens a URL in a page that shares nothing with others.

        Its keywords are those of Playwright's ``new_context``. Exceptions and errors in the console of any of the
        pages raise AssertionError at the end.
        """
        contexts, errors = [], list[str]()

        def note(message: ConsoleMessage) -> None:
            if message.type in _FAULTS:
                errors.append(f"{message.text} {message.location['url']}")

        def open_page(url: str, **options: Any) -> Page:
            contexts.append(self.browser.new_context(**options))
            page = contexts[-1].new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", note)
            page.goto(url)
            return page

        asyncio._set_running_loop(self._loop)
        try:
            yield open_page
            for context in contexts:
                context.close()
            assert not errors, errors
        finally:
            asyncio._set_running_loop(None)
