"""An S3 server that can be made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from werkzeug.serving import make_server


class Traffic(NamedTuple):
    requests: int
    nbytes: int
    """Sent in answers."""


class S3Server:
    """A running server with one bucket."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self.fails: Callable[[dict[str, Any]], bool] = lambda environ: False
        """Which requests, as WSGI environments, are answered with an error."""
        self.status = "403 Forbidden"
        """With which."""
        self._requests = self._nbytes = 0
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """How a process finds it."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        with self._lock:
            self._requests += 1
        if self.fails(environ):
            start_response(self.status, [("Content-Length", "0")])
            return [b""]
        return self._counted(self._app(environ, start_response))

    def _counted(self, answer: Any) -> Iterator[bytes]:
        for part in answer:
            with self._lock:
                self._nbytes += len(part)
            yield part

    def count(self) -> Traffic:
        """The requests since the last call, and the bytes of their answers."""
        with self._lock:
            found = Traffic(self._requests, self._nbytes)
            self._requests = self._nbytes = 0
        return found

    def touch(self, key: str, content: bytes, *, seconds: int) -> None:
        """Write an object of the bucket as if `seconds` later."""
        from moto.s3.models import s3_backends

        from runkit.places import open_store

        open_store(f"s3://bucket/{key}").write_bytes(content)
        written = s3_backends["123456789012"]["aws"].buckets["bucket"].keys[key]
        written.last_modified = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=seconds)

    def close(self) -> None:
        self._server.shutdown()
