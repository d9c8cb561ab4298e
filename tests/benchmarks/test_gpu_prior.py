"""The checks of the prior on a GPU find what is broken. Broken is the calculation in float32, or the second one."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd

from codeprior import distributed, sample
from codeprior.attention import KVCache, attend_math, attend_sdpa
from codeprior.draw import race_noise
from codeprior.sample_config import SampleConfig
from codeprior.trainer import Trainer, train_step
from priorbench.gpu import correct_prior, correct_sample, correct_training
from priorbench.gpu.check import Setup


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    torch.manual_seed(0)
    return Setup(torch.device("cpu"), "tiny", tmp_path)


def outside(figures) -> list[str]:
    """What is outside its limits."""
    return [figure.what for figure in figures if not figure.within]


def test_distances_are_relative_over_all_elements():
    found = correct_prior.distance([torch.tensor([3.0]), torch.tensor([4.0])], [torch.zeros(1), torch.tensor([5.0])])
    assert found == pytest.approx(10**0.5 / 5)


def attend_all(q, k, v, seen=None):
    return attend_math(q, k, v, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool))


def attend_tf32(q, k, v, seen=None):
    """Round as TF32 does, to 10 bits after the first."""
    if q.dtype == torch.float32:
        q, k, v = (x * (1 + 2**-12 * torch.randn_like(x)) for x in (q, k, v))
    return attend_sdpa(q, k, v, seen)


def test_right_attention_passes_and_wrong_attention_fails(setup, monkeypatch):
    assert not outside(correct_prior.attention(setup))
    monkeypatch.setattr(correct_prior, "attend_sdpa", attend_all)
    assert len(outside(correct_prior.attention(setup))) == 10
    monkeypatch.setattr(correct_prior, "attend_sdpa", attend_tf32)
    float32 = [figure.what for figure in correct_prior.attention(setup) if "float32" in figure.what]
    assert outside(correct_prior.attention(setup)) == float32


def test_a_wrong_gradient_and_a_wrong_update_of_the_prior_are_found(setup, monkeypatch):
    monkeypatch.setattr(
        correct_prior,
        "_CASES",
        {"case": correct_prior._CASES["rotary positions, SwiGLU, RMS norm, queries normalised"]},
    )
    assert not outside(correct_prior.prior_losses(setup))

    silu = F.silu
    with monkeypatch.context() as patch:
        patch.setattr(F, "silu", lambda x: silu(x) * (1 if x.dtype == torch.float64 else 1.001))
        assert outside(correct_prior.prior_losses(setup)) == ["case, float32: gradients"]
    calls = itertools.count()

    def step(*arguments, learning_rate, **options):
        return train_step(*arguments, learning_rate=learning_rate * (1 + (next(calls) >= 3)), **options)

    monkeypatch.setattr(correct_prior, "train_step", step)
    found = outside(correct_prior.prior_losses(setup))
    assert found == ["case, float32: losses", "all of these, bfloat16: losses"]


def test_codes_and_random_numbers_that_depend_on_the_device_are_found(setup, monkeypatch):
    monkeypatch.setattr(
        correct_sample,
        "_DRAWS",
        {"greedy": correct_sample._Draw(config={"top_k": 1}), "random": correct_sample._Draw()},
    )
    assert not outside(correct_sample.prior_samples(setup))

    def noise(keys_B, *rest):  # other numbers for other batches
        return race_noise(keys_B + len(keys_B), *rest)

    monkeypatch.setattr("codeprior.draw.race_noise", noise)
    assert outside(correct_sample.prior_samples(setup)) == ["random: equal codes"]
    monkeypatch.setattr(correct_sample, "race_noise", lambda keys_B, t_1, codes_BK: torch.rand(codes_BK.shape))
    assert "random numbers, bit by bit: equal" in outside(correct_sample.prior_samples(setup))


def test_compiled_steps_that_draw_other_codes_or_are_not_compiled_are_found(setup, monkeypatch):
    def compiled(device):
        return lambda prior, cache, codes_B, *rest: (sample._step(prior, cache, codes_B, *rest) + 1) % 64

    compiled.cache_clear = lambda: None
    monkeypatch.setattr(sample, "_compiled", compiled)
    found = outside(correct_sample.prior_samples_compiled(setup))
    assert found == ["compiled, batch 2, guidance 2: equal codes", "programs compiled"]


def test_a_cache_that_is_reused_wrongly_is_found(tmp_path, monkeypatch):
    calls = itertools.count()

    def compiled(device):  # right in the first batch of one sample only, whose first two codes are not compiled
        return lambda prior, cache, codes_B, *rest: sample._step(prior, cache, codes_B, *rest) * (next(calls) < 62)

    compiled.cache_clear = lambda: None
    monkeypatch.setattr(sample, "_compiled", compiled)
    first = next(correct_sample.prior_samples_compiled(Setup(torch.device("cpu"), "full", tmp_path)))
    assert first.what == "compiled, batch 1, guidance 1: equal codes"
    assert not first.within


def test_a_compiled_step_writes_only_to_static_inputs(setup, monkeypatch):
    """Otherwise a GPU uses no CUDA graphs. A new cache must not compile again."""
    written: list[set[int]] = []

    def inspect(module, inputs):
        about = torch._guards.TracingContext.get().fw_metadata
        written.append(set(about.mutated_inp_runtime_indices) - set(about.static_input_indices))
        assert len(about.mutated_inp_runtime_indices) == 2  # keys and values of one layer
        return module.forward

    step = torch.compile(sample._step, dynamic=False, backend=aot_autograd(fw_compiler=inspect))
    monkeypatch.setattr(sample, "_compiled", lambda device: step)
    monkeypatch.setattr(sample, "new_cache", lambda prior, rows, config: KVCache(prior, rows, static=config.compile))
    prior = correct_sample._prior(setup)
    plain, compiled = (
        correct_sample._codes(prior, 4, SampleConfig(batch_size=2, guidance=2.0, compile=on, drafts=0))
        for on in (False, True)
    )
    torch._dynamo.reset()
    assert torch.equal(plain, compiled)
    assert written == [set()]


def test_wrong_training_in_a_group_is_found(setup, monkeypatch):
    assert not outside(correct_training.prior_parallel(setup))

    class Half(torch.nn.Module):
        def __init__(self, loss, device):
            super().__init__()
            self.loss = loss

        def forward(self, **tensors):
            return self.loss(**tensors) / 2

    monkeypatch.setattr(distributed, "replicate", Half)
    assert outside(correct_training.prior_parallel(setup)) == [
        "DDP: losses", "DDP: gradient norms", "DDP: weights of a checkpoint",
    ]  # fmt: skip
    assert not torch.distributed.is_initialized()


def test_a_resume_that_forgets_a_moment_is_found(setup, monkeypatch):
    whole = Trainer.load

    def load(trainer, checkpoint):
        values = whole(trainer, checkpoint)
        parameter = next(trainer.prior.parameters())
        trainer.optimizer.state[parameter]["exp_avg"].zero_()
        return values

    monkeypatch.setattr(Trainer, "load", load)
    assert outside(correct_training.prior_resume(setup)) == ["weights, average and moments, bit by bit: equal tensors"]


def test_a_traceback_for_want_of_memory_is_found(setup, monkeypatch):
    assert not outside(correct_training.memory_message(setup))
    monkeypatch.setattr(correct_training, "user_message", lambda error: None)
    assert outside(correct_training.memory_message(setup)) == ["the message names sizes and batches (1: yes)"]
