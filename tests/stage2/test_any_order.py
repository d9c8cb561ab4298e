"""A prior of any order: any known codes, any order, many codes per step, with an exact cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codeprior.any_order import codes_per_step, drawing_order
from codeprior.attention import KVCache
from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec, TrainConfig
from codeprior.draw import race_noise, sample_keys
from codeprior.given import given_region
from codeprior.model import Prior
from codeprior.sample import sample_codes, sample_sequences
from codeprior.sample_config import SampleConfig
from codeprior.window import sample_larger
from codeshards.format import ORDER_NAMES, order

T, V = 16, 11
CLASSES = torch.arange(5)
POSITIONS: list[dict[str, object]] = [
    {"position": "grid"},
    {"position": "learned", "target_positions": True},
    {"position": "rotary", "target_positions": True, "qk_norm": True},
]


def any_prior(objective: str = "any_order", **options: object) -> Prior:
    torch.manual_seed(0)
    condition = ConditionSpec(name="class", height=1, width=1, vocabulary=5, fingerprint="")
    sequence = SequenceSpec(
        height=4, width=4, codebook_size=V, order="zcurve", fingerprint="f", conditions=(condition,),
        objective=objective,
    )  # fmt: skip
    prior = Prior(ModelConfig(n_layer=2, n_head=2, n_embd=16, **options), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prior.eval()


@torch.inference_mode()
def logits_of(prior: Prior, tokens: Tensor, codes: list[int], places: list[int]) -> Tensor:
    """Logits [V] of the code at the last place, the whole sequence through the model."""
    read = torch.tensor([codes], dtype=torch.int64)
    return prior(tokens, read, torch.tensor([places]))[0, -1]


def naive_sample(prior: Prior, i: int, given_T: Tensor, places: list[int], counts: list[int], config: SampleConfig):
    """One sample: each code of a step by a pass of its own over the known codes and its place."""
    known = [t for t in places if given_T[t] >= 0]
    codes, left = given_T.tolist(), [t for t in places if given_T[t] < 0]
    for count in counts:
        for t in left[:count]:
            logits = torch.zeros(V)
            for tokens, factor in (
                (CLASSES[i].view(1, 1), config.guidance),
                (torch.tensor([[-1]]), 1 - config.guidance),
            ):
                logits += factor * logits_of(prior, tokens, [codes[k] for k in known], [*known, t])
            noise = race_noise(sample_keys(config.seed, i, 1), torch.tensor([t]), torch.arange(V)[None])[0]
            codes[t] = int(((logits / config.temperature).softmax(0) / noise).argmax())
        known, left = known + left[:count], left[count:]
    return codes


@pytest.mark.parametrize("options", POSITIONS, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_every_step_draws_from_the_codes_before_it_and_no_others(steps: int, options: dict[str, object]) -> None:
    prior, region = any_prior(**options), torch.zeros(4, 4, dtype=torch.bool)
    region[1:3, 0:2] = True
    grids = torch.randint(V, (5, 4, 4), generator=torch.Generator().manual_seed(1))
    given_NT = given_region(prior.sequence, grids, region)
    config = SampleConfig(order="spiral_out", steps=steps, guidance=1.7, temperature=0.8, top_k=None, batch_size=3)
    found_NT = sample_sequences(prior, 5, condition=CLASSES, config=config, given_NT=given_NT)
    z = {int(cell): t for t, cell in enumerate(order("zcurve", 4, 4))}
    places = [z[int(cell)] for cell in order("spiral_out", 4, 4)]
    places.sort(key=lambda t: bool(given_NT[0, t] < 0))  # known codes come first
    counts = {0: [1] * 12, 1: [12], 3: [2, 4, 6], 5: [1, 1, 3, 3, 4]}[steps]  # 12 · (1 - cos(π/2 · s/steps)), rounded
    for i in range(5):
        assert found_NT[i].tolist() == naive_sample(prior, i, given_NT[i], places, counts, config)


def test_the_priors_own_order_is_drawn_as_by_a_prior_of_one_order() -> None:
    prior = any_prior(position="grid")
    same = any_prior("ordered", position="grid")
    assert all(torch.equal(a, b) for a, b in zip(prior.parameters(), same.parameters(), strict=True))
    for known in (0, 5):
        given_NT = torch.full((5, T), -1)
        given_NT[:, :known] = 3
        before_NT = given_NT.clone()
        config = SampleConfig(seed=2, batch_size=2)
        expected = sample_sequences(same, 5, condition=CLASSES, config=config, given_NT=given_NT)
        for order_name in ("zcurve",):
            options = replace(config, order=order_name)
            assert torch.equal(
                sample_sequences(prior, 5, condition=CLASSES, config=options, given_NT=given_NT), expected
            )
        assert torch.equal(given_NT, before_NT)


@pytest.mark.parametrize("name", ["random", "confidence", *ORDER_NAMES])
def test_a_completion_of_its_own_part_in_every_order(name: str) -> None:
    """What is drawn depends on (seed, sample, place), so that samples stand alone, and known codes are kept."""
    prior = any_prior(position="grid")
    config = SampleConfig(order=name, steps=4, batch_size=2, choice_temperature=2.0)
    whole_NT = sample_sequences(prior, 5, condition=CLASSES, config=config)
    part_NT = sample_sequences(prior, 2, condition=CLASSES[3:], config=config, first=3)
    assert torch.equal(part_NT, whole_NT[3:])
    given_NT = whole_NT.where(torch.arange(T) % 3 == 1, -1)
    again_NT = sample_sequences(prior, 5, condition=CLASSES, config=config, given_NT=given_NT)
    assert torch.equal(again_NT[given_NT >= 0], given_NT[given_NT >= 0])
    assert 0 <= int(again_NT.min()) <= int(again_NT.max()) < V


def test_confidence_draws_the_surest_codes_first() -> None:
    prior, seen = any_prior(position="grid"), []
    config = SampleConfig(order="confidence", steps=6, schedule="constant", top_k=1, choice_temperature=0.0)
    sample_sequences(prior, 5, condition=CLASSES, config=config, watch=lambda _, codes: seen.append(codes.clone()))
    for i in range(5):
        read: list[int] = []  # known codes in the order in which they were chosen
        for codes_BT in seen:
            left = [t for t in range(T) if t not in read]
            before = [int(codes_BT[i, t]) for t in read]
            chance = {t: logits_of(prior, CLASSES[i].view(1, 1), before, [*read, t]).softmax(0).max() for t in left}
            surest = sorted(left, key=lambda t: -chance[t])[: int((codes_BT[i] >= 0).sum()) - len(read)]
            assert {t for t in left if codes_BT[i, t] >= 0} == set(surest)
            read += surest


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), steps=st.integers(0, 400), schedule=st.sampled_from(["cosine", "constant"]))
def test_all_codes_are_drawn_in_so_many_steps(count: int, steps: int, schedule: str) -> None:
    counts = list(codes_per_step(count, steps, schedule))
    assert sum(counts) == count
    assert len(counts) == (min(steps, count) or count)
    assert min(counts) >= 1
    if schedule == "constant":
        assert max(counts) - min(counts) <= 1


def test_a_random_order_is_another_permutation_for_each_sample() -> None:
    sequence = any_prior(position="grid").sequence
    keys = sample_keys(0, 0, 400)
    found = drawing_order(sequence, SampleConfig(order="random"), torch.full((400, T), -1), keys)
    assert torch.equal(found.sort(dim=1).values, torch.arange(T).expand(400, T))
    assert len(found.unique(dim=0)) == 400
    first = found[:, 0].bincount(minlength=T)
    assert 10 < first.min() < first.max() < 45  # 25 expected


def test_the_cache_of_a_step_is_that_of_its_codes_one_by_one() -> None:
    prior = any_prior(position="grid")
    codes, places = torch.randint(V, (1, T)), torch.randperm(T)[None]
    condition = torch.tensor([[2]])
    with torch.inference_mode():
        together, single = KVCache(prior, 1), KVCache(prior, 1)
        prior.ask(together, condition, codes, places[:, :0], places[:, :5])
        a = prior.ask(together, condition, codes, places[:, :5], places[:, 5:9])
        prior.ask(single, condition, codes, places[:, :0], places[:, :1])
        for t in range(5):
            b = prior.ask(single, condition, codes, places[:, t : t + 1], places[:, t + 1 : t + 2])
    assert together.length == single.length == 6
    torch.testing.assert_close(a[:, 0], b[:, 0])
    for left, right in zip((*together.keys, *together.values), (*single.keys, *single.values), strict=True):
        torch.testing.assert_close(left[:, :, :6], right[:, :, :6])


def test_a_prior_of_one_order_draws_in_it_alone() -> None:
    prior = any_prior("ordered", position="grid")
    for options, message in (
        ({"order": "row_major"}, "order = 'row_major': this prior draws one code after the other in order 'zcurve'"),
        ({"steps": 4}, "steps = 4: this prior draws one code after the other"),
    ):
        with pytest.raises(PriorError, match=message):
            sample_codes(prior, 1, condition=CLASSES[:1], config=SampleConfig(**options))
    with pytest.raises(PriorError, match="compile = True: only codes"):
        sample_codes(any_prior(), 1, condition=CLASSES[:1], config=SampleConfig(compile=True, steps=3))
    with pytest.raises(PriorError, match="drafts = 4: only codes that a causal prior draws one by one"):
        sample_codes(any_prior(), 1, condition=CLASSES[:1], config=SampleConfig(drafts=4))
    with pytest.raises(PriorError, match="order 'zcurve'"):
        sample_larger(prior, 1, 8, 8, condition=CLASSES[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ModelConfig(position="learned")}, "objective 'any_order' requires them: set them to true"),
        ({"multiscale": True}, "train them without objective 'any_order'"),
        ({"random_order": True}, "it is annealed to one order; objective 'any_order' permutes to the end"),
        ({"objective": "anyorder"}, "objective"),
    ],
)
def test_what_cannot_be_trained_in_any_order_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        TrainConfig(**{"objective": "any_order", **options})


def test_indices_lead_from_one_order_to_another() -> None:
    sequence = any_prior().sequence
    raster = np.arange(T)
    own = raster[order("zcurve", 4, 4)]
    for name in ORDER_NAMES:
        assert np.array_equal(own[sequence.indices(name)], raster[order(name, 4, 4)])
