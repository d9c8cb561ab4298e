"""The transformer: parity with a naive reference, causality, conditions, cache, start values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codeprior.attention import KVCache
from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec, condition_parts
from codeprior.model import Prior
from codeprior.positions import rotate, rotation_at
from runkit.devices import make_autocast

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=16, position="learned")


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
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
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
            ModelConfig(n_layer=12, n_head=12, n_embd=768, position="learned"),
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
        ({"n_layer": 0}, "n_layer is 0: use 1 to 1024"),
        ({"n_embd": 20, "n_head": 6}, "n_embd is 20: use a positive multiple of n_head = 6"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"position": "rotary", "n_embd": 6, "n_head": 2}, "'rotary' requires an even width"),
        ({"mlp": "relu"}, "mlp is 'relu': did you mean gelu"),
        ({"attention": "flash"}, "choose one of sdpa, xformers, math"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        ModelConfig(**changes)


OPTIONS: list[dict[str, object]] = [
    {"position": "rotary"},
    {"norm": "rmsnorm"},
    {"mlp": "gelu_tanh"},
    {"mlp": "swiglu"},
    {"qk_norm": True},
    {"tie_head": True},
    {"target_positions": True},
    {"position": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "tie_head": True},
    {"position": "rotary", "target_positions": True},
    {"position": "grid"},
    {"position": "grid", "target_positions": True},
]


def with_options(options: dict[str, object], condition: str = "class+segmentation", **changes: object) -> Prior:
    return random_prior(condition, ModelConfig(n_layer=2, n_head=2, n_embd=16, **options), **changes)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("scales", [(), (1, 2)])
@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
@torch.inference_mode()
def test_cached_logits_equal_uncached_with_every_option(
    options: dict[str, object], scales: tuple[int, ...], static: bool
) -> None:
    prior = with_options(options, scales=scales)
    condition_BC, codes_BT = random_tokens(prior)
    expected, T = prior(condition_BC, codes_BT[:, :-1]), prior.sequence.length
    for known in (0, 1, 5):
        cache = KVCache(prior, 3, static=static)
        steps = [prior.prefill(condition_BC, cache, codes_BT[:, :known])]
        steps += [prior.decode(codes_BT[:, t], cache) for t in range(known, T - 1)]
        torch.testing.assert_close(torch.stack(steps, dim=1), expected[:, known:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("precision", "bfloat16_cpu", "tolerance"),
    [("float32", False, 1e-5), ("bfloat16", False, 0.02), ("bfloat16", True, 0.02)],
)
@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_sdpa_equals_math_in_values_and_gradients(
    options: dict[str, object],
    precision: Literal["float32", "bfloat16"],
    bfloat16_cpu: bool,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("codeprior.attention._BFLOAT16_CPU", bfloat16_cpu)
    found: list[tuple[Tensor, Tensor]] = []
    for attention in ("sdpa", "math"):
        prior = with_options({**options, "attention": attention})
        with make_autocast(torch.device("cpu"), precision):
            nll_BT = prior.nll(*random_tokens(prior))
        nll_BT.mean().backward()
        found.append((nll_BT, torch.cat([p.grad.flatten() for p in prior.parameters() if p.grad is not None])))
    for fused, written_out in zip(*found, strict=True):
        assert (fused - written_out).norm() <= tolerance * written_out.norm()


def test_xformers_needs_a_gpu_and_says_so() -> None:
    prior = with_options({"attention": "xformers"})
    with pytest.raises(PriorError, match="NVIDIA GPUs only, not on cpu: use 'sdpa'"):
        prior.nll(*random_tokens(prior))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_xformers_equals_math_on_a_gpu() -> None:
    pytest.importorskip("xformers")
    losses = []
    for attention in ("xformers", "math"):
        prior = with_options({"attention": attention}).cuda()
        losses.append(prior.nll(*(tokens.cuda() for tokens in random_tokens(prior))))
    torch.testing.assert_close(*losses, atol=1e-3, rtol=1e-3)


def test_rotary_logits_depend_on_distances_only() -> None:
    """The same codes further on, with nothing before them to attend to, give the same attention: RoPE is relative."""
    places = torch.arange(5)
    q, k = torch.randn(2, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    scores = [rotate(q, rotation_at(p, 8)) @ rotate(k, rotation_at(p, 8)).mT for p in (places, places + 37)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores[0], q @ k.mT, atol=1e-2)


def test_condition_and_image_share_the_cells_of_a_grid() -> None:
    """A class, a 2×3 condition, and scales of 1 and 2 before 4×4 codes in z-order; 4 is "no place"."""
    prior = random_prior("class+segmentation", replace(SMALL, position="grid"), order="zcurve", scales=(1, 2))
    assert prior.grid_embedding is not None
    image_rows = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    image_columns = [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]
    assert prior.grid_embedding.row_P.tolist() == [4, 1, 1, 1, 3, 3, 3, 2, 1, 1, 3, 3, *image_rows]
    assert prior.grid_embedding.column_P.tolist() == [4, 0, 2, 3, 0, 2, 3, 2, 1, 3, 1, 3, *image_columns]


def test_a_token_of_a_grid_knows_its_cell_and_the_next() -> None:
    """Other weights of a row to come change the predictions from its first code on."""
    prior = random_prior("none", replace(SMALL, position="grid"))
    condition_BC, codes_BT = random_tokens(prior)
    before = prior(condition_BC, codes_BT[:, :-1])
    assert prior.grid_embedding is not None
    with torch.no_grad():
        prior.grid_embedding.next_row.weight[2] *= -1
    after = prior(condition_BC, codes_BT[:, :-1])
    torch.testing.assert_close(after[:, :8], before[:, :8])  # rows 0 and 1 are predicted as before
    assert not torch.allclose(after[:, 8], before[:, 8], atol=1e-4)


def test_a_tied_head_has_no_weights_of_its_own() -> None:
    tied, untied = with_options({"tie_head": True}), with_options({})
    assert untied.parameter_count - tied.parameter_count == 11 * 16
    assert "head.weight" not in tied.state_dict()


@pytest.mark.parametrize(
    "options", [{"target_positions": True, "position": name} for name in ("learned", "rotary", "grid")]
)
def test_positions_in_the_priors_own_order_change_nothing(options: dict[str, object]) -> None:
    prior = with_options(options)
    condition_BC, codes_BT = random_tokens(prior)
    positions_BT = torch.arange(16).expand(3, 16)
    torch.testing.assert_close(
        prior.nll(condition_BC, codes_BT, positions_BT=positions_BT), prior.nll(condition_BC, codes_BT)
    )


def test_positions_travel_with_their_codes() -> None:
    """Every step knows its target's place: swapping two targets swaps what is predicted for them."""
    prior = with_options({"target_positions": True}, "none")
    condition_BC, codes_BT = random_tokens(prior, batch=1)
    positions_BT = torch.randperm(16, generator=torch.Generator().manual_seed(1))[None]
    nll_BT = prior.nll(condition_BC, codes_BT, positions_BT=positions_BT)
    swapped = positions_BT.clone()
    swapped[:, [14, 15]] = swapped[:, [15, 14]]
    other_BT = prior.nll(condition_BC, codes_BT, positions_BT=swapped)
    torch.testing.assert_close(nll_BT[:, :14], other_BT[:, :14])  # nothing later leaks back
    assert not torch.allclose(nll_BT[:, 14:], other_BT[:, 14:])
    # The last target's place reaches the last step only through its own embedding.
    assert (nll_BT[:, 14] - other_BT[:, 14]).abs() > 1e-3


