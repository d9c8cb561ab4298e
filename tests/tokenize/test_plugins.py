"""Datasets and tokenizers of another package in the job, where the workers cannot import the package."""

import sys
from pathlib import Path

import pytest
from plugin_package import install_page, write_photos
from tiny_job import CONFIG, write_images

from codeshards.format import ShardError
from codeshards.job.tokenize import tokenize


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package on the path of this process alone: the workers of a Ray that runs already do not have it."""
    monkeypatch.syspath_prepend(install_page(tmp_path / "site"))
    yield __import__("photo_scores")
    del sys.modules["photo_scores"]


@pytest.mark.usefixtures("package", "local_ray_cores")
def test_a_module_that_workers_cannot_import_is_named(tokenizer, tmp_path):
    data, out = write_photos(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(ShardError, match=r"the workers cannot import 'photo_scores'.*PYTHONPATH where Ray is started"):
        tokenize(CONFIG, dataset="photo_scores:read", data=data, tokenizers={"image": tokenizer}, out=out)


@pytest.mark.slow
@pytest.mark.usefixtures("package", "local_ray_cores")
def test_a_tokenizer_that_workers_cannot_import_is_named(tmp_path):
    data, out = write_images(tmp_path / "data", train=4, val=2), tmp_path / "out"
    with pytest.raises(ShardError, match="no tokenizer in block-colours"):
        tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": Path("block-colours")}, out=out)
