"""The transformer: parity with a naive reference, causality, conditions, cache, start values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec, condition_parts
from codeprior.model import KVCache, Prior

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=16)


PARTS = {
    "class": ConditionSpec(name="class", height=1, width=1, vocabulary=5, fingerprint=""),
    "segmentation": ConditionSpec(name="segmentation", height=2, width=3, vocabulary=7, fingerprint="s"),
}


def spec(condition: str = "none", **changes: object) -> SequenceSpec:
    fields: dict[str, object] = {"height": 4, "width": 4, "codebook_size": 11, "order": "row_major", "fingerprint": "f"}
    conditions = tuple(PARTS[name] for name in condition_parts(condition))
    return SequenceSpec(**{**fields, "conditions": conditions, **changes})


def random_prior(condition: str = "none", config: ModelConfig = SMALL, **changes: object) -> Prior:
    """Weights far from the start's near-zero logits, so that mistakes show."""
    torch.manual_seed(0)
    prior = Prior(config, spec(condition, **changes))
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prior.eval()


def random_tokens(prior: Prior, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    g, s = torch.Generator().manual_seed(seed), prior.sequence
    sizes = [part.vocabulary for part in s.conditions for _ in range(part.length)] or [1]
    condition = torch.stack([torch.randint(size, (batch,), generator=g) for size in sizes], dim=1)
    return condition, torch.randint(s.codebook_size, (batch, s.length), generator=g)


def naive_logits(prior: Prior, condition_BC: Tensor, codes_BT: Tensor) -> Tensor:
    """GPT-2 written out head by head with an explicit mask, from the same weights."""
    w = dict(prior.named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    embedded, start = [], 0
    for name in prior.sequence.condition.split("+"):
        end = start + (PARTS[name].length if name in PARTS else 1)
        embedded.append(w[f"condition_embeddings.{name}.weight"][condition_BC[:, start:end]])
        start = end
    x = torch.cat([*embedded, w["code_embedding.weight"][codes_BT]], 1)
    tokens, width = x.shape[1:]
    x = x + w["position_embedding.weight"][:tokens]
    head_width = width // prior.config.n_head
    for layer in range(prior.config.n_layer):
        q, k, v = linear(f"blocks.{layer}.attention.qkv", norm(f"blocks.{layer}.attention_norm", x)).split(width, -1)
        heads = []
        for h in range(prior.config.n_head):
            part = slice(h * head_width, (h + 1) * head_width)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(head_width)
            future = torch.ones(tokens, tokens).triu(1).bool()
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[..., part])
        x = x + linear(f"blocks.{layer}.attention.proj", torch.cat(heads, -1))
        y = linear(f"blocks.{layer}.mlp.fc", norm(f"blocks.{layer}.mlp_norm", x))
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + linear(f"blocks.{layer}.mlp.proj", y)
    return norm("norm", x)[:, condition_BC.shape[1] - 1 :] @ w["head.weight"].T


CONDITIONS = ["none", "class", "segmentation", "class+segmentation"]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_logits_and_loss_equal_the_naive_reference(condition: str) -> None:
    prior = random_prior(condition)
    condition_BC, codes_BT = random_tokens(prior)
    logits = prior(condition_BC, codes_BT[:, :-1])
    expected = naive_logits(prior, condition_BC, codes_BT[:, :-1])
    assert logits.shape == (3, 16, 11)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    log_p = expected.log_softmax(-1).gather(2, codes_BT[..., None])[..., 0]
    torch.testing.assert_close(prior.nll(condition_BC, codes_BT), -log_p, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(changed=st.integers(0, 15), condition=st.sampled_from(CONDITIONS))
def test_a_code_changes_later_logits_only(changed: int, condition: str) -> None:
    prior = random_prior(condition)
    condition_BC, codes_BT = random_tokens(prior)
    other_BT = codes_BT.clone()
    other_BT[:, changed] = (other_BT[:, changed] + 1) % 11
    with torch.no_grad():
        before, after = prior(condition_BC, codes_BT[:, :-1]), prior(condition_BC, other_BT[:, :-1])
    assert torch.equal(before[:, : changed + 1], after[:, : changed + 1])
    # The last code is predicted but never read.
    assert changed == 15 or not torch.allclose(before[:, changed + 1], after[:, changed + 1])


@pytest.mark.parametrize("condition", CONDITIONS[1:])
def test_every_condition_token_changes_the_logits(condition: str) -> None:
    prior = random_prior(condition)
    condition_BC, codes_BT = random_tokens(prior)
    base = prior(condition_BC, codes_BT[:, :-1])
    for c in range(condition_BC.shape[1]):
        other_BC = condition_BC.clone()
        other_BC[:, c] = torch.where(other_BC[:, c] == 0, 1, 0)
        changed = (prior(other_BC, codes_BT[:, :-1]) - base).abs().amax(dim=(0, 2))
        assert (changed > 1e-4).all()


@pytest.mark.parametrize("condition", ["none", "segmentation"])
@torch.inference_mode()
def test_cached_logits_equal_uncached(condition: str) -> None:
    prior = random_prior(condition)
    condition_BC, codes_BT = random_tokens(prior)
    expected = prior(condition_BC, codes_BT[:, :-1])
    cache = KVCache(prior, 3)
    steps = [prior.prefill(condition_BC, cache)]
    steps += [prior.decode(codes_BT[:, t], cache) for t in range(15)]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(PriorError, match="a sequence has 16 image codes"):
        prior.decode(codes_BT[:, 15], cache)


def test_gpt2_start_values() -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_layer=8, n_head=2, n_embd=128)
    prior = Prior(config, spec("class", codebook_size=512))
    for name, parameter in prior.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        elif name != "condition_embeddings.class.weight":  # too few numbers to measure
            expected = 0.02 / 4 if "proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    nll = prior.nll(*random_tokens(prior, batch=8)).mean()
    assert nll.item() == pytest.approx(math.log(512), rel=0.02)


def test_gpt2_small_has_the_size_of_gpt2_small() -> None:
    with torch.device("meta"):
        prior = Prior(
            ModelConfig(n_layer=12, n_head=12, n_embd=768),
            spec("none", height=16, width=16, codebook_size=1024),
        )
    blocks = 12 * (12 * 768**2 + 13 * 768)
    assert prior.parameter_count == blocks + 768 * (1 + 1024 + 256 + 1024 + 2)


def test_dropout_acts_in_training_only() -> None:
    prior = random_prior(config=ModelConfig(n_layer=2, n_head=2, n_embd=16, dropout=0.5))
    tokens = random_tokens(prior)
    assert torch.equal(prior.nll(*tokens), prior.nll(*tokens))
    prior.train()
    assert not torch.equal(prior.nll(*tokens), prior.nll(*tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer = 0: use at least 1"),
        ({"n_embd": 20, "n_head": 6}, "n_embd = 20: use a positive multiple of n_head = 6"),
        ({"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        ModelConfig(**changes)
