"""Files of web servers, read in ranges, and lists of them.

Proxies and certificates follow the environment: HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE, SSL_CERT_FILE.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from runkit.errors import UserError
from runkit.places import ChangedError
from runkit.retries import patient

TIMEOUT_S = 60
WEB_FILES = (".tar", ".parquet", ".arrow")
"""Endings of the URLs that are files; any other URL is a list of them."""
_WHOLE_BYTES = 16 * 2**20
"""Largest file that is read whole from a server without ranges."""
_LIST_BYTES = 256 * 2**20
_MOST_URLS = 1_000_000
_thread = threading.local()
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")


class WebFile:
    """A file of a web server, opened by one small request. Threads may share it."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Ask for the size.

        Args:
            url: Its address.
            headers: Headers of the requests; Authorization is not sent to another host that an answer redirects to.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The server refuses, is not reachable, or has no ranges and the file is large.
        """
        self.url = url
        self._headers = dict(headers or {})
        with _request(url, self._headers, (0, 1)) as answer:
            self.stamp = _stamp_of(answer.headers)
            """What every answer must have; "" for no check."""
            self._whole = answer.status_code == HTTPStatus.OK
            if self._whole:
                self.size = int(answer.headers.get("Content-Length", -1))
            else:
                total = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
                self.size = int(total[1]) if total else -1
                answer.raw.drain_conn()  # so that the connection is used again
        if self.size < 0:
            raise OSError("the server does not report the size of the file: download it, and pass the folder")
        if self._whole and self.size > _WHOLE_BYTES:
            raise OSError(
                f"the server does not support range requests, and the file has {self.size:,} bytes, more than "
                f"{_WHOLE_BYTES:,}: download it, and pass the folder, or use another server"
            )

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Return the bytes of a range; fewer if the file now ends in it."""
        if self._whole:
            return _content(self.url, tuple(self._headers.items()), self.stamp)[offset : offset + nbytes]
        if nbytes <= 0:
            return b""
        with _request(self.url, self._headers, (offset, nbytes)) as answer:
            if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
                raise OSError(f"the server answered a range request with status {answer.status_code}")
            if self.stamp and _stamp_of(answer.headers) != self.stamp:
                raise ChangedError(f"{self.url} was changed while it was read: run again")
            content: bytes = answer.content
            return content


def _stamp_of(headers: Mapping[str, str]) -> str:
    """Return what identifies the content of an answer: its ETag, or else its time of modification; "" for neither."""
    return headers.get("ETag", "").removeprefix("W/") or headers.get("Last-Modified", "")


@functools.lru_cache(maxsize=4)
def _content(url: str, headers: tuple[tuple[str, str], ...], stamp: str) -> bytes:
    with _request(url, dict(headers), None) as answer:
        content: bytes = answer.content
        return content


@contextlib.contextmanager
def _request(url: str, headers: Mapping[str, str], span: tuple[int, int] | None) -> Iterator[Any]:
    """Provide the answer to a request for `span`, an offset and a length, or for the whole file."""
    import requests

    ranges = {"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"} if span is not None else {}
    try:
        sent = {"Accept-Encoding": "identity", **ranges, **headers}
        with _session().get(url, headers=sent, timeout=TIMEOUT_S, stream=True) as answer:
            if answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise FileNotFoundError(f"HTTP status {answer.status_code} {answer.reason}")
            if not answer.ok and answer.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise OSError(f"HTTP status {answer.status_code} {answer.reason}")
            yield answer
    except requests.RequestException as error:
        kind = OSError if isinstance(error, ValueError) else ConnectionError  # a ValueError is an invalid URL
        raise kind(" ".join(str(error).split())) from error


def _session() -> Any:
    """Return the session of this thread, which keeps its connections."""
    import requests

    if not hasattr(_thread, "session"):
        _thread.session = requests.Session()
        _thread.session.verify = os.environ.get("SSL_CERT_FILE") or True
    return _thread.session


def read_list(url: str) -> dict[str, str]:
    """Return the files that a URL lists, as path → URL; the paths are relative to the folder of all files.

    - Braces are expanded: ``https://host/train-{000000..000099}.tar``, ``https://host/{train,val}.parquet``.
    - A URL whose path ends as one of `WEB_FILES` is a file.
    - Any other URL is a text file of URLs, one per line, which may be relative to it. Empty lines and lines that begin
      with "#" are skipped.

    Raises:
        UserError: It lists no files, or something else.
        OSError: The text cannot be read.
    """
    if _BRACES.search(url) or _path(url).lower().endswith(WEB_FILES):
        urls = list(itertools.islice(_expanded(url), _MOST_URLS + 1))
    else:
        urls = [urljoin(url, line) for line in _lines(url)]
    urls = list(dict.fromkeys(urls))
    if not urls or len(urls) > _MOST_URLS:
        raise UserError(f"{url} lists {'no' if not urls else f'more than {_MOST_URLS:,}'} files")
    for found in urls:
        if urlsplit(found).scheme not in ("http", "https"):
            raise UserError(f"{url}: {found[:200]!r} is not an http or https URL")
    paths = [f"{urlsplit(found).netloc}{_path(found)}" for found in urls]
    folder = os.path.commonpath([path.rpartition("/")[0] for path in paths]) + "/"
    names = {path.removeprefix(folder): found for path, found in zip(paths, urls, strict=True)}
    if len(names) < len(urls):
        raise UserError(f"{url} lists two files of one path, which differ in the query of their URL")
    return names


def _path(url: str) -> str:
    return unquote(urlsplit(url).path)


def _expanded(url: str) -> Iterator[str]:
    match = _BRACES.search(url)
    if match is None:
        yield url
        return
    span = _RANGE.fullmatch(match[1])
    if span is None:
        values: Iterator[str] = iter(match[1].split(","))
    else:
        width = len(span[1]) if span[1].startswith("0") else 0
        values = (f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1))
    for value in values:
        yield from _expanded(url[: match.start()] + value + url[match.end() :])


@patient
def _lines(url: str) -> list[str]:
    with _request(url, {}, None) as answer:
        content = answer.raw.read(_LIST_BYTES + 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if len(content) > _LIST_BYTES or "\0" in text or text.lstrip()[:1] == "<":
        raise UserError(
            f"{url} is not a list of files: pass the URL of a text file with one URL per line, or of tars or tables "
            "with ranges, such as https://HOST/train-{000000..000099}.tar"
        )
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
