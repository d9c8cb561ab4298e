"""The checks of the data path's speed count what they say they count."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from codeshards.job.tokenize import Worker
from priorbench import harness, loader
from priorbench.gpu import speed_tokenize
from priorbench.gpu.check import PHOTOS, Setup
from priorbench.gpu.networks import encoder_flops
from priorbench.gpu.photos import write_photo
from priorbench.gpu.speed_tokenize import load, make_shards, make_tokenizer, tokenize, tokenize_two
from vqgan.checkpoint import load_model
from vqgan.config import ModelConfig

_COUNT = 24


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    for index in range(_COUNT):
        write_photo(index, folder / PHOTOS)
    return folder


@pytest.fixture
def setup(work):
    return Setup(torch.device("cpu"), "tiny", work)


def test_tokenize_gives_every_photo_a_row_and_keeps_the_settings_of_torch(setup, monkeypatch):
    monkeypatch.setattr(speed_tokenize, "peak_flops", lambda device, precision: 1e12)
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    found = {figure.what: figure for figure in tokenize(setup)}
    assert (torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == before
    model = load_model(make_tokenizer(setup))[0].model
    for name in ("pillow", "torch"):
        assert found[f"{name}: photos without a row"].within
        rate = found[f"{name}: files to shards"].value
        assert found[f"{name}: of the card's peak"].value == pytest.approx(
            rate * encoder_flops(model, matching=False) / 1e12
        )
    best = found["files to shards, the faster of both"]
    assert best.value == max(found["pillow: files to shards"].value, found["torch: files to shards"].value)
    assert not best.within


def test_a_lost_shard_is_noticed(setup, monkeypatch):
    class Forgetful(Worker):
        def run(self, task):
            sidecar = super().run(task)
            if (task.shard.split, task.shard.index) == ("train", 1):
                (self._out.local / "train" / f"{task.shard.name}.parquet").unlink()
            return sidecar

    monkeypatch.setattr(speed_tokenize, "Worker", Forgetful)
    monkeypatch.setattr(speed_tokenize, "read_rate", lambda *_: 1.0)
    lost = [figure for figure in tokenize(setup) if figure.what.endswith("without a row")]
    assert [figure.value for figure in lost] == [4, 4]
    assert not any(figure.within for figure in lost)


def test_the_rate_leaves_out_the_first_shard(setup, monkeypatch, tmp_path):
    class Regular:
        calls = 0

        def __init__(self, *arguments):
            pass

        def run(self, task):
            Regular.calls += 1
            time.sleep(0.5 if Regular.calls == 1 else 0.1)
            return SimpleNamespace(rows=4, durations_s={"decode_wait": 1.0, "encode": 2.0})

    monkeypatch.setattr(speed_tokenize, "Worker", Regular)
    made = make_shards(setup, speed_tokenize._config(setup, "pillow", 2), tmp_path)
    shards = Regular.calls - 1
    assert (made.images, made.waiting_s, made.encoding_s) == (4 * shards, shards, 2 * shards)
    assert made.rate == pytest.approx(made.images / (0.1 * -(-shards // 2)), rel=0.5)  # two at once


def test_two_processes_make_all_shards_together(setup, monkeypatch):
    monkeypatch.setattr(speed_tokenize, "spawn", lambda suite, *words, env: list(speed_tokenize._part(*words)))
    rate, lost = tokenize_two(setup)
    assert rate.value > 0
    assert lost.within


def test_a_process_does_not_wait_forever_for_the_other(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(speed_tokenize, "_MEETING_S", 0.1)
    with pytest.raises(RuntimeError, match="not ready"):
        speed_tokenize._part("cpu", "tiny", str(setup.work), str(tmp_path / "out"), "0")


def test_flops_are_those_of_the_encoder(setup):
    assert encoder_flops(ModelConfig(), matching=False) == pytest.approx(138.4e9, rel=1e-3)
    config, model = load_model(make_tokenizer(setup))
    with FlopCounterMode(display=False) as counter:
        model.encode(torch.rand(1, 3, config.model.resolution, config.model.resolution))
    matching = 2 * config.model.codebook_size * config.model.embed_dim * 16**2
    assert encoder_flops(config.model, matching=False) == counter.get_total_flops() - matching


def test_load_compares_the_loader_with_a_training_step(setup, monkeypatch):
    monkeypatch.setattr(harness, "seconds", lambda read: (read(), 1.0)[1])
    monkeypatch.setattr(speed_tokenize.train_prior, "step_flops", lambda size: 256.0)  # 1 per token
    monkeypatch.setattr(speed_tokenize, "peak_flops", lambda device, precision: 64_000.0)
    _, rate, needed, ratio = load(setup)
    assert (rate.value, needed.value) == (5 * 64 * 256, 32_000)
    assert ratio.within
    monkeypatch.setattr(speed_tokenize, "peak_flops", lambda device, precision: 1e9)
    assert not list(load(setup))[-1].within


def test_load_refuses_codes_beyond_the_codebook(setup, monkeypatch):
    list(load(setup))
    batches = loader.open_ours(setup.work / "load", 64)
    wrong = next(batches)
    wrong.codes_BT[0, 0] = 1024
    monkeypatch.setattr(type(batches), "__next__", lambda self: wrong)
    with pytest.raises(ValueError, match="1024"):
        list(load(setup))
