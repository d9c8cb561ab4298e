"""Sampling: the cache changes nothing, a sample stands alone, codes come back in raster order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from codeprior.config import ConditionSpec, ModelConfig, PriorError, SampleConfig, SequenceSpec
from codeprior.model import Prior
from codeprior.sample import draw, race_noise, sample_codes, sample_keys
from codeshards.format import ORDER_NAMES, order

CONDITIONS = {
    "none": (),
    "class": (ConditionSpec(name="class", height=1, width=1, vocabulary=5, fingerprint=""),),
    "segmentation": (ConditionSpec(name="segmentation", height=2, width=2, vocabulary=7, fingerprint="s"),),
}


def random_prior(
    condition: str = "none", order_name: str = "row_major", scales: tuple[int, ...] = (), **options: object
) -> Prior:
    torch.manual_seed(0)
    sequence = SequenceSpec(
        height=4,
        width=4,
        codebook_size=11,
        order=order_name,
        fingerprint="f",
        conditions=CONDITIONS[condition],
        scales=scales,
    )
    prior = Prior(ModelConfig(n_layer=2, n_head=2, n_embd=16, **options), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prior.eval()


def random_condition(prior: Prior, n: int) -> Tensor | None:
    s = prior.sequence
    if s.condition == "none":
        return None
    shape = (n,) if s.condition == "class" else (n, s.condition_length)
    return torch.randint(s.conditions[0].vocabulary, shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def naive_samples(prior: Prior, n: int, condition: Tensor | None, config: SampleConfig) -> Tensor:
    """One sample at a time, the whole sequence through the model for every code, filled into the raster."""
    s, grids = prior.sequence, []
    for i in range(n):
        tokens = torch.zeros(1, 1, dtype=torch.int64) if condition is None else condition[i].reshape(1, -1)
        codes: list[int] = []
        for t in range(s.length):
            logits = naive_filter(naive_guided(prior, tokens, codes, config), config)
            noise = race_noise(sample_keys(config.seed, i, 1), torch.tensor([t]), torch.arange(11)[None])[0]
            codes.append(int((logits.softmax(0) / noise).argmax()))
        raster = torch.empty(s.height * s.width, dtype=torch.int64)
        for code, position in zip(codes[-16:], order(s.order, s.height, s.width), strict=True):
            raster[position] = code
        grids.append(raster.view(s.height, s.width))
    return torch.stack(grids)


def naive_guided(prior: Prior, tokens: Tensor, codes: list[int], config: SampleConfig) -> Tensor:
    read = torch.tensor([codes], dtype=torch.int64)
    logits = prior(tokens, read)[0, -1]
    if config.guidance == 1:
        return logits
    without = prior(torch.full_like(tokens, -1), read)[0, -1]
    return (1 - config.guidance) * without + config.guidance * logits


def naive_filter(logits: Tensor, config: SampleConfig) -> Tensor:
    """One code after the other, most probable first, until a rule ends it."""
    logits, kept, total = logits / config.temperature, torch.full_like(logits, -torch.inf), 0.0
    ranked = logits.argsort(descending=True)[: config.top_k]
    p = logits[ranked].softmax(0)
    for code, probability in zip(ranked, p, strict=True):
        if total >= config.top_p or probability < config.min_p * p[0]:
            break
        kept[code], total = logits[code], total + float(probability)
    return kept


@pytest.mark.parametrize("condition", list(CONDITIONS))
@pytest.mark.parametrize("order_name", ORDER_NAMES)
def test_cached_batches_equal_naive_sampling(condition: str, order_name: str) -> None:
    prior = random_prior(condition, order_name)
    config = SampleConfig(temperature=0.9, top_k=5, seed=3, batch_size=4)
    given = random_condition(prior, 6)
    codes_NHW = sample_codes(prior, 6, condition=given, config=config)
    assert codes_NHW.dtype == torch.int64
    assert torch.equal(codes_NHW, naive_samples(prior, 6, given, config))


def test_greedy_equals_argmax() -> None:
    prior = random_prior("class")
    codes = sample_codes(prior, 5, condition=torch.arange(5), config=SampleConfig(top_k=1)).flatten(1)
    logits = prior(torch.arange(5)[:, None], codes[:, :-1])
    assert torch.equal(codes, logits.argmax(dim=-1))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 25])
def test_a_sample_does_not_depend_on_its_batch(batch_size: int) -> None:
    prior = random_prior("class")
    classes = torch.arange(7) % 5
    whole = sample_codes(prior, 7, condition=classes, config=SampleConfig(batch_size=7))
    assert len(whole.unique(dim=0)) == 7
    config = SampleConfig(batch_size=batch_size)
    assert torch.equal(sample_codes(prior, 7, condition=classes, config=config), whole)
    assert torch.equal(sample_codes(prior, 4, condition=classes[:4], config=config), whole[:4])
    # Another class for one sample leaves the others alone.
    other = sample_codes(prior, 7, condition=torch.cat([(classes[:1] + 1) % 5, classes[1:]]), config=config)
    assert torch.equal(other[1:], whole[1:])
    assert not torch.equal(sample_codes(prior, 7, condition=classes, config=replace(config, seed=1)), whole)


def test_draws_follow_the_tempered_probabilities() -> None:
    logits, n = torch.tensor([2.0, 1.0, 0.0, -1.0]), 4000
    config = SampleConfig(temperature=2.0, top_k=3)
    drawn = draw(logits.expand(n, 4), config, sample_keys(0, 0, n), torch.tensor([5]))
    expected = torch.cat([(logits[:3] / 2).softmax(0), torch.zeros(1)])
    torch.testing.assert_close(drawn.bincount(minlength=4) / n, expected, atol=0.025, rtol=0)


def test_the_sampler_leaves_global_random_numbers_alone() -> None:
    prior = random_prior()
    before = torch.get_rng_state()
    sample_codes(prior, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_weights_sample_too() -> None:
    prior, config = random_prior(), SampleConfig(precision="bfloat16")
    codes = sample_codes(prior, 3, config=config)
    assert torch.equal(codes, sample_codes(random_prior().to(torch.bfloat16), 3, config=config))
    assert prior.code_embedding.weight.dtype == torch.float32


def test_picture_conditions_may_come_as_grids() -> None:
    prior = random_prior("segmentation")
    given = random_condition(prior, 3)
    assert given is not None
    flat = sample_codes(prior, 3, condition=given)
    assert torch.equal(sample_codes(prior, 3, condition=given.view(3, 2, 2).to(torch.int32)), flat)


def test_no_samples_is_an_empty_answer() -> None:
    assert sample_codes(random_prior(), 0).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("condition", "given", "message"),
    [
        ("none", torch.zeros(2, dtype=torch.int64), "trained without a condition"),
        ("class", None, "conditioned on 'class': pass condition"),
        ("class", torch.zeros(3, dtype=torch.int64), r"expected integers \[2, 1\]"),
        ("class", torch.zeros(2), "condition 'class' is torch.float32"),
        ("class", torch.tensor([0, 5]), "values 0 … 5: this prior's 'class' knows 0 … 4"),
        ("segmentation", torch.zeros(2, 9, dtype=torch.int64), r"expected integers \[2, 4\]"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(condition: str, given: Tensor | None, message: str) -> None:
    with pytest.raises(PriorError, match=message):
        sample_codes(random_prior(condition), 2, condition=given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"temperature": 0.0}, "top_k=1 is greedy"), ({"top_k": 0}, "top_k = 0"), ({"batch_size": 0}, "batch")],
)
def test_sampling_configs_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        SampleConfig(**changes)