def test_positions_without_target_positions_are_refused() -> None:
    prior = random_prior()
    condition_BC, codes_BT = random_tokens(prior)
    with pytest.raises(PriorError, match="train with target_positions"):
        prior.nll(condition_BC, codes_BT, positions_BT=torch.arange(16).expand(3, 16))


def test_replaced_inputs_leave_the_targets_alone() -> None:
    prior = random_prior()
    condition_BC, codes_BT = random_tokens(prior)
    inputs_BT = codes_BT.clone()
    inputs_BT[:, 7] = (inputs_BT[:, 7] + 1) % 11
    before, after = prior.nll(condition_BC, codes_BT), prior.nll(condition_BC, codes_BT, inputs_BT=inputs_BT)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_a_hidden_condition_is_one_learned_token_of_each_part() -> None:
    prior = with_options({})
    condition_BC, codes_BT = random_tokens(prior)
    hidden = prior.nll(torch.full_like(condition_BC, -1), codes_BT)
    explicit_BC = torch.tensor([[5] + 6 * [7]]).expand(3, 7)  # the rows after each part's vocabulary
    torch.testing.assert_close(hidden, prior.nll(explicit_BC, codes_BT))
    hidden.mean().backward()
    gradient = prior.condition_embeddings["segmentation"].weight.grad
    assert gradient[-1].abs().sum() > 0
    assert not gradient[:-1].any()


