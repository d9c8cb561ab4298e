"""Runs that start from a tokenizer: what is taken from it, what may differ, and what stays frozen."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import imagepriors as ip
from imagepriors.cli import main, parse
from imagepriors.demo.layouts import write_demo_data
from vqgan.checkpoint import fingerprint, load_config, load_model, publish_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.finetune import completed, initial_fields
from vqgan.model import build_model
from vqgan.palette import fit_palette
from vqgan.tokenizer import Tokenizer
from vqgan.train import train_tokenizer

TINY = ModelConfig(
    resolution=32, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(8,), z_channels=16, embed_dim=8,
    codebook_size=32,
)  # fmt: skip
LOSS = LossConfig(perceptual="none", disc_start=1, disc_ramp=2, disc_ch=8, disc_layers=1)


def tiny(**changes):
    fields = {
        "model": TINY, "loss": LOSS, "batch_size": 4, "steps": 4, "learning_rate": 1e-3, "precision": "float32",
        "device": "cpu", "eval_every": 100, "eval_images": 4, "checkpoint_every": 2,
    }  # fmt: skip
    return TrainConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=4, size=32)
    return out


@pytest.fixture(scope="module")
def splits(data):
    return open_splits("demo", data)


@pytest.fixture(scope="module")
def start(splits, tmp_path_factory):
    """A trained tokenizer."""
    folder = tmp_path_factory.mktemp("start") / "tokenizer"
    train_tokenizer(tiny(steps=6, seed=3), splits, folder)
    return folder


def pictures(splits, n=4, side=32):
    return [splits["val"].read_good(i, side).image for i in range(n)]


def test_a_run_of_no_rate_keeps_the_weights_that_it_starts_from(start, splits, tmp_path):
    train_tokenizer(tiny(init=str(start), learning_rate=1e-30), splits, tmp_path)
    before, after = (load_model(folder)[1].state_dict() for folder in (start, tmp_path))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)
    assert load_config(tmp_path).init_fingerprint == fingerprint(start)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_frozen_encoder_keeps_every_code_and_trains_the_decoder(optimizer, start, splits, tmp_path):
    train_tokenizer(tiny(init=str(start), freeze="encoder", optimizer=optimizer), splits, tmp_path)
    first, tuned = (Tokenizer.load(folder, device="cpu") for folder in (start, tmp_path))
    codes_NHW = first.encode(pictures(splits))
    np.testing.assert_array_equal(tuned.encode(pictures(splits)), codes_NHW)
    assert not np.array_equal(tuned.decode(codes_NHW), first.decode(codes_NHW))
    assert tuned.fingerprint != first.fingerprint
    assert load_config(tmp_path).codes_of == first.fingerprint
    assert ip.load_tokenizer(tmp_path).code_fingerprints == {tuned.fingerprint, first.fingerprint}


def test_codes_are_traced_through_several_runs_with_a_frozen_encoder_only(start, splits, tmp_path):
    train_tokenizer(tiny(init=str(start), freeze="encoder", steps=2), splits, tmp_path / "a")
    train_tokenizer(tiny(init=str(tmp_path / "a"), freeze="encoder", steps=2), splits, tmp_path / "b")
    train_tokenizer(tiny(init=str(tmp_path / "a"), steps=2), splits, tmp_path / "c")
    assert load_config(tmp_path / "b").codes_of == fingerprint(start)
    assert load_config(tmp_path / "c").codes_of == ""
    wider = dataclasses.replace(TINY, resolution=64)
    assert completed(tiny(init=str(start), freeze="encoder", model=wider)).codes_of == ""  # these are other grids
    assert completed(tiny(codes_of="0123456789abcdef")).codes_of == ""


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(start, splits, tmp_path):
    config = tiny(init=str(start), ema_decay=0.9)
    train_tokenizer(config, splits, tmp_path / "whole")
    train_tokenizer(dataclasses.replace(config, steps=2), splits, tmp_path / "parts")
    train_tokenizer(config, splits, tmp_path / "parts")
    first, second = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    assert first == second


def test_an_average_codebook_starts_from_the_codes_it_was_given(start, splits, tmp_path):
    loss = dataclasses.replace(LOSS, codebook_decay=0.99, disc_weight=0)
    config = tiny(init=str(start), loss=loss, steps=1, learning_rate=1e-30, mirror=False)
    train_tokenizer(config, splits, tmp_path)
    before, after = (load_model(folder)[1].quantize.codebook() for folder in (start, tmp_path))
    seen = [splits["train"].read_good(i, 32).image for i in range(len(splits["train"]))]
    codes_N = Tokenizer.load(start, device="cpu").encode(seen).ravel()
    unused = np.setdiff1d(np.arange(32), codes_N)
    torch.testing.assert_close(after[unused], before[unused])
    # A used code moves a few hundredths towards its latents, not to them at once.
    assert 0 < (after - before).norm() < 0.3 * before.norm()


def test_another_resolution_keeps_attention_at_its_levels(start, splits, tmp_path):
    wider = dataclasses.replace(TINY, resolution=64)
    train_tokenizer(tiny(init=str(start), model=wider, steps=1), splits, tmp_path)
    found = load_config(tmp_path).model
    assert (found.resolution, found.attn_resolutions, found.grid) == (64, (16,), (16, 16))
    first, tuned = (load_model(folder)[1] for folder in (start, tmp_path))
    assert first.state_dict().keys() == tuned.state_dict().keys()


def test_the_command_takes_the_architecture_from_the_folder(start, data, tmp_path):
    fields = {"steps": 1, "batch_size": 2, "eval_every": 1, "eval_images": 2, "loss": {"disc_weight": 0}}
    tuned = ip.train_tokenizer(data, init=start, out=tmp_path, dataset="demo", model={"resolution": 64}, **fields)
    assert dataclasses.replace(tuned.config, resolution=32, attn_resolutions=(8,)) == TINY
    with pytest.raises(InputError, match=r"model.ch is 64, but the tokenizer in .* has 32: leave it out"):
        ip.train_tokenizer(data, init=start, out=tmp_path / "other", dataset="demo", model={"ch": 64}, **fields)


def test_a_preset_does_not_train_frozen_codes(start, data):
    flags = ["train-vqgan", "--data", str(data), "--preset", "demo", "--init", str(start), "--freeze", "encoder"]
    config = parse(flags).keywords["config"]
    assert (config.freeze, config.restart_every, config.loss.codebook_decay) == ("encoder", 0, 0.0)


def test_a_run_cannot_change_the_tokenizer_that_it_starts_from(start, splits, tmp_path):
    train_tokenizer(tiny(init=str(start), steps=2), splits, tmp_path / "run")
    train_tokenizer(tiny(steps=2, seed=9), splits, tmp_path / "other")
    with pytest.raises(InputError, match=r"init_fingerprint was .* and is .* now"):
        train_tokenizer(tiny(init=str(tmp_path / "other"), steps=4), splits, tmp_path / "run")


def test_a_resumed_run_finds_its_start_in_another_place_and_misses_one_that_is_gone(start, splits, tmp_path):
    shutil.copytree(start, tmp_path / "first")
    train_tokenizer(tiny(init=str(tmp_path / "first"), steps=2), splits, tmp_path / "run")
    (tmp_path / "first").rename(tmp_path / "second")
    with pytest.raises(InputError, match=r"init: no tokenizer in .*first .*requires the tokenizer from which it start"):
        train_tokenizer(tiny(init=str(tmp_path / "first")), splits, tmp_path / "run")
    train_tokenizer(tiny(init=str(tmp_path / "second")), splits, tmp_path / "run")
    train_tokenizer(tiny(init=str(start)), splits, tmp_path / "whole")
    first, second = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "run"))
    assert first == second


@pytest.mark.parametrize("freeze", ["none", "encoder"])
@pytest.mark.parametrize(
    "fields",
    [
        {"network": "maskgit"},
        {"network": "magvit2", "quantizer": "lfq", "codebook_size": 256},
        {"quantizer": "ibq"},
        {"quantizer": "fsq", "levels": (8, 5, 5), "embed_dim": 3, "codebook_size": 200, "patch": 2, "halvings": 1},
    ],
    ids=["maskgit", "magvit2", "ibq", "cosmos"],
)
def test_networks_of_other_projects_are_tuned_at_another_resolution(fields, freeze, splits, tmp_path):
    torch.manual_seed(0)
    model = dataclasses.replace(TINY, z_channels=8, attn_resolutions=() if "network" in fields else (8,), **fields)
    publish_model(tmp_path / "imported", model, build_model(model), "import-tokenizer")
    wider, entropy = dataclasses.replace(model, resolution=64), 0.1 if model.quantizer == "lfq" else 0.0
    loss = dataclasses.replace(LOSS, entropy_weight=entropy)
    config = tiny(model=wider, loss=loss, init=str(tmp_path / "imported"), freeze=freeze, batch_size=2)
    train_tokenizer(dataclasses.replace(config, steps=2), splits, tmp_path / "run")
    train_tokenizer(config, splits, tmp_path / "run")
    tuned = Tokenizer.load(tmp_path / "run", device="cpu")
    same = Tokenizer(tuned.config, build_model(tuned.config), "", torch.device("cpu"), "float32")
    same._model.load_state_dict(load_model(tmp_path / "imported")[1].state_dict())
    images = pictures(splits, side=64)
    assert tuned.encode(images).shape == (4, 16, 16)
    if freeze == "encoder":
        np.testing.assert_array_equal(tuned.encode(images), same.encode(images))


@pytest.mark.parametrize("quantizer", ["lfq", "fsq", "ibq"])
def test_a_preset_for_other_codes_does_not_stop_a_run(quantizer, data, tmp_path):
    dimension = {"lfq": 5, "fsq": 3, "ibq": 8}[quantizer]
    sizes = {"codebook_size": 64, "levels": (4, 4, 4)} if quantizer == "fsq" else {}
    model = dataclasses.replace(TINY, quantizer=quantizer, embed_dim=dimension, **sizes)
    publish_model(tmp_path / "imported", model, build_model(model), "import-tokenizer")
    words = [
        "--init",
        str(tmp_path / "imported"),
        "--dataset",
        "demo",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
    ]
    few = ["--steps", "1", "--batch-size", "2", "--eval-images", "2", "--loss.disc-weight", "0"]
    assert main(["train-vqgan", "--preset", "demo", *words, *few, "--loss.perceptual", "none"]) == 0
    found = load_config(tmp_path / "run")
    assert (found.model, found.restart_every, found.loss.codebook_decay) == (model, 0, 0)


def test_a_run_starts_from_a_tokenizer_of_the_hub(start, data, hub, tmp_path):
    ip.push(start, "user/tok")
    words = ["--init", "hf://user/tok", "--dataset", "demo", "--data", str(data), "--out", str(tmp_path / "run")]
    few = ["--steps", "1", "--batch-size", "2", "--eval-images", "2", "--loss.disc-weight", "0"]
    assert main(["train-vqgan", *words, *few, "--loss.perceptual", "none"]) == 0
    assert load_config(tmp_path / "run").init_fingerprint == fingerprint(start)
    assert load_config(tmp_path / "run").model == TINY


def test_what_cannot_be_tuned_is_refused(start, splits, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer in .*missing"):
        completed(tiny(init=str(tmp_path / "missing")))
    palette = fit_palette(splits["train"], tmp_path / "palette", colours=4, resolution=8)
    with pytest.raises(InputError, match="a tokenizer of kind 'palette', which cannot be trained"):
        completed(TrainConfig(**{**initial_fields(palette, {}), "model": load_config(palette).model}))
    with pytest.raises(InputError, match="freeze is 'encoder': name the tokenizer to start from in init"):
        tiny(freeze="encoder")
    with pytest.raises(InputError, match="restart_every is 5: the codes are frozen: choose 0"):
        tiny(init=str(start), freeze="encoder", restart_every=5)


def test_an_imported_tokenizer_of_another_quantiser_is_tuned(splits, tmp_path):
    model = dataclasses.replace(TINY, quantizer="fsq", levels=(4, 3), embed_dim=2, codebook_size=12)
    publish_model(tmp_path / "imported", model, build_model(model), "import-tokenizer")
    assert "init" not in json.loads((tmp_path / "imported/config.json").read_text())
    train_tokenizer(tiny(model=model, init=str(tmp_path / "imported"), steps=2), splits, tmp_path / "run")
    assert Tokenizer.load(tmp_path / "run", device="cpu").encode(pictures(splits)).max() < 12
