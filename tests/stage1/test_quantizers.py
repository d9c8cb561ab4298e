"""Quantisers, against the library vector-quantize-pytorch, naive references, and small examples by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import FSQ, LFQ, SimVQ
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from imagepriors.demo.layouts import write_demo_data
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.model import QUANTIZERS, build_model
from vqgan.quantize import entropy_term, rotated, rows
from vqgan.tokenizer import Tokenizer
from vqgan.train import train_tokenizer
from vqgan.trainer import Trainer

TINY = {
    "resolution": 32, "ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "attn_resolutions": (), "z_channels": 16,
}  # fmt: skip
KINDS = {
    "vq": {"embed_dim": 8, "codebook_size": 32},
    "l2": {"embed_dim": 8, "codebook_size": 32},
    "simvq": {"embed_dim": 8, "codebook_size": 32},
    "ibq": {"embed_dim": 8, "codebook_size": 32},
    "fsq": {"levels": (4, 3, 3), "embed_dim": 3, "codebook_size": 36},
    "lfq": {"embed_dim": 5, "codebook_size": 32},
    "bsq": {"embed_dim": 5, "codebook_size": 32},
}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=4, size=32)
    return open_splits("demo", out)


def make(kind, loss=None, **fields):
    config = ModelConfig(quantizer=kind, **{**KINDS.get(kind, {}), **fields})
    return QUANTIZERS[kind](config, loss or LossConfig())


def latents(dim, seed=0):
    return torch.randn(2, dim, 8, 8, generator=torch.Generator().manual_seed(seed)) * 1.5


def as_rows(z_BDhw):
    return z_BDhw.permute(0, 2, 3, 1).flatten(1, 2)


def test_fsq_has_the_codes_vectors_and_gradient_of_the_library():
    levels = (8, 5, 5, 6)
    quantize = make("fsq", levels=levels, embed_dim=4, codebook_size=1200)
    z, theirs = latents(4).requires_grad_(), as_rows(latents(4)).requires_grad_()
    q_BDhw, loss, codes_Bhw = quantize(z)
    out, indices = FSQ(list(levels))(theirs)
    assert torch.equal(codes_Bhw.flatten(1), indices.long())
    torch.testing.assert_close(as_rows(q_BDhw), out)
    assert float(loss.detach()) == 0
    weights = torch.randn_like(q_BDhw)
    (q_BDhw * weights).sum().backward()
    (out * as_rows(weights)).sum().backward()
    torch.testing.assert_close(as_rows(z.grad), theirs.grad)


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_sign_bits_have_the_entropy_term_of_the_library_and_its_codes_with_the_bits_reversed(kind):
    dim, temperature = 9, 0.5
    loss = LossConfig(beta=0.0, entropy_weight=1.0, entropy_temperature=temperature)
    quantize = make(kind, loss, embed_dim=dim, codebook_size=2**dim)
    theirs = LFQ(
        dim=dim, codebook_size=2**dim, entropy_loss_weight=1.0, commitment_loss_weight=0.0, diversity_gamma=1.0,
        spherical=kind == "bsq",
    ).train()  # fmt: skip
    z = latents(dim)
    out, indices, aux = theirs(z, inv_temperature=1 / temperature)
    q_BDhw, term, codes_Bhw = quantize(z)
    reversed_bits = [int(f"{int(index):0{dim}b}"[::-1], 2) for index in indices.flatten()]
    assert codes_Bhw.flatten().tolist() == reversed_bits
    torch.testing.assert_close(q_BDhw, out)
    torch.testing.assert_close(term, aux, rtol=1e-3, atol=0)


def test_the_first_channel_is_the_lowest_digit():
    z_BDhw = torch.tensor([[5.0, -5.0, 5.0], [-5.0, 5.0, 0.0]]).view(2, 3, 1, 1)
    assert make("lfq", embed_dim=3, codebook_size=8).codes(z_BDhw).flatten().tolist() == [0b101, 0b010]
    assert make("fsq").codes(z_BDhw).flatten().tolist() == [3 + 0 * 4 + 2 * 12, 0 + 2 * 4 + 1 * 12]


def test_simvq_is_that_of_the_library():
    quantize, theirs = make("simvq"), SimVQ(dim=8, codebook_size=32, channel_first=True, rotation_trick=False)
    theirs.frozen_codebook.copy_(quantize.embedding.weight)
    theirs.code_transform.weight.data.copy_(quantize.proj.weight)
    q_BDhw, loss, codes_Bhw = quantize(latents(8))
    out, indices, commitment = theirs(latents(8))
    assert torch.equal(codes_Bhw, indices)
    torch.testing.assert_close(q_BDhw, out)
    torch.testing.assert_close(loss, commitment)
    loss.backward()
    assert quantize.embedding.weight.grad is None
    assert quantize.proj.weight.grad.abs().sum() > 0


def test_ibq_equals_one_hot_matrices():
    loss = LossConfig(beta=0.25, entropy_weight=0.1, entropy_temperature=0.2)
    quantize = make("ibq", loss)
    z = latents(8).requires_grad_()
    q_BDhw, term, codes_Bhw = quantize(z)
    codebook_KD = quantize.embedding.weight.detach().clone().requires_grad_()
    naive = latents(8).requires_grad_()
    scores_NK = rows(naive) @ codebook_KD.T
    soft_NK = scores_NK.softmax(1)
    hard_NK = F.one_hot(scores_NK.argmax(1), 32).float()
    q_ND = (hard_NK - soft_NK.detach() + soft_NK) @ codebook_KD
    chosen_ND = hard_NK @ codebook_KD
    expected = F.mse_loss(q_ND, rows(naive)) + F.mse_loss(rows(naive), chosen_ND.detach())
    expected = expected + 0.25 * F.mse_loss(chosen_ND, rows(naive).detach())
    expected = expected + 0.1 * entropy_term(scores_NK / 0.2)
    assert torch.equal(codes_Bhw.flatten(), hard_NK.argmax(1))
    torch.testing.assert_close(term, expected)
    (rows(q_BDhw).square().sum() + term).backward()
    (q_ND.square().sum() + expected).backward()
    torch.testing.assert_close(z.grad, naive.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quantize.embedding.weight.grad, codebook_KD.grad, rtol=1e-4, atol=1e-4)


def test_the_rotated_gradient_is_that_of_the_library():
    z, q = latents(8).requires_grad_(), latents(8, seed=1)
    theirs = as_rows(latents(8)).flatten(0, 1).requires_grad_()
    turned, out = rotated(z, q), rotate_to(theirs, as_rows(q).flatten(0, 1))
    assert torch.equal(turned, q)
    weights = torch.randn_like(q)
    (turned * weights).sum().backward()
    (out * as_rows(weights).flatten(0, 1)).sum().backward()
    torch.testing.assert_close(as_rows(z.grad).flatten(0, 1), theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_entropy_term_is_lowest_for_certain_latents_that_use_all_codes():
    certain, one_code, uncertain = 50 * torch.eye(4), 50 * torch.eye(4)[:1].repeat(4, 1), torch.zeros(4, 4)
    found = [float(entropy_term(logits)) for logits in (certain, one_code, uncertain)]
    np.testing.assert_allclose(found, [-math.log(4), 0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_survives_decoding_and_encoding_its_vector(kind):
    quantize = make(kind)
    codebook_KD = quantize.codebook()
    assert torch.equal(quantize.lookup(torch.arange(len(codebook_KD))[None, None])[0, :, 0].T, codebook_KD)
    if kind == "ibq":  # the largest dot product is not always that of the vector itself
        codebook_KD = F.normalize(codebook_KD, dim=1)
        quantize.embedding.weight.data.copy_(codebook_KD)
    if kind == "fsq":  # latents are bounded by a tanh before they are rounded
        return
    assert quantize.codes(codebook_KD.T[None, :, None]).flatten().tolist() == list(range(len(codebook_KD)))


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_lowest_at_the_code_that_matches(kind):
    quantize = make(kind)
    with torch.no_grad():
        z_ND, codebook_KD = rows(latents(KINDS[kind]["embed_dim"])), quantize.codebook()
        nearest = [int(quantize.distances(z_D, codebook_KD).argmin()) for z_D in z_ND]
        assert nearest == quantize.match(z_ND, codebook_KD).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_coarser_scales_follow_from_the_codes(kind):
    model = build_model(ModelConfig(quantizer=kind, **{**TINY, **KINDS[kind]})).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        codes_Bhw, mean_B11 = model.encode_scales(x, (1,))
        vectors_KD = model.quantize.codebook().double()
        mean_BD = vectors_KD[codes_Bhw].mean((1, 2))
    expected = (mean_BD @ vectors_KD.T).argmax(1) if kind == "ibq" else torch.cdist(mean_BD, vectors_KD).argmin(1)
    assert mean_B11.flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_resumes_exactly_and_tokenizes(kind, splits, tmp_path):
    entropy = 0.1 if kind in ("lfq", "bsq", "ibq") else 0.0
    config = TrainConfig(
        model=ModelConfig(quantizer=kind, **{**TINY, **KINDS[kind]}),
        loss=LossConfig(perceptual="none", disc_weight=0, entropy_weight=entropy), batch_size=2, steps=4,
        eval_every=100, eval_images=4, checkpoint_every=2, precision="float32", device="cpu",
    )  # fmt: skip
    train_tokenizer(config, splits, tmp_path / "whole")
    train_tokenizer(dataclasses.replace(config, steps=2), splits, tmp_path / "parts")
    train_tokenizer(config, splits, tmp_path / "parts")
    first, second = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    assert first == second
    tokenizer = Tokenizer.load(tmp_path / "whole", device="cpu")
    pictures = [splits["val"].read_good(i, 32).image for i in range(3)]
    codes_NHW = tokenizer.encode(pictures)
    assert codes_NHW.dtype == np.uint16
    assert codes_NHW.max() < tokenizer.config.codebook_size
    assert tokenizer.decode(codes_NHW).shape == (3, 32, 32, 3)


def test_a_step_reduces_the_loss_of_a_codebook_of_262144_codes():
    model = ModelConfig(quantizer="lfq", embed_dim=18, codebook_size=2**18, **TINY)
    loss = LossConfig(perceptual="none", disc_weight=0, entropy_weight=0.01, entropy_temperature=1.0)
    trainer = Trainer(TrainConfig(model=model, loss=loss, batch_size=2, steps=20, learning_rate=1e-3, device="cpu"))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = [trainer.step(x)["reconstruction"] for _ in range(12)]
    assert losses[-1] < losses[0]
    codes_Bhw = trainer.model.encode(x)
    assert 65_536 <= int(codes_Bhw.max()) < 2**18


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer": "fsq"}, r"levels is \(\): give 3 … 1024 for each channel"),
        ({"quantizer": "fsq", "levels": (8, 2)}, r"levels is \(8, 2\): give 3"),
        ({"levels": (8, 5)}, r"levels is \(8, 5\): only fsq has levels"),
        ({"quantizer": "fsq", "levels": (8, 5, 5, 5)}, r"are 1,000 codes: choose \(4, 1000\)"),
        ({"quantizer": "lfq", "codebook_size": 4096}, r"lfq has a bit per channel: choose \(12, 4096\)"),
        ({"quantizer": "bsq", "codebook_size": 1000, "embed_dim": 9}, r"choose \(9, 512\)"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused_with_those_that_fit(fields, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    ("kind", "loss", "message"),
    [
        ("fsq", {"entropy_weight": 0.1}, "loss.entropy_weight is 0.1: fsq has no entropy term"),
        ("lfq", {"codebook_decay": 0.9}, "loss.codebook_decay is 0.9: lfq has no codebook of moving averages"),
        ("ibq", {"quantizer_gradient": "rotation"}, "quantizer_gradient is 'rotation': ibq has a gradient of its own"),
    ],
)
def test_terms_that_do_not_apply_are_refused(kind, loss, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(model=ModelConfig(quantizer=kind, **KINDS[kind]), loss=LossConfig(**loss))


def test_restarts_are_refused_where_codes_are_fixed():
    with pytest.raises(InputError, match="restart_every is 5: fsq has no codes to restart: choose 0"):
        TrainConfig(model=ModelConfig(quantizer="fsq", **KINDS["fsq"]), restart_every=5)
