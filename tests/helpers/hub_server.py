"""A server that answers the requests by which the Hugging Face client reads and writes repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from web_server import sliced
from werkzeug.serving import make_server

Answer = tuple[str, dict[str, str], bytes]
_BINARY = (".safetensors", ".parquet", ".tar", ".png")
"""Endings of the files that are sent as large files."""


@dataclass
class Repository:
    """The commits of a repository. A commit is a mapping from path to content."""

    name: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        content = repr((branch, len(self.commits), sorted(files.items()))).encode()
        self.branches[branch] = commit = hashlib.sha1(content).hexdigest()
        self.commits[commit] = dict(files)
        return commit

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class HubServer:
    """A Hub with any number of repositories; ``datasets/owner/name`` is there from the start."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.status: str | None = None
        """The status of the answers that fail; None answers normally."""
        self.fails: Callable[[str], bool] = lambda request: True
        """Which requests, by method and path, get the status."""
        self.requests: list[str] = []
        """Method and path of every request."""
        self.blobs: dict[str, bytes] = {}
        self.put("datasets/owner/name", {})
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def put(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add files to a repository, such as ``models/owner/name``, which is created; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(name))
        _, before = repository.find(branch) or ("", {})
        return repository.commit(branch, {**before, **files})

    def put_folder(self, name: str, folder: Path) -> str:
        """Add all files of a folder."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return self.put(name, {path: file.read_bytes() for path, file in files.items()})

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        found = self.repositories[name].find(revision)
        assert found is not None
        return found[1]

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        request = f"{method} {path}"
        self.requests.append(request)
        if self.status is not None and self.fails(request):
            status, headers, body = self.status, dict[str, str](), b""
        else:
            content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, headers, body = self._respond(path, content, "HTTP_AUTHORIZATION" in environ)
        if status == "200 OK" and "HTTP_RANGE" in environ:
            status, span, body = sliced(body, environ["HTTP_RANGE"])
            headers |= span
        start_response(status, [("Content-Length", str(len(body))), *headers.items()])
        return [] if method == "HEAD" else [body]

    def _respond(self, path: str, content: bytes, has_token: bool) -> Answer:
        if path == "/api/repos/create":
            return self._create(json.loads(content))
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.blobs[path.removeprefix("/lfs/")] = content
            return "200 OK", {}, b""
        if match := re.fullmatch(r"/(datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(content))
        match = re.fullmatch(r"/(?:api/)?(models/|datasets/)?([^/]+/[^/]+?)(?:/([^/]+)/([^/]+)(?:/(.*))?)?", path)
        if match is None:
            return _missing("EntryNotFound")
        kind, name, action, revision, rest = match.groups()
        repository = self.repositories.get(f"{kind or 'models/'}{name}")
        if repository is None:
            return _missing("RepoNotFound")
        if repository.private and not has_token:
            return "401 Unauthorized", {"X-Error-Code": "RepoNotFound"}, b""
        if action == "branch":
            repository.branches.setdefault(revision, repository.branches["main"])
            return "200 OK", {}, b""
        found = repository.find(revision or "main")
        if found is None:
            return _missing("RevisionNotFound")
        handle = getattr(self, f"_{action or 'revision'}".replace("-", "_"))
        answer: Answer = handle(repository, *found, rest or "", content, revision)
        return answer

    def _create(self, values: dict[str, Any]) -> Answer:
        kind, name = f"{values.get('type') or 'model'}s", f"{values.get('organization', 'owner')}/{values['name']}"
        answer = _json({"url": f"{self.url}/{'' if kind == 'models' else 'datasets/'}{name}"})
        if f"{kind}/{name}" in self.repositories:
            return "409 Conflict", *answer[1:]
        self.put(f"{kind}/{name}", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.repositories[f"{kind}/{name}"].private = bool(
            values.get("private") or values.get("visibility") == "private"
        )
        return answer

    def _batch(self, values: dict[str, Any]) -> Answer:
        def one(oid: str, size: int) -> dict[str, Any]:
            there = {} if oid in self.blobs else {"actions": {"upload": {"href": f"{self.url}/lfs/{oid}"}}}
            return {"oid": oid, "size": size, **there}

        return _json({"transfer": "basic", "objects": [one(o["oid"], o["size"]) for o in values["objects"]]})

    def _revision(self, repository: Repository, commit: str, files: dict[str, bytes], *_: Any) -> Answer:
        siblings = [{"rfilename": name} for name in files]
        return _json({"id": "owner/name", "sha": commit, "private": repository.private, "siblings": siblings})

    def _paths_info(
        self, repository: Any, commit: str, files: dict[str, bytes], _: str, body: bytes, *__: Any
    ) -> Answer:
        return _json([_entry(name, files[name]) for name in parse_qs(body.decode())["paths"] if name in files])

    def _tree(self, repository: Any, commit: str, files: dict[str, bytes], below: str, *_: Any) -> Answer:
        found = {name: content for name, content in files.items() if not below or name.startswith(f"{below}/")}
        folders = {str(parent) for name in found for parent in Path(name).parents if str(parent) not in (".", below)}
        if below and not found:
            return _missing("EntryNotFound")
        entries = [_entry(name, content) for name, content in sorted(found.items())]
        return _json([*({"type": "directory", "path": path, "oid": "0"} for path in sorted(folders)), *entries])

    def _resolve(self, repository: Any, commit: str, files: dict[str, bytes], name: str, *_: Any) -> Answer:
        if name not in files:
            return "404 Not Found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return "200 OK", {"ETag": _entry(name, files[name])["etag"], "X-Repo-Commit": commit}, files[name]

    def _preupload(
        self, repository: Any, commit: str, files: dict[str, bytes], _: str, body: bytes, *__: Any
    ) -> Answer:
        return _json(
            {
                "files": [
                    {
                        "path": path,
                        "uploadMode": "lfs" if path.endswith(_BINARY) else "regular",
                        "shouldIgnore": False,
                        "oid": _entry(path, files[path])["etag"] if path in files else None,
                    }
                    for path in (one["path"] for one in json.loads(body)["files"])
                ]
            }
        )

    def _commit(
        self, repository: Repository, commit: str, files: dict[str, bytes], _: str, body: bytes, branch: str
    ) -> Answer:
        files = dict(files)
        for line in body.decode().splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(branch, files)
        return _json(
            {
                "success": True,
                "commitUrl": f"{self.url}/{repository.name.removeprefix('models/')}/commit/{oid}",
                "commitOid": oid,
            }
        )


def _entry(name: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = hashlib.sha256(content).hexdigest()
    lfs = {"lfs": {"oid": large, "size": len(content), "pointerSize": 100}} if name.endswith(_BINARY) else {}
    return {"type": "file", "path": name, "size": len(content), "oid": git, "etag": large if lfs else git, **lfs}


def _missing(code: str) -> Answer:
    return "404 Not Found", {"X-Error-Code": code}, b""


def _json(value: Any) -> Answer:
    return "200 OK", {"Content-Type": "application/json"}, json.dumps(value).encode()