def test_the_paper_s_multiscale_sequence_has_341_codes() -> None:
    prior = with_options({}, "none", height=16, width=16, scales=(1, 2, 4, 8))
    assert prior.sequence.length == 1 + 4 + 16 + 64 + 256 == 341
    assert prior.nll(*random_tokens(prior)).shape == (3, 341)


def test_each_scale_has_an_embedding() -> None:
    prior = with_options({}, scales=(1, 2))
    assert prior.sequence.length == 1 + 4 + 16
    prior.nll(*random_tokens(prior)).mean().backward()
    assert (prior.scale_embedding.weight.grad.abs().sum(dim=1) > 0).all()
    assert prior.scale_T.tolist() == [0] + 4 * [1] + 16 * [2]


GOLDEN: list[tuple[dict[str, object], list[float]]] = [
    ({}, [-2.2032, -2.07046, -2.07887]),
    (OPTIONS[7], [1.01484, 0.88258, 1.72993]),
    ({"target_positions": True}, [-2.6275, -2.66873, -2.95264]),
]


def test_golden_logits() -> None:
    """Numbers of the first run, so that no later change moves them unseen; arithmetic weights, not a generator's."""
    for options, expected in GOLDEN:
        prior = with_options({"position": "learned", **options})
        with torch.no_grad():
            for index, parameter in enumerate(prior.parameters()):
                wave = torch.sin(torch.arange(parameter.numel()) * 0.7 + index)
                parameter.copy_(0.3 * wave.view_as(parameter) + (parameter.ndim == 1))
        condition_BC = torch.tensor([[3, 0, 1, 2, 3, 4, 5]])
        logits = prior(condition_BC, torch.arange(15)[None] % 11)[0, [0, 7, 15], 4]
        torch.testing.assert_close(logits, torch.tensor(expected), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("tied", "activation", "layers", "heads", "width", "side"),
    [
        (True, "gelu_new", 3, 4, 32, 4),
        (False, "gelu", 3, 4, 32, 4),
        (False, "gelu", 12, 12, 768, 16),  # the preset gpt2-small
    ],
)
def test_logits_equal_hugging_faces_gpt2(
    tied: bool, activation: str, layers: int, heads: int, width: int, side: int
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers to compare with its GPT-2")
    torch.manual_seed(0)
    size = {"n_embd": width, "n_layer": layers, "n_head": heads}
    settings = {"vocab_size": 11, "n_positions": side**2, "activation_function": activation, **size}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(tie_word_embeddings=tied, **settings)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3 if layers < 12 else 0.05)
    theirs = model.transformer
    mlp = "gelu_tanh" if activation == "gelu_new" else "gelu"
    prior = Prior(ModelConfig(mlp=mlp, tie_head=tied, position="learned", **size), spec(height=side, width=side)).eval()
    start = 5  # their start token is an ordinary one
    with torch.no_grad():
        prior.code_embedding.weight.copy_(theirs.wte.weight)
        prior.condition_embeddings["none"].weight.copy_(theirs.wte.weight[start : start + 1])
        prior.position_embedding.weight.copy_(theirs.wpe.weight)
        prior.norm.load_state_dict(theirs.ln_f.state_dict())
        if prior.head is not None:
            assert model.lm_head.weight is not theirs.wte.weight
            prior.head.load_state_dict(model.lm_head.state_dict())
        for ours, block in zip(prior.blocks, theirs.h, strict=True):
            ours.attention_norm.load_state_dict(block.ln_1.state_dict())
            ours.mlp_norm.load_state_dict(block.ln_2.state_dict())
            pairs = {
                ours.attention.qkv: block.attn.c_attn,
                ours.attention.proj: block.attn.c_proj,
                ours.mlp.fc: block.mlp.c_fc,
                ours.mlp.proj: block.mlp.c_proj,
            }
            for linear, conv in pairs.items():
                linear.weight.copy_(conv.weight.T)
                linear.bias.copy_(conv.bias)
        condition_BC, codes_BT = random_tokens(prior)
        expected = model(torch.cat((torch.full((3, 1), start), codes_BT[:, :-1]), dim=1)).logits
        torch.testing.assert_close(prior(condition_BC, codes_BT[:, :-1]), expected, atol=1e-4, rtol=1e-4)
