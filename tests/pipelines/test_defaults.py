"""Defaults of the commands: layout, preset and folders follow from the data."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from imagepriors.api.defaults import beside, preset_for_data, preset_for_shards
from imagepriors.cli import main
from imagepriors.demo.layouts import write_demo_data
from imagepriors.presets import load_preset, preset_names
from runkit.configs import from_dict
from vqgan.config import TrainConfig
from vqgan.errors import InputError

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "2", "--model.ch", "8", "--model.num-res-blocks", "1", "--batch-size", "2", "--eval-images", "2"]


def pictures(folder: Path, size: tuple[int, int], count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (40 * number, 9, 200)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("size", "preset"),
    [((32, 32), "cifar10"), ((64, 64), "photos-64"), ((96, 300), "photos-64"), ((500, 375), "imagenet-small")],
)
def test_the_preset_follows_from_the_size_of_the_pictures(tmp_path, size, preset, caplog):
    caplog.set_level("INFO")
    assert preset_for_data("auto", pictures(tmp_path / "photos", size)) == preset
    assert f"preset {preset}, because the shorter side of its pictures is {min(size)} pixels" in caplog.text


def test_the_demo_preset_is_only_for_the_demo_scenes(tmp_path):
    write_demo_data(tmp_path / "demo", n_train=4, n_val=2, size=64)
    assert preset_for_data("auto", tmp_path / "demo") == "demo"
    assert preset_for_data("ade20k", tmp_path / "demo") == "photos-64"
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"?")
    with pytest.raises(InputError, match=r"none of 64 images of .* can be read"):
        preset_for_data("auto", tmp_path / "bad")


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in ("tiny", "gpt2-small", "gpt2-medium")])
def test_every_preset_with_a_tokenizer_is_valid(name):
    if name != "tiny-demo":
        assert from_dict(TrainConfig, load_preset(name, "vqgan")).model.grid > (1, 1)


def test_outputs_follow_the_data_and_priors_the_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "somewhere/photos", (32, 32), 8)
    data = ["--data", str(tmp_path / "somewhere/photos")]
    assert main(["inspect", *data, "--limit", "2"]) == 0
    assert "is read as folder" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/photos/inspect/inspection.json").read_text())["dataset"] == "folder"
    assert main(["train-vqgan", *data, *TINY, "--loss.perceptual", "none"]) == 0
    assert main(["tokenize", *data, "--workers", "1"]) == 0
    plan = json.loads((tmp_path / "runs/photos/shards/plan.json").read_text())["plan"]["settings"]
    assert plan["dataset"] == "folder"
    shards = Path("runs/photos/shards")
    assert preset_for_shards(shards) == "cifar10"
    small = ["--steps", "2", "--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8", "--batch-size", "2"]
    assert main(["train-prior", "--shards", str(shards), "--order", "zcurve", *small]) == 0
    assert main(["sample", "--prior", "runs/photos/prior-zcurve", "--n", "1"]) == 0
    assert (tmp_path / "runs/photos/samples-prior-zcurve/grid.png").is_file()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["photos"]


def test_runs_on_shards_of_an_object_store_are_local(caplog):
    caplog.set_level("INFO")
    assert beside(Path("runs/photos/shards")) == Path("runs/photos")
    assert beside(Path("s3://bucket/photos/shards")) == Path("runs/photos")
    assert preset_for_shards(Path("nowhere")) == "imagenet-small"
    assert not caplog.text  # missing shards are no reason for a preset


@pytest.mark.parametrize(
    ("variables", "run"),
    [(("DATA=/x/photos/",), "runs/photos"), (("DATASET=cifar10", "DATA=/x/y"), "runs/cifar10"), ((), "runs/demo")],
)
def test_make_derives_folders_from_the_data(variables, run):
    made = subprocess.run(
        ["make", "-C", ROOT, "-n", "train-vqgan", *variables], capture_output=True, text=True, check=True
    )
    wanted = "demo" if run == "runs/demo" else "cifar10" if run == "runs/cifar10" else "auto"
    assert f"--dataset {wanted} " in made.stdout
    assert f"--out {run}/tokenizer" in made.stdout


@pytest.mark.parametrize("run", ["/nowhere", "hf://owner/name"])
def test_make_opens_the_run_that_is_named_or_none(run):
    made = subprocess.run(
        ["make", "-C", ROOT, "-n", "studio", f"RUN={run}"], capture_output=True, text=True, check=True
    )
    assert f" studio {run} --port" in made.stdout
    assert "data/demo" not in made.stdout


def test_make_trains_into_no_address():
    made = subprocess.run(
        ["make", "-C", ROOT, "-n", "sample", "RUN=hf://owner/name"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 2
    assert "RUN=hf://owner/name is an address" in made.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("IMAGEPRIORS_DATA"), reason="IMAGEPRIORS_DATA is unset: no real data")
@pytest.mark.parametrize("name", ["ade20k", "cifar10", "imagenet-depth", "imagenet-sample", "landscapes"])
def test_two_steps_on_real_folders_without_dataset_and_preset(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data = Path(os.environ["IMAGEPRIORS_DATA"]) / name
    assert main(["train-vqgan", "--data", str(data), "--steps", "2", "--eval-images", "8"]) == 0
    assert (tmp_path / "runs" / name / "tokenizer/summary.json").is_file()
