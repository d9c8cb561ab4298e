"""Schedules of guidance and temperature: published values, and the codes that are drawn with them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec
from codeprior.given import given_prefix
from codeprior.guidance import guidance_at, guide, temperature_at, with_null
from codeprior.model import Prior
from codeprior.sample import sample_codes, sample_sequences
from codeprior.sample_config import SampleConfig
from codeprior.window import sample_larger

# The factors that the generate() functions of github.com/bytedance/1d-tokenizer apply, found with a stub of the model
# whose logits are 1 with the condition and 0 without it. RAR: the guidance and power of RAR-B and RAR-XL in its README,
# and its constant guidance.
RAR = {
    (16.0, 2.75): [1.0, 1.000399, 1.018065, 1.167448, 1.80308, 3.621632, 7.404397, 12.767379],
    (6.9, 1.5): [1.0, 1.115697, 1.88367, 3.624055, 5.798381],
    (4.0, 0.0): [4.0, 4.0, 4.0, 4.0],
}
MASKGIT_LINEAR = [1.0, 1.5625, 2.125, 2.6875, 3.25, 3.8125, 4.375, 4.9375]
MASKGIT_TEMPERATURE = [1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def conditional_prior() -> Prior:
    torch.manual_seed(0)
    classes = ConditionSpec(name="class", height=1, width=1, vocabulary=5, fingerprint="")
    sequence = SequenceSpec(
        height=4, width=4, codebook_size=11, order="row_major", fingerprint="f", conditions=(classes,)
    )
    prior = Prior(ModelConfig(n_layer=1, n_head=2, n_embd=16), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.5)
    return prior.eval()


def factors(config: SampleConfig, steps: int) -> list[float]:
    return [float(guidance_at(config, torch.tensor([step]) / steps)) for step in range(steps)]


@pytest.mark.parametrize(("guidance", "power"), list(RAR))
def test_power_cosine_is_that_of_rar(guidance: float, power: float) -> None:
    config = SampleConfig(guidance=guidance, guidance_schedule="power_cosine", guidance_power=power)
    published = RAR[guidance, power]
    assert factors(config, len(published)) == pytest.approx(published, abs=1e-5)


def test_linear_guidance_is_that_of_muse() -> None:
    """Its scale is the factor less 1, and counts the steps before."""
    config = SampleConfig(guidance=1 + 4.5, guidance_schedule="linear")
    assert factors(config, 8) == pytest.approx(MASKGIT_LINEAR, abs=1e-5)


def test_a_linear_temperature_is_that_of_titok() -> None:
    """It counts steps from 1."""
    config = SampleConfig(temperature=1.3, temperature_end=0.5)
    found = [temperature_at(config, (step + 1) / 8) for step in range(8)]
    assert found == pytest.approx(MASKGIT_TEMPERATURE, abs=1e-5)
    assert temperature_at(SampleConfig(temperature=0.7), 0.5) == 0.7


@settings(max_examples=30, deadline=None)
@given(
    schedule=st.sampled_from(["constant", "linear", "power_cosine"]),
    guidance=st.floats(0, 20),
    power=st.floats(0.1, 5),
    at=st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_guidance_goes_from_one_to_its_value(schedule: Any, guidance: float, power: float, at: list[float]) -> None:
    config = SampleConfig(guidance=guidance, guidance_schedule=schedule, guidance_power=power)
    found = [guidance_at(config, progress) for progress in sorted(at)]
    steps = [(later - earlier) * (guidance - 1) for earlier, later in itertools.pairwise(found)]
    assert min(steps) >= -1e-9  # always towards its value
    assert guidance_at(config, 1.0) == pytest.approx(guidance)
    assert guidance_at(config, 0.0) == pytest.approx(guidance if schedule == "constant" else 1)
    at_A = torch.tensor(sorted(at), dtype=torch.float64)
    tensor = torch.as_tensor(guidance_at(config, at_A), dtype=torch.float64)
    torch.testing.assert_close(tensor.expand(len(at)), torch.tensor(found, dtype=torch.float64).view(-1))


@pytest.mark.parametrize("schedule", ["constant", "linear", "power_cosine"])
def test_outside_the_interval_the_condition_alone_counts(schedule: Any) -> None:
    config = SampleConfig(guidance=3.0, guidance_schedule=schedule, guidance_interval=(0.25, 0.75))
    logits_RV = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    for progress in (0.0, 0.2, 0.75, 0.9):
        assert torch.equal(guide(logits_RV, config, torch.tensor([progress])), logits_RV[:2])
    whole = replace(config, guidance_interval=(0.0, 1.0))
    for progress in (0.25, 0.5, 0.7):
        at_1 = torch.tensor([progress])
        assert torch.equal(guide(logits_RV, config, at_1), guide(logits_RV, whole, at_1))
        assert not torch.equal(guide(logits_RV, config, at_1), logits_RV[:2])


def test_guidance_of_one_reads_no_null_condition() -> None:
    condition_BC = torch.tensor([[3], [4]])
    assert with_null(condition_BC, SampleConfig(guidance_schedule="linear")).tolist() == [[3], [4]]
    assert with_null(condition_BC, SampleConfig(guidance=2.0)).tolist() == [[3], [4], [-1], [-1]]


SCHEDULES: list[dict[str, Any]] = [
    {"guidance_schedule": "linear"},
    {"guidance_schedule": "power_cosine", "guidance_power": 1.5, "guidance_interval": (0.1, 0.8)},
    {"temperature": 1.4, "temperature_end": 0.3, "top_p": 0.9},
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_code_is_drawn_as_with_the_constants_of_its_place(schedule: dict[str, Any]) -> None:
    prior, classes = conditional_prior(), torch.arange(6) % 5
    config = SampleConfig(guidance=4.0, top_k=8, seed=3, batch_size=4, **schedule)
    drawn_NT = sample_sequences(prior, 6, condition=classes, config=config)
    for t in range(16):
        constant = SampleConfig(
            guidance=float(guidance_at(config, t / 16)), temperature=float(temperature_at(config, t / 16)),
            top_k=8, top_p=config.top_p, seed=3,
        )  # fmt: skip
        given_NT = given_prefix(prior.sequence, drawn_NT[:, :t])
        alone_NT = sample_sequences(prior, 6, condition=classes, config=constant, given_NT=given_NT)
        assert torch.equal(alone_NT[:, t], drawn_NT[:, t])
    plain_NT = sample_sequences(prior, 6, condition=classes, config=SampleConfig(guidance=4.0, top_k=8, seed=3))
    assert not torch.equal(plain_NT, drawn_NT)
    windows = sample_larger(prior, 6, 4, 4, condition=classes, config=config)
    assert torch.equal(windows, sample_codes(prior, 6, condition=classes, config=config))


def test_in_larger_grids_the_schedule_runs_over_the_whole_grid() -> None:
    prior, classes = conditional_prior(), torch.arange(5)

    def draw(**fields: Any) -> Tensor:
        return sample_larger(prior, 5, 6, 8, condition=classes, config=SampleConfig(top_k=8, **fields)).flatten(1)

    guided = draw(guidance=8.0, guidance_interval=(0.5, 1.0))
    assert torch.equal(guided[:, :24], draw()[:, :24])
    assert not torch.equal(guided[:, 24:30], draw()[:, 24:30])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_compiled_steps_follow_the_schedule(schedule: dict[str, Any]) -> None:
    prior, classes = conditional_prior(), torch.arange(4)
    config = SampleConfig(guidance=4.0, top_k=8, batch_size=4, **schedule)
    compiled = sample_codes(prior, 4, condition=classes, config=replace(config, compile=True))
    assert torch.equal(compiled, sample_codes(prior, 4, condition=classes, config=config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_schedule": "cosine"}, "power_cosine"),
        ({"guidance_power": -1.0}, "guidance_power is -1.0: use 0"),
        ({"guidance_interval": (0.6, 0.6)}, r"guidance_interval is \(0.6, 0.6\): use two rising fractions"),
        ({"guidance_interval": (0.5, 1.5)}, "use two rising fractions in 0 … 1"),
        ({"temperature_end": 0.0}, "temperature_end is 0.0: use above 0"),
    ],
)
def test_schedules_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        SampleConfig(**changes)
