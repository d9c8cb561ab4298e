"""An S3 server that can be made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from werkzeug.serving import make_server


class S3Server:
    """A running server with one bucket."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self.fails: Callable[[dict[str, Any]], bool] = lambda environ: False
        """Which requests, as WSGI environments, are answered with an error."""
        self.status = "403 Forbidden"
        """With which."""
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
        if self.fails(environ):
            start_response(self.status, [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()
