"""Speed of the prior on a GPU: the figures follow from the times, and a wrong replay is found."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

from codeprior import sample as codeprior_sample
from codeprior.attention import KVCache
from codeprior.sample_config import SampleConfig
from priorbench import harness, train_prior
from priorbench.gpu import memory, speed_prior, speed_sample, speed_vqgan
from priorbench.gpu.check import Setup, SkipCheckError

SETUP = Setup(torch.device("cpu"), "tiny", Path())
needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="make bench installs it")


def by_name(figures):
    return {figure.what: figure for figure in figures}


@pytest.fixture
def clock(monkeypatch):
    """Every measured call runs, and takes a second."""
    monkeypatch.setattr(harness, "seconds", lambda work: work() is None or 1.0)


def test_speed_of_training_follows_from_the_time_of_a_step(clock, monkeypatch):
    size = train_prior.Size(1, 2, 32, 16, 2)
    monkeypatch.setattr(speed_prior, "peak_flops", lambda device, precision: 4 * train_prior.step_flops(size))
    found = by_name(speed_prior.train_prior(SETUP))
    what = "a tiny prior, 16 codes, batch 2"
    assert found[what].value == pytest.approx(2 * 16 * 3)  # three steps of 2 × 16 codes were measured as one second
    assert found[f"{what}: MFU"].value == pytest.approx(3 / 4)
    assert found["a tiny prior, 32 codes, batch 2"].value == pytest.approx(2 * 32 * 3)
    assert found["calls in a step that wait for the GPU"].within


def test_the_target_is_that_of_compiled_steps(clock, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    monkeypatch.setattr(speed_prior, "peak_flops", lambda device, precision: 1e18)
    found = by_name(speed_prior.train_prior_compiled(SETUP))
    assert [figure.what for figure in found.values() if not figure.within] == [
        "a tiny prior, 16 codes, compiled, batch 2: MFU"
    ]
    assert found["a tiny prior, 16 codes, compiled: first step"].value == 1.0
    assert compiled == ["SequenceLoss", "Block"]


def test_without_a_compiler_checks_are_skipped(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    for check in (
        speed_prior.train_prior_compiled, speed_prior.train_nanogpt, speed_sample.sample_compiled,
        speed_vqgan.encode_compiled, speed_vqgan.train_vqgan_compiled,
    ):  # fmt: skip
        with pytest.raises(SkipCheckError, match="requires a C"):
            next(check(SETUP))


def test_attention_reaches_the_prior(monkeypatch):
    seen = []
    monkeypatch.setattr(train_prior, "Prior", lambda config, sequence: seen.append(config.attention) or _small_prior())
    train_prior.ours(train_prior.Size(1, 2, 32, 16, 2), "float32", False, "math")
    assert seen == ["math"]


def _small_prior():
    return speed_sample._prior(SETUP)


@needs_transformers
def test_ratios_are_those_of_the_times(monkeypatch):
    times = iter([2.0, 6.0, 6.0, 6.0, 1.0, 3.0, 3.0, 3.0])  # the first step, then three rounds of three, of each
    monkeypatch.setattr(harness, "seconds", lambda work: work() is None or next(times))
    found = by_name(speed_prior.train_transformers(SETUP))
    assert found["imagepriors over transformers"].value == pytest.approx(2.0)


def test_calls_that_wait_are_counted():
    def work():
        for text in ("called a synchronizing CUDA operation (Triggered internally …)", "other", "other"):
            warnings.warn(text, stacklevel=1)

    assert memory.waits(work) == 1
    assert memory.waits(lambda: None) == 0


def test_speed_of_drawing_follows_from_the_time_of_a_batch():
    prior = _small_prior()
    # Weights of 12·32² in the block and 32·64 in the head; keys and values of 8.5 tokens of 32 channels, in float32.
    assert speed_sample.read_bytes(prior, 2) == 4 * (12 * 32**2 + 32 * 64 + 2 * 2 * 8.5 * 32)
    reading_s = speed_sample.read_bytes(prior, 2) / 1e6
    speed, images, over = speed_sample._figures("x", prior, 2, 16 * 3 * reading_s, 1e6, at_most=2)
    assert speed.value == pytest.approx(3000 * reading_s)
    assert images.value == pytest.approx(2 / (16 * 3 * reading_s))
    assert over.value == pytest.approx(3)
    assert not over.within


def test_replayed_steps_draw_the_codes_of_separate_steps():
    assert speed_sample._equal_codes(_small_prior()).value == 1


def test_a_replay_that_reads_too_little_of_the_cache_is_found(monkeypatch):
    def extend(cache, layer, k, v):
        keys, values, seen = KVCache.extend(cache, layer, k, v)
        return keys, values, seen if seen is None else seen & (torch.arange(seen.shape[1]) != 2)

    class Wrong(KVCache):
        def extend(self, layer, k_BHSE, v_BHSE):
            return extend(self, layer, k_BHSE, v_BHSE)

    prior = _small_prior()
    for parameter in prior.parameters():
        parameter.data.mul_(10)  # else an earlier code hardly matters
    assert speed_sample._equal_codes(prior).within
    monkeypatch.setattr("priorbench.gpu.replay.KVCache", Wrong)
    assert not speed_sample._equal_codes(prior).within


def test_compiled_drawing_is_measured(monkeypatch):
    compiled = []
    monkeypatch.setattr(codeprior_sample, "_compiled", lambda device: compiled.append(device) or codeprior_sample._step)
    monkeypatch.setattr(harness, "read_floor", lambda: 1e15)
    found = by_name(speed_sample.sample_compiled(SETUP))
    assert "cpu" in compiled
    assert not found["batch 2, compiled: time over that of reading weights and cache"].within
    assert found["batch 4, compiled, with decoding"].at_least == 150


def test_each_way_to_draw_has_figures(monkeypatch):
    drawn = []
    plain = speed_sample.sample_sequences

    def recorded(prior, n, *, config, **rest):
        drawn.append((n, config))
        return plain(prior, n, config=config, **rest)

    monkeypatch.setattr(speed_sample, "sample_sequences", recorded)
    found = by_name(speed_sample.sample(SETUP))
    assert all(figure.value > 0 for name, figure in found.items() if "wait" not in name)
    expected = SampleConfig(precision="bfloat16", top_k=100)
    assert any(config.guidance == 3 and n == config.batch_size == 3 for n, config in drawn)
    assert any(config.steps and n == 3 for n, config in drawn)
    assert {config.precision for _, config in drawn} == {"bfloat16", "float32"}
    assert all(config.top_k == expected.top_k for _, config in drawn)
