"""A studio in a thread, and requests to it that no browser sends."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette

from imagepriors.studio.guard import Connection
from imagepriors.studio.serve import listen


@contextlib.contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve an application during a block; yields its URL."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    app.state.queue.close()
    server.should_exit = True
    thread.join(10)


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.partition("://")[2].partition("/")[0], timeout=60)


def request(
    url: str, path: str, values: Any = None, *, method: str = "", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case and text of an answer; values that are no bytes are sent as JSON."""
    connection = connect(url)
    body = values if values is None or isinstance(values, bytes) else json.dumps(values).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method or ("GET" if body is None else "POST"), path, body, {**kind, **(headers or {})})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, text


def run(url: str, name: str, values: Any) -> list[dict[str, Any]]:
    """The events of a job, until it ends."""
    _, _, text = request(url, f"/api/jobs/{name}", values)
    return [json.loads(line) for line in text.splitlines()]
