"""A small tokenize job that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_job import CONFIG, write_images, write_tokenizer


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
