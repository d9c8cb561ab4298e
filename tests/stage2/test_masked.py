"""A masked prior: what it reads, what it is trained on, the bound that it reports, and how it is drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codeprior.augment import augment
from codeprior.checkpoint import load_prior
from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec, TrainConfig
from codeprior.data import Batch
from codeprior.draw import race_noise, sample_keys
from codeprior.masked import MaskedPrior, bound_mask, make_prior, training_mask
from codeprior.sample import sample_codes, sample_sequences
from codeprior.sample_config import SampleConfig
from codeprior.train import train_prior
from codeprior.window import sample_larger
from codeshards.format import ShardDataset, order
from runkit.devices import make_autocast

T, V = 16, 11
CLASSES = torch.arange(5)


def masked_prior(order_name: str = "zcurve", **options: Any) -> MaskedPrior:
    torch.manual_seed(0)
    condition = ConditionSpec(name="class", height=1, width=1, vocabulary=5, fingerprint="")
    sequence = SequenceSpec(
        height=4, width=4, codebook_size=V, order=order_name, fingerprint="f", conditions=(condition,),
        objective="masked",
    )  # fmt: skip
    prior = make_prior(ModelConfig(n_layer=2, n_head=2, n_embd=16, **options), sequence)
    assert isinstance(prior, MaskedPrior)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.3)
    return prior.eval()


@pytest.mark.parametrize("position", ["grid", "learned", "rotary"])
@torch.inference_mode()
def test_every_code_sees_all_known_codes_and_no_hidden_one(position: str) -> None:
    prior = masked_prior(position=position)
    codes_BT = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(1))
    codes_BT[0, 3::2] = -1
    logits_BTV = prior(CLASSES[:1, None], codes_BT)
    assert logits_BTV.shape == (1, T, V)
    for t in (0, 2, 14):
        other_BT = codes_BT.clone()
        other_BT[0, t] = (other_BT[0, t] + 1) % V
        changed_T = (prior(CLASSES[:1, None], other_BT) - logits_BTV).abs().amax(dim=2)[0]
        assert (changed_T > 1e-6).all()
    assert len(logits_BTV[0, 3::2].unique(dim=0)) == 7  # hidden codes differ by their cells


def test_training_hides_the_published_fraction() -> None:
    u = np.array([0, 0.25, 0.5, 0.7, 1 - 2**-20])
    bits_B1 = (u * 2.0**64).astype(np.uint64)[:, None]
    keys_BT = np.tile(np.arange(T, dtype=np.uint64)[::-1], (5, 1))  # the smallest are hidden: the last codes
    hidden_BT = training_mask(bits_B1, keys_BT)
    assert hidden_BT.sum(dim=1).tolist() == [16, 15, 12, 8, 1]  # the least integers ≥ 16 · (1, 0.924, 0.707, 0.454, …)
    assert hidden_BT[2].tolist() == [False] * 4 + [True] * 12


def test_each_step_hides_other_codes_on_any_number_of_ranks() -> None:
    sequence = masked_prior().sequence
    config = TrainConfig(objective="masked", condition="class", batch_size=8, pkeep=0.7)
    codes_BT = torch.randint(V, (8, T), generator=torch.Generator().manual_seed(1))
    batch = Batch(condition_BC=torch.zeros(8, 1, dtype=torch.int64), codes_BT=codes_BT)
    found = [augment(batch, config, sequence, step=step, mine=slice(0, 8)).inputs_BT for step in (0, 1)]
    half = augment(batch.pick(np.arange(4, 8)), config, sequence, step=0, mine=slice(4, 8))
    assert torch.equal(half.inputs_BT, found[0][4:])
    assert not torch.equal(found[0] < 0, found[1] < 0)
    known_BT = found[0] >= 0
    assert 0 < int((found[0] != codes_BT)[known_BT].sum()) < int(known_BT.sum())  # pkeep replaces some known codes
    assert torch.equal(half.codes_BT, codes_BT[4:])


@torch.inference_mode()
def test_the_loss_is_that_of_hidden_codes() -> None:
    prior = masked_prior()
    codes_BT = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
    inputs_BT = codes_BT.clone()
    inputs_BT[0, 4:6] = inputs_BT[1, ::2] = inputs_BT[2] = -1
    nll_BT = prior.nll(CLASSES[:3, None], codes_BT, inputs_BT=inputs_BT)
    log_p_BTV = prior(CLASSES[:3, None], inputs_BT).log_softmax(dim=2)
    for b in range(3):
        for t in range(T):
            expected = -float(log_p_BTV[b, t, codes_BT[b, t]]) * np.pi / 2 if inputs_BT[b, t] < 0 else 0.0
            assert float(nll_BT[b, t]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_fused_attention_equals_plain_products(
    precision: Any, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codeprior.attention._BFLOAT16_CPU", True)
    codes_BT = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
    gradients = []
    for attention in ("sdpa", "math"):
        prior = masked_prior(attention=attention)
        with make_autocast(torch.device("cpu"), precision):
            nll_BT = prior.nll(CLASSES[:3, None], codes_BT)
        nll_BT.mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in prior.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[1].norm()


@torch.inference_mode()
def test_the_bound_hides_as_many_codes_as_any_order_would() -> None:
    prior = masked_prior()
    codes_NT = torch.randint(V, (4000, T), generator=torch.Generator().manual_seed(1))
    hidden_NT = bound_mask(codes_NT)
    assert torch.equal(bound_mask(codes_NT[7:9]), hidden_NT[7:9])
    counts = hidden_NT.sum(dim=1).bincount(minlength=T + 1)
    assert counts[0] == 0
    assert 190 < int(counts[1:].min()) < int(counts[1:].max()) < 310  # 250 expected
    torch.testing.assert_close(hidden_NT.double().mean(dim=0), torch.full((T,), 17 / 32).double(), atol=0.04, rtol=0)
    # Of each sequence the mean over its hidden codes.
    few_NT, hidden_NT = codes_NT[:20], hidden_NT[:20]
    classes_N1 = CLASSES.repeat(4)[:, None]
    log_p_NTV = prior(classes_N1, few_NT.masked_fill(hidden_NT, -1)).log_softmax(dim=2)
    nll_NT = -log_p_NTV.gather(2, few_NT[..., None])[..., 0]
    expected = [float(nll_T[hidden_T].mean()) for nll_T, hidden_T in zip(nll_NT, hidden_NT, strict=True)]
    assert prior.nll(classes_N1, few_NT).mean(dim=1).tolist() == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def naive_sample(prior: MaskedPrior, i: int, given_T: Tensor, counts: list[int], config: SampleConfig) -> list[int]:
    """One sample along spiral_out, by forward passes of its own for each code."""
    z = {int(cell): t for t, cell in enumerate(order("zcurve", 4, 4))}
    left = [z[int(cell)] for cell in order("spiral_out", 4, 4) if given_T[z[int(cell)]] < 0]
    codes_T = given_T.clone()
    for count in counts:
        read_T = codes_T.clone()
        for t in left[:count]:
            with_V, without_V = (prior(torch.tensor([[c]]), read_T[None])[0, t] for c in (i, -1))
            logits_V = config.guidance * with_V + (1 - config.guidance) * without_V
            noise_V = race_noise(sample_keys(config.seed, i, 1), torch.tensor([t]), torch.arange(V)[None])[0]
            codes_T[t] = (logits_V.softmax(0) / noise_V).argmax()
        left = left[count:]
    return codes_T.tolist()


def test_it_is_drawn_from_as_a_prior_of_any_order() -> None:
    prior = masked_prior()
    given_NT = torch.full((5, T), -1)
    given_NT[:, 3:11:2] = torch.randint(V, (5, 4), generator=torch.Generator().manual_seed(1))
    config = SampleConfig(order="spiral_out", steps=3, guidance=1.7, top_k=None, batch_size=3)
    found_NT = sample_sequences(prior, 5, condition=CLASSES, config=config, given_NT=given_NT)
    for i in range(5):
        assert found_NT[i].tolist() == naive_sample(prior, i, given_NT[i], [2, 4, 6], config)
    config = replace(config, order="confidence", choice_temperature=4.5)
    whole_NT = sample_sequences(prior, 5, condition=CLASSES, config=config, given_NT=given_NT)
    assert torch.equal(whole_NT.where(given_NT >= 0, -1), given_NT)
    assert 0 <= int(whole_NT.min()) <= int(whole_NT.max()) < V
    part_NT = sample_sequences(prior, 2, condition=CLASSES[3:], config=config, given_NT=given_NT[3:], first=3)
    assert torch.equal(part_NT, whole_NT[3:])


def test_a_run_resumes_and_learns_to_fill_in(make_dataset: Callable[..., ShardDataset], tmp_path: Path) -> None:
    dataset = make_dataset()
    config = TrainConfig(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=32), objective="masked", condition="class", cond_dropout=0.1,
        steps=40, batch_size=16, warmup_steps=5, learning_rate=1e-2, schedule="constant", eval_every=40,
        precision="float32", device="cpu",
    )  # fmt: skip
    summary = train_prior(config, dataset.path, tmp_path / "whole")
    assert summary["val_nll_nats"] < 0.85 * summary["unigram_val_nll_nats"]
    train_prior(replace(config, steps=10), dataset.path, tmp_path / "halves")
    train_prior(config, dataset.path, tmp_path / "halves")
    whole, halves = load_prior(tmp_path / "whole"), load_prior(tmp_path / "halves")
    assert isinstance(whole, MaskedPrior)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, halves.state_dict()[name]), name
    codes = sample_codes(whole, 4, condition=torch.arange(4), config=SampleConfig(order="confidence", steps=4))
    assert codes.shape == (4, 4, 4)


def test_what_a_masked_prior_cannot_do_is_refused() -> None:
    for options, message in (
        ({"multiscale": True}, "train them without objective 'masked'"),
        ({"random_order": True}, "annealed to one order"),
    ):
        with pytest.raises(PriorError, match=message):
            TrainConfig(objective="masked", **options)
    prior = masked_prior("row_major")
    with pytest.raises(PriorError, match="this one is masked"):
        sample_larger(prior, 1, 8, 8, condition=CLASSES[:1])
    with pytest.raises(PriorError, match="depends on no order"):
        prior.nll(CLASSES[:1, None], torch.zeros(1, T, dtype=torch.int64), positions_BT=torch.arange(T)[None])
    with pytest.raises(PriorError, match="compile"):
        sample_codes(prior, 1, condition=CLASSES[:1], config=SampleConfig(compile=True))
