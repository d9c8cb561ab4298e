"""Priors of several datasets through the command line and the Python API."""

import json

import pytest
from tiny_shards import make_dataset

import imagepriors as ip
from imagepriors.cli import main
from imagepriors.cli.common import weighted
from imagepriors.cli.defaults import default_config

TINY = [
    "--preset", "tiny.toml", "--steps", "3", "--batch-size", "4", "--model.n-layer", "1", "--model.n-head", "2",
    "--model.n-embd", "8", "--device", "cpu", "--precision", "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two datasets of one tokenizer, and a preset."""
    root = tmp_path_factory.mktemp("blends")
    make_dataset(root / "first" / "shards", rows=20)
    make_dataset(root / "size=64", rows=12, seed=5)
    (root / "tiny.toml").write_text("[prior]\nwarmup_steps = 2\nseed = 4\n")
    return root


@pytest.fixture(autouse=True)
def in_root(root, monkeypatch):
    monkeypatch.chdir(root)


def test_a_blend_trains_and_resumes_beside_the_first_shards(root, capsys):
    blend = ["--shards", "first/shards=0.75", "size=64=0.25"]
    plan = ["train-prior", *blend, *TINY, "--dry-run"]
    assert main(plan) == 0
    assert "first/shards 75.00%, size=64 25.00%" in capsys.readouterr().out
    assert sorted(path.name for path in (root / "first").iterdir()) == ["shards"]
    assert main(["train-prior", *blend, *TINY]) == 0
    assert main(["train-prior", *blend, *TINY, "--steps", "5"]) == 0
    run = root / "first" / "prior-row_major-blend"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 5
    assert [(part["shards"], part["weight"]) for part in summary["blend"]] == [("first/shards", 3), ("size=64", 1)]
    capsys.readouterr()
    assert main(["train-prior", "--shards", "first/shards=0.7", "size=64=0.3", *TINY]) == 2
    assert "data was 'blend of 3/4" in capsys.readouterr().err
    # The Python API names the same run.
    prior = ip.train_prior(
        {"first/shards": 3, ip.open_shards("size=64"): 1}, preset="tiny.toml", steps=5, batch_size=4, device="cpu",
        precision="float32", model={"n_layer": 1, "n_head": 2, "n_embd": 8},
    )  # fmt: skip
    assert (prior.folder, prior.summary) == (run, summary)


def test_a_folder_with_an_equals_sign_is_one_dataset(root):
    assert str(weighted(["size=64"])) == "size=64"
    assert main(["train-prior", "--shards", "size=64", "--out", "alone", *TINY]) == 0
    assert "blend" not in json.loads((root / "alone" / "summary.json").read_text())


def test_the_first_dataset_chooses_the_preset():
    assert default_config("train-prior", ["--shards", "first/shards=1", "size=64=1", "--preset", "tiny.toml"]).seed == 4
    assert default_config("train-prior", ["--shards", "first/shards=1", "size=64=1"]) == default_config(
        "train-prior", ["--shards", "first/shards"]
    )


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (["first/shards=0.7"], "one dataset has no weight; write --shards first/shards"),
        (["first/shards=0.7", "size=64=0.3", "other"], "other has no weight; write PATH=WEIGHT for each"),
        (["first/shards", "size=64=0.3"], "first/shards has no weight"),
        (["first/shards=0.7", "first/shards=0.3"], "first/shards is named twice"),
        (["first/shards=0.7", "./first/../first/shards/=0.3"], "are the same dataset: give it once"),
        (["first/shards=0.7", "size=64=0"], "the weight of size=64 is 0.0: use a positive number"),
        (["first/shards=0.7", "size=64=-1"], "the weight of size=64 is -1.0: use a positive number"),
        (["first/shards=0.7", "size=64=nan"], "the weight of size=64 is nan: use a positive number"),
        (["first/shards=0.7", "missing=0.3"], "there are no shards in missing"),
        ([], "--shards is empty"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_wrong_blends_are_one_message(root, capsys, shards, words, flags):
    assert main(["train-prior", "--shards", *shards, "--out", "new", *TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (root / "new").exists()


def test_an_output_in_one_of_the_datasets_is_refused(capsys):
    blend = ["--shards", "first/shards=1", "size=64=1", "--out", "size=64/prior"]
    assert main(["train-prior", *blend, *TINY]) == 2
    assert "choose an output folder apart from it" in capsys.readouterr().err
