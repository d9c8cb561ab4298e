"""Datasets and tokenizers of other packages: how their names are looked up, and what is refused."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from plugin_package import install, install_page, write_photos

from vqgan.checkpoint import fingerprint, load_config, publish_model
from vqgan.config import ModelConfig, TrainConfig
from vqgan.data import AUTO, DATASETS, open_splits, resolve
from vqgan.errors import InputError
from vqgan.model import TokenizerModel, build_model
from vqgan.tokenizer import Tokenizer
from vqgan.trainer import Trainer


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """An empty folder of packages on the path; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["photo-scores", "photo_scores:read"])
def test_the_dataset_of_the_page_is_read(tmp_path, site, name):
    install_page(site, registered=name == "photo-scores")
    splits = open_splits(name, write_photos(tmp_path / "data"))
    found = {
        item.key: (int(split.read(index, 8).image[0, 0, 0]), split.class_names[item.label])
        for split in splits.values()
        for index, item in enumerate(split.items)
    }
    assert found == {str(n): (n, "high" if n >= 10 else "low") for n in range(40)}
    depth = splits["train"].read(0, 32, conditions=("depth",)).picture("depth")
    np.testing.assert_allclose(depth, np.linspace(0, 1, 32 * 32).reshape(32, 32), atol=1e-6)
    (tmp_path / "data/scores.tsv").unlink()
    with pytest.raises(InputError, match=r"scores\.tsv is missing"):
        open_splits(name, tmp_path / "data")


def test_an_unknown_name_lists_what_is_built_in_and_installed(tmp_path, site):
    install_page(site)
    with pytest.raises(InputError, match=r"unknown dataset 'scores': choose one of auto, ade20k.*webdataset, photo-sc"):
        open_splits("scores", tmp_path)
    assert "photo_scores" not in sys.modules


def test_auto_never_runs_another_package(tmp_path, site):
    install(
        site,
        "greedy",
        "greedy",
        "raise SystemExit('imported')",
        {"imagepriors.datasets": {"auto-layout": "greedy:read"}},
    )
    write_photos(tmp_path / "data")
    assert resolve(AUTO, tmp_path / "data") == "folder"
    assert len(open_splits(AUTO, tmp_path / "data")["train"]) > 30
    assert "greedy" not in sys.modules
    with pytest.raises(
        InputError, match=r"'auto-layout' of the package greedy cannot be imported: greedy raises SystemE"
    ):
        open_splits("auto-layout", tmp_path / "data")


def test_a_name_that_hides_a_built_in_or_is_there_twice_is_refused(tmp_path, site):
    install(
        site, "one", "one", "", {"imagepriors.datasets": {"folder": "one:read", "mine": "one:read", "auto": "one:read"}}
    )
    install(site, "two", "two", "", {"imagepriors.datasets": {"mine": "two:read"}})
    with pytest.raises(InputError, match="one registers the dataset 'folder', a name that is built in: uninstall it"):
        open_splits("folder", tmp_path)
    with pytest.raises(InputError, match="one and two both register the dataset 'mine'"):
        open_splits("mine", tmp_path)
    assert resolve(AUTO, write_photos(tmp_path / "data")) == "folder"
    assert not {"one", "two"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.module:read", r"the dataset 'nowhere\.module:read' cannot be imported \(No module named 'nowhere'\)"),
        ("broken:read", "broken raises ZeroDivisionError: division by zero"),
        ("whole:write", "whole has no 'write'"),
        ("whole:", "whole has no ''"),
        (":read", "cannot be imported"),
        ("..whole:read", "cannot be imported"),
        ("whole:number", "is a int: it must be a function or a class"),
        ("whole:listed", "returned list: it must return a dict of Split"),
        ("whole:other", "returned test Split: it must"),
        ("whole:paths", "returned train PosixPath: it must"),
    ],
)
def test_what_is_wrong_with_a_reader_is_one_message(tmp_path, site, name, words):
    (site / "broken.py").write_text("1 / 0")
    (site / "whole.py").write_text(
        "from vqgan.data import Split\nnumber = 3\ndef listed(root): return []\n"
        "def other(root): return {'test': Split([])}\ndef paths(root): return {'train': root}\n"
    )
    with pytest.raises(InputError, match=words):
        open_splits(name, tmp_path)


def test_the_tokenizer_of_the_page_encodes_and_decodes(tmp_path, site):
    install_page(site)
    from photo_scores import write_tokenizer  # type: ignore[import-not-found]

    write_tokenizer(tmp_path / "t")
    tokenizer = Tokenizer.load(tmp_path / "t", device="cpu")
    colours = np.array([[0, 85, 255], [255, 170, 0], [85, 85, 85], [170, 0, 255]], np.uint8)  # of the dictionary
    picture = colours.reshape(2, 2, 3).repeat(16, 0).repeat(16, 1)
    codes = tokenizer.encode([picture])
    assert (codes.shape, codes.dtype) == ((1, 8, 8), np.uint16)
    assert len(np.unique(codes)) == 4
    np.testing.assert_array_equal(tokenizer.decode(codes)[0], picture)
    with pytest.raises(InputError, match="have no coarser scales: leave scales empty"):
        build_model(tokenizer.config).encode_scales(torch.zeros(1, 3, 32, 32), (1, 2))
    assert tokenizer.fingerprint == fingerprint(tmp_path / "t")
    with pytest.raises(InputError, match=r"model\.kind is 'block-colours': its package trains it"):
        Trainer(TrainConfig(model=load_config(tmp_path / "t").model, device="cpu"))
    shutil.rmtree(site / "photo_scores-1.0.dist-info")
    with pytest.raises(
        InputError, match=r"unknown tokenizer 'block-colours': install the package.*\(installed: none\)"
    ):
        Tokenizer.load(tmp_path / "t", device="cpu")


def test_the_config_of_a_tokenizer_cannot_name_a_module(tmp_path, site):
    """A downloaded config must not choose what is imported."""
    (site / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = ModelConfig(kind="evil:Model", resolution=32, codebook_size=64)
    publish_model(tmp_path / "t", config, TokenizerModel(config), "test")
    with pytest.raises(InputError, match="unknown tokenizer 'evil:Model'"):
        Tokenizer.load(tmp_path / "t", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_is_not_one_is_refused(tmp_path, site):
    install(site, "odd", "odd", "Model = dict", {"imagepriors.tokenizers": {"odd": "odd:make"}})
    (site / "odd.py").write_text("def make(config): return {}")
    config = ModelConfig(kind="odd", resolution=32, codebook_size=64)
    publish_model(tmp_path / "t", config, TokenizerModel(config), "test")
    with pytest.raises(InputError, match="the tokenizer 'odd' is a dict: it must be a TokenizerModel"):
        Tokenizer.load(tmp_path / "t", device="cpu")


def test_built_in_names_are_the_table(tmp_path):
    for name in DATASETS:
        assert resolve(name, tmp_path) == name
