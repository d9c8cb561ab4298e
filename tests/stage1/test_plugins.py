"""Datasets and tokenizers of other packages: how their names are looked up, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from plugin_package import install, install_page, write_photos

from vqgan.checkpoint import describe_plugin, fingerprint, load_model
from vqgan.config import TrainConfig
from vqgan.data import AUTO, DATASETS, open_splits, resolve
from vqgan.errors import InputError
from vqgan.finetune import completed
from vqgan.plugin_tokenizer import load_plugin
from vqgan.tokenizer import Tokenizer


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


def test_the_tokenizer_of_the_page_encodes_and_decodes(site):
    install_page(site)
    tokenizer = Tokenizer.load(Path("block-colours"), device="cpu")
    colours = np.array([[0, 85, 255], [255, 170, 0], [85, 85, 85], [170, 0, 255]], np.uint8)  # of the dictionary
    picture = colours.reshape(2, 2, 3).repeat(16, 0).repeat(16, 1)
    codes = tokenizer.encode([picture])
    assert (codes.shape, codes.dtype) == ((1, 8, 8), np.uint16)
    assert len(np.unique(codes)) == 4
    np.testing.assert_array_equal(tokenizer.decode(codes)[0], picture)
    assert (tokenizer.fingerprint, tokenizer.config.grid) == ("block-colours-1", (8, 8))
    with pytest.raises(InputError, match="has no coarser scales: leave scales empty"):
        tokenizer.encode_async([picture], (1, 2))
    with pytest.raises(InputError, match="neither trained nor exported here"):
        load_model(Path("block-colours"))
    with pytest.raises(InputError, match="a tokenizer of kind 'block-colours', which cannot be trained"):
        completed(TrainConfig(init="block-colours"))


def test_a_folder_that_names_a_tokenizer_imports_installed_packages_only(tmp_path, site):
    """A downloaded config must not choose what is imported."""
    install_page(site)
    for name, content in describe_plugin(Path("block-colours")).items():
        (tmp_path / name).write_bytes(content)
    assert Tokenizer.load(tmp_path, device="cpu").fingerprint == "block-colours-1"
    assert fingerprint(tmp_path) == "block-colours-1"
    config = json.loads((tmp_path / "config.json").read_text())
    (site / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "kind": "evil:Model"}}))
    with pytest.raises(InputError, match="which is not imported because a file names it: pass evil:Model as the"):
        Tokenizer.load(tmp_path, device="cpu")
    assert not (tmp_path / "ran").exists()
    other = {**config["model"], "plugin_fingerprint": "block-colours-2"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": other}))
    with pytest.raises(InputError, match=r"another one than that of the codes .*'block-colours-1'.*'block-colours-2'"):
        Tokenizer.load(tmp_path, device="cpu")
    shutil.rmtree(site / "photo_scores-1.0.dist-info")
    with pytest.raises(InputError, match=r"unknown tokenizer 'block-colours': install the package"):
        Tokenizer.load(tmp_path, device="cpu")


_GOOD = """
import numpy as np
class Row:
    resolution, grid, codebook_size, fingerprint = 8, (1, 4), 16, "r"
    def encode(self, pictures): return np.zeros((len(pictures), 1, 4), int)
    def decode(self, codes): return np.zeros((len(codes), 8, 8, 3), np.uint8)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("    encode = None", "it is a Row without encode; correct the package"),
        ("    grid = (0, 4)", r"plugin_grid is \(0, 4\): give the rows and columns"),
        ("    grid = 4", "the tokenizer 'rows:Row': "),
        ("    codebook_size = 1", "codebook_size is 1: choose"),
        ("    modality = 'sound'", "modality is 'sound'"),
        ("    fingerprint = ''", "plugin_fingerprint is '': give what identifies its weights"),
        ("    modality = property(lambda self: 1 / 0)", "division by zero; correct the package"),
        ("    def __init__(self): 1 / 0", "cannot be made: ZeroDivisionError"),
        ("    def encode(self, p): return np.zeros((1, 4), int)", r"int64 \(1, 4\), expected integers \(2, 1, 4\)"),
        ("    def encode(self, p): return np.zeros((2, 1, 4))", "to float64"),
        ("    def encode(self, p): return np.full((2, 1, 4), 16)", "gives codes 16 … 16, but its codebook_size is 16"),
        ("    def encode(self, p): 1 / 0", r"cannot encode uint8 \(2, 8, 8, 3\): ZeroDivisionError"),
        ("    def decode(self, c): return np.zeros((2, 3, 8, 8), np.uint8)", r"expected uint8 \(2, 8, 8, 3\)"),
        ("    def decode(self, c): return np.zeros((2, 8, 8, 3))", "to float64"),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_one_message(site, change, message):
    (site / "rows.py").write_text(f"{_GOOD}{change}\n")
    sys.modules.pop("rows", None)
    with pytest.raises(InputError, match=message):
        _round_trip(Path("rows:Row"))


def _round_trip(name):
    tokenizer = Tokenizer.load(name, device="cpu")
    tokenizer.decode(tokenizer.encode([np.zeros((8, 8, 3), np.uint8)] * 2))


def test_a_factory_gets_the_device_and_precision_that_it_takes(site):
    (site / "placed.py").write_text(
        f"{_GOOD}def make(device):\n    row = Row()\n    row.device = device\n    return row\n"
    )
    assert load_plugin("placed:make", "cuda", "bfloat16").device == "cuda"
    assert load_plugin("placed:Row", "cuda", "bfloat16").fingerprint == "r"


def test_built_in_names_are_the_table(tmp_path):
    for name in DATASETS:
        assert resolve(name, tmp_path) == name
