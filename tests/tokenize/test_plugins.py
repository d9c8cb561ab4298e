"""A dataset of another package in the job, where the workers cannot import the package."""

import sys

import pytest
from plugin_package import install_page, write_photos
from tiny_job import CONFIG

from codeshards.format import ShardError
from codeshards.job.tokenize import tokenize


def test_a_module_that_workers_cannot_import_is_named(local_ray_cores, tokenizer, tmp_path, monkeypatch):
    """The workers of a Ray that runs already do not have what is put on this process's path later."""
    site = install_page(tmp_path / "site", registered=False)
    monkeypatch.syspath_prepend(site)
    data, out = write_photos(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(ShardError, match=r"the workers cannot import 'photo_scores'.*PYTHONPATH where Ray is started"):
        tokenize(CONFIG, dataset="photo_scores:read", data=data, tokenizers={"image": tokenizer}, out=out)
    del sys.modules["photo_scores"]
