"""What the tokenize tests share: a small job, a Ray of two cores, and an S3 server that can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_job import CONFIG, write_images, write_tokenizer
from werkzeug.serving import make_server


class S3Server:
    """A running server with one bucket."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self.fails: Callable[[dict[str, Any]], bool] = lambda environ: False
        """Which requests, as WSGI environments, are answered with an error."""
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
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return self._app(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with an empty bucket named ``bucket``; the environment names it as the AWS tools expect."""
    import boto3

    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("bucket")
    bucket.create()
    yield _s3_server
    _s3_server.fails = lambda environ: False
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture(scope="session")
def local_ray_cores(_s3_server: S3Server) -> Iterator[Any]:
    """A Ray in this process, so that not every job starts its own; its workers know the S3 server."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": _s3_server.environment},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures to train on and 6 to validate."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer for them."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def undisturbed(local_ray_cores: Any, data: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shards, made by one worker that nobody disturbed."""
    from codeshards.job import tokenize

    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
    return out
