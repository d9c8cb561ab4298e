"""Drafts with 8-bit weights: the codes are those without drafts, whether the drafts are right or wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codeprior.attention import KVCache
from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec
from codeprior.drafts import drafted_codes, drafts_per_check, with_eight_bits
from codeprior.given import UNKNOWN, given_prefix
from codeprior.model import Prior
from codeprior.sample import prepare, sample_codes, sample_sequences
from codeprior.sample_config import SampleConfig

OPTIONS: list[dict[str, Any]] = [
    {},
    {"position": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "tie_head": True},
    {"position": "grid", "target_positions": True},
]


def random_prior(**options: Any) -> Prior:
    torch.manual_seed(0)
    classes = ConditionSpec(name="class", height=1, width=1, vocabulary=5, fingerprint="")
    grid: dict[str, Any] = {"height": 4, "width": 4, "codebook_size": 11, "order": "zcurve"}
    sequence = SequenceSpec(**grid, fingerprint="f", conditions=(classes,))
    prior = Prior(ModelConfig(n_layer=2, n_head=2, n_embd=32, **options), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.2)
    return prior.eval()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_drafts_change_no_code(options: dict[str, Any]) -> None:
    prior, classes = random_prior(**options), torch.arange(5)
    config = SampleConfig(guidance=1.5, guidance_schedule="linear", top_k=6, batch_size=2)
    expected_NT = sample_sequences(prior, 5, condition=classes, config=config)
    for known, drafts in [(0, 1), (0, 3), (7, 3), (0, 20), (15, 2)]:
        given_NT, seen = given_prefix(prior.sequence, expected_NT[:, :known]), []
        found_NT = sample_sequences(
            prior, 5, condition=classes, config=replace(config, drafts=drafts), given_NT=given_NT,
            watch=lambda first, codes_BT, seen=seen: seen.append((first, codes_BT.clone())),
        )  # fmt: skip
        assert torch.equal(found_NT, expected_NT)
        for first, codes_BT in seen:
            assert torch.equal(codes_BT, expected_NT[first : first + 2].where(codes_BT != UNKNOWN, UNKNOWN))
        if known < 15:
            assert len(seen) < 3 * (16 - known)  # some drafts are right


@torch.inference_mode()
@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_drafts_are_drawn_again(seed: int) -> None:
    prior, other = random_prior(), random_prior()
    torch.manual_seed(seed)
    for parameter in other.parameters():
        parameter.copy_(torch.randn_like(parameter))

    def draw_one(logits_RV: Tensor, t: int) -> Tensor:
        return (logits_RV + t).argmax(dim=1)

    def draw(drafter: Prior, count: int) -> list[int]:
        cache, codes_1T = KVCache(prior, 1), torch.full((1, 16), UNKNOWN)
        codes_1T[:, 0] = draw_one(prior.prefill(torch.zeros(1, 1, dtype=torch.int64), cache), 0)
        t = 1
        while t < 16:
            new_1K = drafted_codes(prior, drafter, cache, codes_1T, t, min(count, 15 - t), draw_one)
            codes_1T[:, t : t + new_1K.shape[1]] = new_1K
            t += new_1K.shape[1]
            assert cache.length == t  # the condition, and all codes but the last
        return codes_1T[0].tolist()

    assert draw(other, 3) == draw(with_eight_bits(prior), 3) == draw(prior, 0)


def test_the_copy_predicts_nearly_as_the_prior_and_shares_its_embeddings() -> None:
    prior = random_prior()
    drafter, tokens = with_eight_bits(prior), (torch.zeros(3, 1, dtype=torch.int64), torch.randint(11, (3, 15)))
    assert drafter.code_embedding.weight is prior.code_embedding.weight
    with torch.inference_mode():
        expected, found = prior(*tokens), drafter(*tokens)
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_a_large_prior_has_drafts_also_with_packed_weights() -> None:
    sequence = SequenceSpec(height=2, width=2, codebook_size=8, order="row_major", fingerprint="f")
    large = Prior(ModelConfig(n_layer=1, n_head=2, n_embd=1280), sequence)
    assert large.parameter_count > 1 << 24
    for config in (SampleConfig(), SampleConfig(drafts=3)):
        assert drafts_per_check(prepare(large, config), 1, config) == drafts_per_check(large, 1, config) > 0
    assert drafts_per_check(prepare(large, SampleConfig()), 2, SampleConfig()) == 0


def test_widths_that_the_8_bit_product_cannot_have_are_refused() -> None:
    sequence = SequenceSpec(height=2, width=2, codebook_size=8, order="row_major", fingerprint="f")
    prior = Prior(ModelConfig(n_layer=1, n_head=2, n_embd=40), sequence)
    with pytest.raises(PriorError, match=r"drafts = 2: only float32 on a CPU.* a width that is a multiple of 16"):
        sample_codes(prior, 1, config=SampleConfig(drafts=2))


def test_drafts_are_for_float32_on_a_cpu() -> None:
    prior = random_prior()
    assert drafts_per_check(prior, 1, SampleConfig()) == 0  # a small prior
    for wrong in ({"precision": "bfloat16"}, {"compile": True}):
        config = SampleConfig(drafts=2, **wrong)
        with pytest.raises(PriorError, match="drafts = 2: only float32 on a CPU"):
            drafts_per_check(prior, 1, config)
        assert drafts_per_check(prior, 1, replace(config, drafts=None)) == 0
