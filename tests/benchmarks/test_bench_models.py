"""The benchmarks of the models run and compare equal outputs; tests do not check their figures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from priorbench import harness, peers, processes, readme, sample, train_prior, train_vqgan
from priorbench.__main__ import main
from vqgan.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
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

    def spawn(suite, *arguments, env=None):
        if suite == "train_vqgan":
            return train_vqgan.measure(*arguments)
        return getattr(train_prior, arguments[0])(*arguments[1:])

    monkeypatch.setattr(processes, "spawn", spawn)


class InProcess:
    """Replacement of a server: the same contender in this process."""

    def __init__(self, name, precision):
        self.draw = sample.CONTENDERS[name](precision)

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
    assert report["command"] == "python -m priorbench train-vqgan --repeats 1 --device cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_vqgan_is_compared_with_both_rivals_in_its_precision(device, monkeypatch):
    monkeypatch.setattr(harness, "device", lambda: device)
    monkeypatch.setattr(train_vqgan, "_native", lambda: "bfloat16")
    taking_part = train_vqgan.contenders()
    assert len({one.key for one in taking_part}) == len(taking_part)  # so their output files differ too
    keys = {one.key for one in taking_part}
    for one in taking_part:
        assert {f"{one.job}, {their}" for their in train_vqgan._rivals(one.precision).values()} <= keys


def test_comparisons_with_uncompiled_rivals_are_marked():
    found = [{"s": 1.0, "flops": 1e9, "floor": 1e10, "peak_gib": 1.0, "likeness": ""}]
    slow = [{**found[0], "s": 2.0, "floor": 2e10}]
    figures = {
        "encode, taming, as it is, float32": slow, "encode, taming, bfloat16": slow,
        "encode, imagepriors, bfloat16": found, "encode, imagepriors, compiled, bfloat16": [{**found[0], "flops": 0.0}],
    }  # fmt: skip
    columns, rows, headlines = train_vqgan.table(figures)
    what = "VQGAN encoding, bfloat16"
    assert headlines[f"{what}, over taming, same precision"] == "2 (1 round)"
    assert headlines[f"{what}, compiled, over taming, same precision (not compiled)"] == "2 (1 round)"
    # FLOPs of what is not compiled; the floor is the fastest of the run.
    assert rows[-1][columns.index("of matmul speed")] == rows[-2][columns.index("of matmul speed")] == "5%"


def test_nanogpt_and_our_prior_are_measured(monkeypatch, tmp_path):
    plain = train_prior._NANO
    monkeypatch.setattr(train_prior, "contenders", lambda model: [plain, "imagepriors"])
    monkeypatch.setitem(train_prior.CONTENDERS, plain, (train_prior.nanogpt, False, True, ()))
    train_prior.run(2, out=tmp_path)
    report = json.loads((tmp_path / "train-prior-cpu.json").read_text())
    assert f"Training step of GPT-2 small, float32, over {plain}" in report["headlines"]
    assert all(len(row) == len(report["columns"]) for row in report["rows"])
    assert len(report["figures"]["GPT-2 small, float32"]["imagepriors"]) == 2
    assert readme.tabulated(tmp_path / "train-prior-cpu.json") == report


@pytest.mark.parametrize("as_it_is", [True, False])
def test_pixels_encoded_in_the_step_are_reported_with_both_allocator_settings(as_it_is):
    """A GPU has only one allocator setting."""
    found, names = [{"s": 1.0, "floor": 1e12, "peak_gib": 1.0}], [train_prior._PIXELS, "imagepriors"]
    names += [train_prior._PIXELS + train_prior._AS_IS] * as_it_is
    result = train_prior.table({"GPT-2 small, float32": dict.fromkeys(names, found)}, "cpu").headlines
    assert len(result) == 1 + as_it_is
    assert result[f"Training step of GPT-2 small, float32, over {train_prior._PIXELS}"] == "1 (1 round)"


def sampled(name, precision, *seconds):
    return {f"{name}, {precision}": [{"s": s, "peak_gib": 1.0, "equal": 1.0} for s in seconds]}


def test_samplers_are_compared_in_the_same_precision(monkeypatch):
    monkeypatch.setattr(sample, "weights", lambda: 10)
    batch = {
        **sampled(sample._CACHED, "float32", 4.0, 6.0), **sampled(sample._UNCACHED, "float32", 20.0),
        **sampled("imagepriors", "float32", 2.0, 2.0), **sampled(sample._CACHED, "bfloat16", 3.0, 3.0),
        **sampled("imagepriors", "bfloat16", 1.0, 1.0),
    }  # fmt: skip
    batch[f"{sample._TRANSFORMERS}, float32"] = [{"failed": "OutOfMemoryError"}]
    floors = {"read": 640.0, "float32": 640.0, "bfloat16": 6400.0}
    columns, rows, headlines = sample.table({"floors": floors, "batches": {"2": batch}})
    what = "Drawing 16 codes, GPT-2 small, batch 2"
    assert headlines[f"{what}, float32, over {sample._CACHED}"] == "2.5 (2–3)"
    assert headlines[f"{what}, bfloat16, over {sample._CACHED}"] == "3 (3–3)"
    assert headlines[f"{what}, float32, over {sample._UNCACHED}, float32"] == "10 (1 round)"  # the peer's one round
    assert rows[-1][:4] == [sample._TRANSFORMERS, "float32", "2", "failed: OutOfMemoryError"]
    assert {len(row) for row in rows} == {len(columns)}
    # 10 numbers, 16 codes: float32 reads for 1 s; a batch of 2 multiplies for 1 s. bfloat16 reads for half of it.
    assert [row[columns.index("s over the floor")] for row in rows[:1] + rows[-2:-1]] == ["5.00", "2.00"]


def test_slow_contenders_have_fewer_rounds():
    assert [sample.rounds_of(((name, "float32"), batch), 3) for name in (sample._UNCACHED, "imagepriors")
            for batch in (1, 16)] == [1, 1, 3, 2]  # fmt: skip


@pytest.mark.parametrize("suite", ["train-vqgan", "train-prior", "sample"])
def test_missing_rivals_are_named_before_anything_is_measured(suite, monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delattr(processes, "spawn")
    assert main([suite]) == 2
    result = capsys.readouterr().err
    assert "taming-transformers-rom1504" in result
    assert "`make bench`" in result
    pinned = Path(result.partition("--no-deps -r ")[2].strip()).read_text()
    assert "taming-transformers-rom1504==" in pinned
    assert "benchmarks/priorbench/rivals.txt" in (ROOT / "Makefile").read_text()


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
    taking_part = [(name, precision) for precision in ("float32", "bfloat16") for name in sample.CONTENDERS]
    plain = [one for one in taking_part if "compiled" not in one[0] and one != (sample._UNCACHED, "bfloat16")]
    turns = sample.Turns({one: InProcess(*one) for one in plain})
    found = {one: turns.measure((one, 2)) for one in plain}
    compared = [one for one in plain if one[1] == "float32" and not one[0].startswith(sample._ANY_ORDER)]
    assert all(found[one]["equal"] == 1.0 for one in compared)
    assert sum("equal" in found[one] for one in plain) == 2 * len(compared) - 1  # and in bfloat16, but for the uncached
    assert all(found[one]["s"] > 0 for one in plain)
    assert "equal" not in turns.measure((plain[0], 2))


@pytest.mark.slow
@rivals
def test_a_server_answers_until_its_input_ends():
    with processes.Server("sample", sample._CACHED, "float32") as server:
        codes = torch.tensor(server.ask(batch=2, greedy_steps=3))
        assert codes.shape == (2, 3)
