"""A server that answers the requests by which the Hugging Face client reads one dataset repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from werkzeug.serving import make_server


class HubServer:
    """The repository ``datasets/owner/name``, whose files are those of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status: str | None = None
        """The status of every answer; None answers normally."""
        self.requests: list[str] = []
        """Method and path of every request."""
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(f"{method} {path}")
        status, headers, body = self._respond(path, environ)
        if self.status is not None:
            status, headers, body = self.status, {}, b""
        start_response(status, [("Content-Length", str(len(body))), *headers.items()])
        return [] if method == "HEAD" else [body]

    def _respond(self, path: str, environ: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
        if path.startswith("/api/datasets/owner/name/paths-info/main"):
            names = parse_qs(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())["paths"]
            return _json([self._entry(self.folder / name) for name in names if (self.folder / name).exists()])
        if path.startswith("/api/datasets/owner/name/tree/main"):
            folder = self.folder / path.removeprefix("/api/datasets/owner/name/tree/main").strip("/")
            if folder.is_dir():
                return _json([self._entry(found) for found in sorted(folder.rglob("*"))])
            return "404 Not Found", {"X-Error-Code": "EntryNotFound"}, b""
        if path.startswith("/datasets/owner/name/resolve/main/"):
            file = self.folder / path.removeprefix("/datasets/owner/name/resolve/main/")
            if file.is_file():
                body = file.read_bytes()
                return "200 OK", {"ETag": hashlib.sha256(body).hexdigest(), "X-Repo-Commit": self._commit()}, body
            return "404 Not Found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self._commit()}, b""
        return "404 Not Found", {"X-Error-Code": "RepoNotFound"}, b""

    def _commit(self) -> str:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return hashlib.sha1(repr([(str(path), path.read_bytes()) for path in files]).encode()).hexdigest()

    def _entry(self, path: Path) -> dict[str, Any]:
        kind = {"type": "file", "size": path.stat().st_size} if path.is_file() else {"type": "directory"}
        return {**kind, "path": path.relative_to(self.folder).as_posix(), "oid": "0"}


def _json(value: Any) -> tuple[str, dict[str, str], bytes]:
    return "200 OK", {"Content-Type": "application/json"}, json.dumps(value).encode()
