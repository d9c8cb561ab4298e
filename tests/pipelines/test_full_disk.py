"""A full disk at any file operation of training and sampling gives one message, and the same command then finishes."""

import dataclasses
import json
import random
import shutil

import pytest
from killing import full_disk_at
from tiny_shards import SPEC, make_dataset

from imagepriors.cli import main
from imagepriors.demo.layouts import write_demo_data
from vqgan.checkpoint import fingerprint

TIMES = {"images_per_s", "wall_s", "tokens_per_s", "mfu", "train_seconds", "sha256", "metrics_bytes"}
STEPS = ("--steps", "2", "--batch-size", "4", "--checkpoint-every", "1", "--eval-every", "1", "--device", "cpu")
TOKENIZER = (
    "--dataset", "demo", "--preset", "demo", *STEPS, "--eval-images", "4", "--model.resolution", "8",
    "--model.ch", "8", "--model.ch-mult", "1", "1", "--model.num-res-blocks", "1", "--model.codebook-size", "50",
    "--model.embed-dim", "4", "--model.z-channels", "8", "--loss.disc-start", "1", "--loss.disc-ch", "8",
    "--loss.disc-layers", "1", "--loss.perceptual", "none", "--keep-checkpoints", "1", "--reader-threads", "1",
)  # fmt: skip
PRIOR = (
    "--preset", "demo", *STEPS, "--log-every", "1", "--model.n-layer", "1", "--model.n-head", "2",
    "--model.n-embd", "16", "--keep-checkpoints", "1", "--condition", "none",
)  # fmt: skip


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Name → arguments of a small command line without its output folder."""
    root = tmp_path_factory.mktemp("commands")
    data, shards, tokenizer = root / "data", root / "shards", root / "tokenizer"
    write_demo_data(data, n_train=8, n_val=4, size=32)
    words = {"train-vqgan": [*TOKENIZER, "--data", str(data)]}
    assert main(["train-vqgan", *words["train-vqgan"], "--out", str(tokenizer)]) == 0
    image = dataclasses.replace(SPEC.image, fingerprint=fingerprint(tokenizer))
    make_dataset(shards, spec=dataclasses.replace(SPEC, image=image))
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tokenizer / name, shards / "tokenizer" / name)
    words["train-prior"] = [*PRIOR, "--shards", str(shards)]
    assert main(["train-prior", *words["train-prior"], "--out", str(root / "prior")]) == 0
    words["sample"] = ["--prior", str(root / "prior"), "--shards", str(shards), "--n", "2", "--frames"]
    return words


def snapshot(place):
    """All files of a command's output, without times and lock files."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_dir() or name.endswith(".lock") or "tfevents" in name:
            found |= {name: "folder"} if path.is_dir() else {}
        elif path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def check(place, at, persistent, command, words, whole):
    """Fill the disk at one operation, check the result, free it and run again; return None or the error."""
    place.mkdir()
    argv, cache = [command, *words, "--out", str(place / "out")], {"IMAGEPRIORS_CACHE": str(place / "cache")}
    ended = full_disk_at(at, place, persistent, argv, **cache)
    messages = [line for line in ended.said.splitlines() if line.startswith(f"imagepriors {command}: ")]
    metrics = place / "out" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    if ended.code != 2 or len(messages) != 1 or "Traceback" in ended.said:
        return f"exit code {ended.code}: {ended.said}"
    if not ("No space left" in messages[0] or "quota exceeded" in messages[0]) or str(place) not in messages[0]:
        return f"says {messages[0]}"
    if len({*lines}) < len(lines) or not all(line.startswith('{"step": ') and line.endswith("}\n") for line in lines):
        return f"half or double lines: {lines}"
    again = full_disk_at(0, place, False, argv, **cache)
    if again.code:
        return f"run again: exit code {again.code}: {again.said}"
    left = snapshot(place)
    differ = sorted(name for name in left.keys() | whole.keys() if left.get(name) != whole.get(name))
    return f"run again: other files: {differ}" if differ else None


def sweep(commands, folder, command, persistent, sample):
    """Fill the disk at `sample` (0: all) of a command's operations; return their number and the errors."""
    words = commands[command]
    whole = folder / "whole"
    whole.mkdir()
    out = ["--out", str(whole / "out")]
    operations = full_disk_at(0, whole, False, [command, *words, *out], IMAGEPRIORS_CACHE=str(whole / "cache"))
    assert operations.code == 0, operations.said
    moments = range(1, operations.operations + 1)
    wrong = {}
    for at in random.sample(moments, sample) if sample else moments:
        found = check(folder / f"{at}", at, persistent, command, words, snapshot(whole))
        shutil.rmtree(folder / f"{at}")
        wrong |= {at: found} if found else {}
    return operations.operations, wrong


@pytest.mark.parametrize(
    "command", ["train-vqgan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("train-prior", "sample"))]
)
def test_a_full_disk_at_a_file_operation_gives_one_message(commands, tmp_path, command):
    _, wrong = sweep(commands, tmp_path, command, True, 1)
    assert not wrong


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("command", ["train-vqgan", "train-prior", "sample"])
def test_a_full_disk_at_any_file_operation_gives_one_message(commands, tmp_path, command, persistent):
    _, wrong = sweep(commands, tmp_path, command, persistent, 0)
    assert not wrong
