"""Fixtures of the tokenize tests: a small job, and an S3 server with a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from tiny_job import CONFIG, write_images, write_tokenizer


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with an empty bucket named ``bucket``; the environment names it as the AWS tools expect."""
    import boto3

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").Bucket("bucket")
    bucket.create()
    yield s3_server
    s3_server.fails, s3_server.status = lambda environ: False, "403 Forbidden"
    bucket.objects.all().delete()
    bucket.delete()


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
    """Their shards, made by one worker without interruption."""
    from codeshards.job.tokenize import tokenize

    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
    return out
