"""Presets: their tables, their bases, and their use by flags and Make."""

import re
import subprocess
from pathlib import Path

import pytest

from codeprior.config import TrainConfig as PriorConfig
from codeprior.sample_config import SampleConfig
from codeshards.config import TokenizeConfig
from codeshards.format import ShardError
from imagepriors.cli import COMMANDS
from imagepriors.cli.defaults import default_config, read_ahead
from imagepriors.presets import load_preset, preset_names
from runkit.configs import from_dict
from vqgan.data import DATASETS

ROOT = Path(__file__).resolve().parents[2]
_TABLES = {"tokenize": TokenizeConfig, "prior": PriorConfig, "sample": SampleConfig}


def test_the_last_preset_flag_counts():
    assert read_ahead(["--preset", "demo", "--preset=cifar10"]).preset == "cifar10"
    assert default_config("sample", ["--preset", "auto", "--help"]) == SampleConfig()


@pytest.mark.parametrize("name", preset_names())
def test_every_table_of_every_preset_parses(name):
    for table, cls in _TABLES.items():
        try:
            values = load_preset(name, table)
        except ShardError:
            continue
        assert isinstance(from_dict(cls, values), cls)


def test_a_preset_overrides_fields_of_its_base(tmp_path):
    (tmp_path / "narrow.toml").write_text('base = "imagenet-f16-1024"\n[vqgan.model]\nch = 64\n')
    (tmp_path / "mine.toml").write_text('base = "narrow.toml"\n[vqgan]\nsteps = 10\n')
    mine, published = (load_preset(name, "vqgan") for name in (str(tmp_path / "mine.toml"), "imagenet-f16-1024"))
    assert mine["model"] == {**published["model"], "ch": 64}
    assert {**mine, "model": 0} == {**published, "steps": 10, "model": 0}
    # A base of the base: the prior's table is in neither of these files.
    assert load_preset(str(tmp_path / "mine.toml"), "prior") == load_preset("gpt2-medium", "prior")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "demos"', "mine.toml: base: unknown preset 'demos'"),
        ('base = "other.toml"', "mine.toml: base: unknown preset 'other.toml'"),
        ('base = "mine.toml"', "leads back to itself"),
        ('base = "./mine.toml"', "leads back to itself"),
        ("vqgan = 3", r"has no table \[vqgan\].*Choose a preset that has one: cifar10, "),
        ("vqgan = ", "mine.toml: Invalid value"),
    ],
)
def test_an_unreadable_preset_is_reported_with_the_reason(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ShardError, match=message):
        load_preset(str(tmp_path / "mine.toml"), "vqgan")


@pytest.mark.parametrize(
    ("variable", "choice"), [("ORDER=hilbert", "zcurve"), ("DATASET=mnist", "cifar10"), ("COND=text", "class")]
)
def test_make_lists_the_valid_choices(variable, choice):
    done = subprocess.run(["make", "-C", ROOT, "-n", "train-prior", variable], capture_output=True, text=True)
    assert done.returncode == 2
    assert choice in done.stderr


def test_make_and_help_know_every_dataset():
    listed = re.search(r"^DATASETS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == {"auto", *DATASETS}
    assert all(name in (COMMANDS["train-vqgan"].__doc__ or "") for name in DATASETS)
    done = subprocess.run(["make", "-C", ROOT, "-n", "tokenize", "CONDITIONS=text"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "choose out of segmentation depth pose" in done.stderr


@pytest.mark.parametrize("dataset", ["auto", *sorted(DATASETS)])
def test_make_has_a_preset_for_every_dataset(dataset, tmp_path):
    make = ["make", "-C", ROOT, "-n", "train-prior", f"DATASET={dataset}", "DATA=/data", f"RUN={tmp_path}"]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    found = set(re.findall(r"imagepriors (train-vqgan|tokenize|train-prior) --preset (\S+)", done.stdout))
    assert {command for command, _ in found} == {"train-vqgan", "tokenize", "train-prior"}
    assert {preset for _, preset in found} <= {"auto", *preset_names()}


@pytest.mark.parametrize(("shards", "name"), [("a=0.7 b=0.3", "prior-zcurve-class-blend"), ("a", "prior-zcurve-class")])
def test_make_trains_on_shards_of_other_runs(shards, name, tmp_path):
    variables = [f"SHARDS={shards}", f"RUN={tmp_path}", "ORDER=zcurve", "COND=class"]
    make = ["make", "-C", ROOT, "-n", "train-prior", *variables]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    command = " ".join(done.stdout.replace("\\\n", " ").split())
    assert f"--order zcurve --condition class --shards {shards} --out {tmp_path / name}" in command
    assert "imagepriors tokenize" not in command


def test_make_help_lists_targets_and_variables():
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for word in ("quickstart", "train-prior", "ORDER=row_major", "RAY_ADDRESS="):
        assert word in done.stdout
