"""Sampling: the cache changes nothing, a sample stands alone, codes come back in raster order."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from codeprior import draw as draw_module
from codeprior import sample as sample_module
from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec
from codeprior.draw import draw, race_noise, sample_keys
from codeprior.given import given_prefix, given_region, given_scales
from codeprior.model import Prior
from codeprior.sample import (
    condition_tokens,
    new_cache,
    sample_codes,
    sample_sequences,
    to_grids,
)
from codeprior.sample_config import SampleConfig
from codeprior.window import sample_larger
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


VARIANTS: list[dict[str, object]] = [
    {"top_p": 0.7},
    {"min_p": 0.2, "top_k": None},
    {"guidance": 2.5},
    {"guidance": 0.0},
    {"top_k": None},
    {"top_k": 6, "top_p": 0.8, "min_p": 0.05, "guidance": 1.5},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_way_to_draw_equals_naive_sampling(variant: dict[str, object]) -> None:
    prior = random_prior("class", "zcurve")
    config = SampleConfig(**{"temperature": 0.9, "top_k": 8, "seed": 3, "batch_size": 4, **variant})
    classes = torch.arange(6) % 5
    assert torch.equal(
        sample_codes(prior, 6, condition=classes, config=config), naive_samples(prior, 6, classes, config)
    )


@pytest.mark.parametrize("scales", [(), (1, 2)])
def test_a_completion_of_its_own_beginning_is_the_sample(scales: tuple[int, ...]) -> None:
    prior = random_prior("class", "zcurve", scales)
    for parameter in prior.blocks.parameters():
        parameter.data.mul_(3)  # or the codes before would hardly matter
    prior.code_embedding.weight.data.mul_(10)
    classes = torch.arange(5)
    config = SampleConfig(guidance=1.5, batch_size=2)
    whole_NT = sample_sequences(prior, 5, condition=classes, config=config)
    for known in (1, 7, whole_NT.shape[1] - 1):
        given_NT = given_prefix(prior.sequence, whole_NT[:, :known])
        again = sample_sequences(prior, 5, condition=classes, config=config, given_NT=given_NT)
        assert torch.equal(again, whole_NT)
    given_NT = given_prefix(prior.sequence, 10 - whole_NT[:, :7])
    other = sample_sequences(prior, 5, condition=classes, config=config, given_NT=given_NT)
    assert torch.equal(other[:, :7], 10 - whole_NT[:, :7])
    assert not torch.equal(other[:, 7:], whole_NT[:, 7:])


def region(kind: str) -> Tensor:
    cells = torch.zeros(4, 4, dtype=torch.bool)
    cells[
        {"upper": (slice(0, 2), slice(0, 4)), "centre": (slice(1, 3), slice(1, 3)), "quarter": (slice(0, 2),) * 2}[kind]
    ] = 1
    return cells


@pytest.mark.parametrize(
    ("kind", "order_name", "others"),
    [
        ("upper", "row_major", "row_major, zcurve, alternate"),
        ("centre", "spiral_out", "spiral_out"),
        ("quarter", "zcurve", "zcurve"),
    ],
)
def test_regions_are_completed_where_the_order_begins_with_them(kind: str, order_name: str, others: str) -> None:
    prior, cells = random_prior(order_name=order_name), region(kind)
    given_NHW = torch.randint(11, (3, 4, 4), generator=torch.Generator().manual_seed(2))
    codes_NHW = sample_codes(prior, 3, given_NT=given_region(prior.sequence, given_NHW, cells))
    assert torch.equal(codes_NHW[:, cells], given_NHW[:, cells])
    assert len(codes_NHW[:, ~cells].unique(dim=0)) == 3
    wrong = random_prior(order_name="subsample").sequence
    with pytest.raises(PriorError, match=f"orders that begin with them: {others}\\. A prior of objective"):
        given_region(wrong, given_NHW, cells)
    with pytest.raises(PriorError, match="orders that begin with them: none"):
        given_region(prior.sequence, given_NHW, cells.flip(0, 1) & ~region("centre") | region("centre").flip(0).tril())


def test_the_first_scales_can_be_fixed() -> None:
    prior = random_prior("none", "zcurve", (1, 2))
    g = torch.Generator().manual_seed(4)
    grids = [torch.randint(11, (3, side, side), generator=g) for side in (1, 2)]
    for k in (1, 2):
        given_NT = given_scales(prior.sequence, grids[:k])
        drawn = to_grids(prior.sequence, sample_sequences(prior, 3, given_NT=given_NT))
        assert [tuple(grid.shape) for grid in drawn] == [(3, 1, 1), (3, 2, 2), (3, 4, 4)]
        for fixed, found in zip(grids[:k], drawn, strict=False):
            assert torch.equal(fixed, found)
    for wrong in ([], grids[1:], [*grids, torch.zeros(3, 4, 4)]):
        with pytest.raises(PriorError, match="coarsest first"):
            given_scales(prior.sequence, wrong)
    with pytest.raises(PriorError, match="give it scales, not a region"):
        given_region(prior.sequence, torch.zeros(3, 4, 4), region("upper"))


@pytest.mark.parametrize("scales", [(), (1, 2)])
def test_a_multiscale_sequence_is_each_grid_in_its_own_order(scales: tuple[int, ...]) -> None:
    sequence = random_prior("none", "spiral_out", scales).sequence
    codes_NT = torch.arange(sequence.length)[None]
    *coarse, full = to_grids(sequence, codes_NT)
    first = sequence.length - 16
    assert full.flatten()[torch.from_numpy(order("spiral_out", 4, 4).copy())].tolist() == list(range(first, first + 16))
    if scales:
        assert coarse[0].tolist() == [[[0]]]
        assert coarse[1].flatten()[torch.from_numpy(order("spiral_out", 2, 2).copy())].tolist() == [1, 2, 3, 4]


def test_a_watcher_sees_the_codes_come() -> None:
    prior, seen = random_prior(), []
    codes_NT = sample_sequences(
        prior,
        5,
        config=SampleConfig(batch_size=3),
        watch=lambda first, codes: seen.append((first, codes.clone())),
    )
    assert [first for first, _ in seen] == [0] * 16 + [3] * 16
    for number, (first, codes) in enumerate(seen):
        known = number % 16 + 1
        assert torch.equal(codes[:, :known], codes_NT[first : first + 3, :known])
        assert (codes[:, known:] == -1).all()


@pytest.mark.slow
def test_compiled_steps_draw_the_same_codes() -> None:
    prior = random_prior("class", position="rotary", qk_norm=True)
    classes = torch.arange(4)
    config = SampleConfig(guidance=1.5, top_p=0.9, batch_size=4)
    compiled = sample_codes(prior, 4, condition=classes, config=replace(config, compile=True))
    assert torch.equal(compiled, sample_codes(prior, 4, condition=classes, config=config))


def as_compiled_on_a_gpu(monkeypatch: pytest.MonkeyPatch, step: Any = sample_module._step) -> None:
    monkeypatch.setattr(sample_module, "_compiled", lambda _: step)
    monkeypatch.setattr(sample_module, "_has_static_cache", lambda prior, config: config.compile)
    monkeypatch.setattr(sample_module, "check_compiler", lambda *_: None)


def test_every_setting_of_a_sweep_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself torch compiles the step for a few of them, and draws with the others uncompiled."""
    counter = CompileCounter()
    as_compiled_on_a_gpu(monkeypatch, torch.compile(sample_module._step, dynamic=False, backend=counter))
    prior = random_prior()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for temperature in (0.5, 1.0, 1.5):
            config = SampleConfig(temperature=temperature, compile=True)
            found = sample_codes(prior, 2, config=config)
            assert torch.equal(found, sample_codes(prior, 2, config=replace(config, compile=False)))
    assert counter.frame_count == 3
    torch._dynamo.reset()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_batches_of_compiled_steps_have_one_size_and_one_cache(
    monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    prior, classes, seen, caches = random_prior("class"), torch.arange(5), [], []
    config = SampleConfig(batch_size=3, guidance=guidance)
    expected = sample_codes(prior, 5, condition=classes, config=config)
    as_compiled_on_a_gpu(monkeypatch)
    monkeypatch.setattr(sample_module, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[-1])
    config = replace(config, compile=True)
    found = sample_codes(
        prior, 5, condition=classes, config=config, watch=lambda first, codes: seen.append((first, len(codes)))
    )
    assert torch.equal(found, expected)
    assert set(seen) == {(0, 3), (3, 2)}
    found = sample_codes(prior, 2, condition=classes[:2], config=config)  # in another call
    assert torch.equal(found, expected[:2])
    assert [cache.batch for cache in caches] == [3 if guidance == 1 else 6]
    assert caches[0].static
    sample_codes(prior, 4, condition=classes[:4], config=replace(config, batch_size=4))
    assert caches[-1].batch == (4 if guidance == 1 else 8)
    sample_codes(prior.bfloat16(), 4, condition=classes[:4], config=replace(config, batch_size=4, precision="bfloat16"))
    assert caches[-1].keys[0].dtype == torch.bfloat16


def test_a_call_never_draws_into_the_cache_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    as_compiled_on_a_gpu(monkeypatch)
    prior, config, nested = random_prior(), SampleConfig(compile=True), []
    expected = sample_codes(prior, 2, config=config)

    def watch(first: int, codes_BT: Tensor) -> None:
        if not nested:
            nested.append(sample_codes(prior, 2, config=replace(config, seed=1)))

    assert torch.equal(sample_codes(prior, 2, config=config, watch=watch), expected)

    other = random_prior()
    sample_codes(other, 2, config=config)
    kept = weakref.ref(sample_module._kept[other])
    del other
    gc.collect()
    assert kept() is None  # a prior takes its cache along


def test_random_numbers_are_exponential_and_all_different() -> None:
    noise = race_noise(sample_keys(0, 0, 50), torch.tensor([3]), torch.arange(1000).expand(50, 1000))
    assert (noise > 0).all()
    assert len(noise.unique()) > 49_900  # float32 repeats a few
    p = np.array([0.1, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(np.quantile(noise, p), -np.log(1 - p), rtol=0.05)
    for other in (
        race_noise(sample_keys(0, 0, 50), torch.tensor([4]), torch.arange(1000).expand(50, 1000)),
        race_noise(sample_keys(1, 0, 50), torch.tensor([3]), torch.arange(1000).expand(50, 1000)),
        noise.roll(1, 0),
        noise.roll(1, 1),
    ):
        assert abs(np.corrcoef(noise.flatten(), other.flatten())[0, 1]) < 0.02


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_the_mix_is_splitmix64(words: list[int]) -> None:
    def reference(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    found = draw_module._mix(torch.from_numpy(np.array(words, np.uint64).view(np.int64)))
    assert found.numpy().view(np.uint64).tolist() == [reference(word) for word in words]


@torch.inference_mode()
def naive_larger(prior: Prior, condition: Tensor | None, height: int, width: int, config: SampleConfig) -> Tensor:
    """Every code from a window of its own, nothing cached, one sample."""
    grid = torch.zeros(height, width, dtype=torch.int64)
    for row in range(height):
        for column in range(width):
            top, left = min(max(row - 2, 0), height - 4), min(max(column - 2, 0), width - 4)
            before = [
                int(grid[r, c]) for r in range(top, top + 4) for c in range(left, left + 4) if (r, c) < (row, column)
            ]
            tokens = torch.zeros(1, 1, dtype=torch.int64)
            if condition is not None and condition.ndim == 2:  # a picture's codes, half as fine as the grid
                tokens = condition[top // 2 : top // 2 + 2, left // 2 : left // 2 + 2].reshape(1, 4)
            elif condition is not None:
                tokens = condition.view(1, 1)
            logits = naive_filter(naive_guided(prior, tokens, before, config), config)
            t = torch.tensor([row * width + column])
            noise = race_noise(sample_keys(config.seed, 0, 1), t, torch.arange(11)[None])[0]
            grid[row, column] = (logits.softmax(0) / noise).argmax()
    return grid


@pytest.mark.parametrize("condition", list(CONDITIONS))
@pytest.mark.parametrize("size", [(6, 8), (8, 4), (4, 4)])
def test_a_sliding_window_equals_the_naive_one(condition: str, size: tuple[int, int]) -> None:
    prior, config = random_prior(condition), SampleConfig(top_k=5, guidance=1.0 if condition == "none" else 1.5)
    height, width = size
    g = torch.Generator().manual_seed(3)
    tokens = {
        "none": None,
        "class": torch.tensor([2]),
        "segmentation": torch.randint(7, (1, height // 2, width // 2), generator=g),
    }
    given = tokens[condition]
    found = sample_larger(prior, 1, height, width, condition=given, config=config)
    assert torch.equal(found[0], naive_larger(prior, None if given is None else given[0], height, width, config))


def test_a_larger_grid_of_the_training_size_is_an_ordinary_sample() -> None:
    prior = random_prior("class")
    classes = torch.arange(5)
    config = SampleConfig(batch_size=2)
    larger = sample_larger(prior, 5, 4, 4, condition=classes, config=config)
    assert torch.equal(larger, sample_codes(prior, 5, condition=classes, config=config))


def test_larger_grids_that_cannot_work_are_refused() -> None:
    with pytest.raises(PriorError, match="order row_major without scales; this one has order 'zcurve'"):
        sample_larger(random_prior(order_name="zcurve"), 1, 8, 8)
    with pytest.raises(PriorError, match="steps = 4: larger grids are drawn code by code"):
        sample_larger(random_prior(), 1, 8, 8, config=SampleConfig(steps=4))
    with pytest.raises(PriorError, match="at least the training grid, 4×4"):
        sample_larger(random_prior(), 1, 3, 8)
    with pytest.raises(
        PriorError, match=r"condition 'segmentation' is \[1, 2, 2\]: this grid of codes requires \[1, 4, 4\]"
    ):
        sample_larger(random_prior("segmentation"), 1, 8, 8, condition=torch.zeros(1, 2, 2, dtype=torch.int64))


def test_several_conditions_are_given_by_name() -> None:
    parts = (*CONDITIONS["class"], *CONDITIONS["segmentation"])
    sequence = replace(random_prior().sequence, conditions=parts)
    given = {"segmentation": torch.ones(2, 2, 2, dtype=torch.int64), "class": torch.tensor([3, 4])}
    assert condition_tokens(sequence, 2, given).tolist() == [[3, 1, 1, 1, 1], [4, 1, 1, 1, 1]]
    with pytest.raises(PriorError, match="pass a mapping"):
        condition_tokens(sequence, 2, torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(PriorError, match="this prior requires 'class\\+segmentation'"):
        condition_tokens(sequence, 2, {"class": torch.tensor([3, 4])})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0] * 16] * 2, "all 16 codes of each sample are given: leave some to draw"),
        ([[0] * 2] * 2, r"given codes are torch.int64 \[2, 2\]: expected integers \[2, 16\]"),
        ([[11] * 3 + [-1] * 13] * 2, "given codes are -1 … 11: the codebook has 0 … 10"),
        ([[0] * 3 + [-1] * 13, [0] * 4 + [-1] * 12], "3 to 4 codes of each sample are given"),
        ([[-1] + [0] * 3 + [-1] * 12] * 2, "these 3 known codes are not what order 'row_major' begins with"),
    ],
)
def test_known_codes_that_do_not_fit_are_refused(given: list[list[int]], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        sample_codes(random_prior(), 2, given_NT=torch.tensor(given))


def test_guidance_needs_a_condition() -> None:
    with pytest.raises(PriorError, match="no condition to guide by"):
        sample_codes(random_prior(), 2, config=SampleConfig(guidance=2.0))


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
    drawn = draw(logits.expand(n, 4), config, sample_keys(0, 0, n), torch.tensor([5]), 0.0)
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
    [
        ({"temperature": 0.0}, "top_k=1 is greedy"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"guidance": -1.0}, "guidance"),
        ({"precision": "float16"}, "precision"),
        ({"batch_size": 0}, "batch"),
    ],
)
def test_sampling_configs_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        SampleConfig(**changes)
