"""A web server of a folder, with range requests or without."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server


def sliced(content: bytes, span: str | None) -> tuple[str, dict[str, str], bytes]:
    """Status, headers and content of the answer to a request for a range."""
    if not span:
        return "200 OK", {}, content
    first, last = (int(number) for number in span.removeprefix("bytes=").split("-"))
    if first >= len(content):
        return "416 Range Not Satisfiable", {"Content-Range": f"bytes */{len(content)}"}, b""
    part = content[first : last + 1]
    return "206 Partial Content", {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}, part


class WebServer:
    """A running server of the files in a folder."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.ranges = root, True
        self.fails: Callable[[str], bool] = lambda path: False
        """Which requests, by path, are answered with status 503."""
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = self.root / environ["PATH_INFO"].lstrip("/")
        if self.fails(environ["PATH_INFO"]):
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        if not path.is_file():
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]
        content = path.read_bytes()
        status, headers, part = sliced(content, environ.get("HTTP_RANGE") if self.ranges else None)
        headers |= {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Content-Length": str(len(part))}
        start_response(status, list(headers.items()))
        return [part]
