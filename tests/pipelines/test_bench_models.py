"""The benchmarks of the models run and compare equal outputs; their figures are no matter of a test."""

import importlib.util
import json

import pytest
import torch

from imagepriors.benchmarks import harness, peers, sample, train_prior, train_vqgan
from imagepriors.cli import main
from vqgan.config import ModelConfig

rivals = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("taming", "einops", "diffusers", "transformers")),
    reason="make bench installs the rivals",
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    sizes = {
        "resolution": 32, "ch": 128, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (16,),
        "z_channels": 8, "embed_dim": 8, "codebook_size": 32,
    }  # fmt: skip
    monkeypatch.setattr(train_vqgan, "_MODEL", ModelConfig(**sizes))
    monkeypatch.setattr(train_prior, "_VQGAN", ModelConfig(**{**sizes, "ch": 32, "codebook_size": 1024}))
    monkeypatch.setattr(train_prior, "SIZES", {"cpu": {"GPT-2 small": train_prior.Size(1, 2, 16, 256, 2)}})
    monkeypatch.setattr(sample, "_SIZE", {"n_layer": 1, "n_head": 2, "n_embd": 16})
    monkeypatch.setattr(sample, "_SIDE", 4)
    monkeypatch.setattr(sample, "_WARM_STEPS", 2)
    monkeypatch.setattr(harness, "device", lambda: "cpu")
    monkeypatch.setattr(harness, "flops_floor", lambda precision: 1e11)

    def spawn(suite, *arguments, env):
        if suite == "train_vqgan":
            return train_vqgan.measure(*arguments)
        return getattr(train_prior, arguments[0])(*arguments[1:])

    monkeypatch.setattr(harness, "spawn", spawn)


class InProcess:
    """A server's stand-in: the same contender, in this process."""

    def __init__(self, name):
        self.draw = sample.CONTENDERS[name]()

    def ask(self, batch, greedy_steps=0):
        if greedy_steps:
            return self.draw(batch, greedy_steps, True).tolist()
        return {"s": harness.seconds(lambda: self.draw(batch, sample._SIDE**2, False)), "peak_gib": 1.0}


def test_our_vqgan_is_measured(monkeypatch, tmp_path):
    ours = [train_vqgan.Contender(job, "imagepriors", "float32") for job in ("encode", "decode")]
    monkeypatch.setattr(train_vqgan, "contenders", lambda: ours)
    train_vqgan.run(1, out=tmp_path)
    report = json.loads((tmp_path / "train-vqgan-cpu.json").read_text())
    assert [row[0] for row in report["rows"]] == [one.name for one in ours]
    assert all(len(row) == len(report["columns"]) for row in report["rows"])
    assert all(found[0]["flops"] > 0 for found in report["figures"].values())


def test_nanogpt_and_our_prior_are_measured(monkeypatch, tmp_path):
    plain = train_prior._NANO
    monkeypatch.setattr(train_prior, "contenders", lambda model: [plain, "imagepriors"])
    monkeypatch.setitem(train_prior.CONTENDERS, plain, (train_prior.nanogpt, False, True, ()))
    train_prior.run(2, out=tmp_path)
    report = json.loads((tmp_path / "train-prior-cpu.json").read_text())
    assert f"Training step of GPT-2 small, float32, over {plain}" in report["headlines"]
    assert all(len(row) == len(report["columns"]) for row in report["rows"])
    assert len(report["figures"]["GPT-2 small, float32"]["imagepriors"]) == 2


def test_the_peer_without_a_cache_counts_in_its_one_round():
    found = {sample._CACHED: {"s": [4.0, 6.0]}, sample._UNCACHED: {"s": [20.0]}, sample._OURS: {"s": [2.0, 2.0]}}
    ratios = sample._over(found, sample._OURS)
    assert ratios == {sample._CACHED: "2.5 (2–3)", sample._UNCACHED: "10", sample._TRANSFORMERS: ""}
    assert sample._over(found, sample._UNCACHED)[sample._CACHED] == "0.2"


@pytest.mark.parametrize("suite", ["train-vqgan", "train-prior", "sample"])
def test_missing_rivals_are_named_before_anything_is_measured(suite, monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delattr(harness, "spawn")
    assert main(["bench", suite]) == 2
    assert "pip install --no-deps taming-transformers-rom1504" in capsys.readouterr().err


@pytest.mark.slow
@rivals
def test_published_vqgans_encode_decode_and_train_as_ours(tmp_path):
    train_vqgan.run(1, out=tmp_path)
    report = json.loads((tmp_path / "train-vqgan-cpu.json").read_text())
    for name, precision, *_, likeness in report["rows"]:
        if precision == "float32" and name.startswith("train"):
            found, published = (float(word.split(",")[0]) for word in likeness.split()[1::2])
            assert found == pytest.approx(published, rel=1e-4)
        elif precision == "float32":
            assert float(likeness.partition("%")[0]) > 99.5


@pytest.mark.slow
@rivals
def test_published_priors_have_our_loss_at_the_same_weights(tmp_path):
    found = train_prior.losses("GPT-2 small")
    assert max(found.values()) - min(found.values()) < 1e-4
    for name in train_prior.contenders("GPT-2 small"):
        if "compiled" not in name:
            assert train_prior.measure(name, "GPT-2 small", "float32")["s"] > 0


@pytest.mark.slow
@rivals
def test_published_samplers_draw_our_greedy_codes():
    names = [name for name in sample.CONTENDERS if "compiled" not in name]
    found = sample.measure({name: InProcess(name) for name in names}, 2, 2)
    assert all(found[name]["equal"] == 1.0 for name in names if "bfloat16" not in name)
    assert len(found[sample._UNCACHED]["s"]) == 1
    assert len(found[sample._OURS]["s"]) == 2


@pytest.mark.slow
@rivals
def test_a_server_answers_until_its_input_ends():
    with harness.Server("sample", sample._CACHED) as server:
        codes = torch.tensor(server.ask(batch=2, greedy_steps=3))
        assert codes.shape == (2, 3)
