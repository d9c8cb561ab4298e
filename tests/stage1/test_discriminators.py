"""Discriminators: their networks against references, and each in training."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from imagepriors.demo.layouts import write_demo_data
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.discriminators import (
    DinoDiscriminator,
    StyleGanDiscriminator,
    _blurred_half,
    _spread_of_batch,
    dino_features,
    load_dino,
)
from vqgan.errors import InputError
from vqgan.train import train_tokenizer
from vqgan.trainer import Trainer

TINY = ModelConfig(
    resolution=32, ch=16, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=16, embed_dim=8,
    codebook_size=32,
)  # fmt: skip


def config(**loss):
    fields = {"perceptual": "none", "disc_start": 1, "disc_ramp": 1, "disc_ch": 8, "disc_layers": 1, **loss}
    return TrainConfig(
        model=TINY, loss=LossConfig(**fields), batch_size=4, steps=4, precision="float32", device="cpu",
        eval_every=100, eval_images=2, checkpoint_every=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A random DINO ViT-S/16: its file under the published names, and the model of transformers with its weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.ViTModel(
        transformers.ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                               layer_norm_eps=1e-6), add_pooling_layer=False,
    ).eval()  # fmt: skip
    state = theirs.state_dict()
    published = {
        "cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"],
        "norm.weight": state["layernorm.weight"], "norm.bias": state["layernorm.bias"],
    }  # fmt: skip
    for kind in ("weight", "bias"):
        published[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
    blocks = list(theirs.encoder.layer) if hasattr(theirs, "encoder") else list(theirs.layers)
    for i, block in enumerate(blocks):
        modules = dict(block.named_modules())

        def part(*names, modules=modules):
            return next(module for name, module in modules.items() if name.endswith(names))

        parts = {
            "norm1": part("layernorm_before"), "norm2": part("layernorm_after"),
            "attn.proj": part("attention.output.dense", "o_proj"), "mlp.fc1": part("intermediate.dense", "fc1"),
            "mlp.fc2": next(m for n, m in modules.items() if n in ("output.dense", "mlp.fc2")),
        }  # fmt: skip
        for kind in ("weight", "bias"):
            qkv = [getattr(part(long, short), kind) for long, short in
                   (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))]  # fmt: skip
            published[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
            published |= {f"blocks.{i}.{name}.{kind}": getattr(module, kind) for name, module in parts.items()}
    path = tmp_path_factory.mktemp("dino") / "dino_deitsmall16_pretrain.pth"
    torch.save({name: value.detach().clone() for name, value in published.items()}, path)
    return path, theirs


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=4, size=32)
    return open_splits("demo", out)


def test_dino_has_the_features_of_transformers(dino):
    path, theirs = dino
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = list(dino_features(load_dino(path), x, (2, 11)))
        hidden = theirs(x, output_hidden_states=True).hidden_states
        after_12 = hidden[12]
    expected = [hidden[3][:, 1:] + hidden[3][:, :1], after_12[:, 1:] + after_12[:, :1]]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-3)


def test_dino_keeps_its_trunk_out_of_the_state_and_passes_gradients_to_the_picture(dino):
    disc = DinoDiscriminator(load_dino(dino[0]))
    x = torch.rand(2, 1, 32, 32).requires_grad_()  # a depth map
    logits = disc(x)
    assert logits.shape == (2, 4, 196)
    logits.mean().backward()
    assert x.grad.abs().sum() > 0
    assert not any("encoder" in name for name in disc.state_dict())
    assert all(parameter.grad is not None for parameter in disc.parameters())


def test_the_blur_keeps_means_and_removes_the_highest_frequency():
    flat, board = torch.full((1, 2, 8, 8), 3.0), torch.ones(1, 2, 8, 8)
    board[..., ::2] = -1
    torch.testing.assert_close(_blurred_half(flat), torch.full((1, 2, 4, 4), 3.0))
    assert _blurred_half(board)[..., 1:-1].abs().max() < 1e-6


def test_the_spread_of_a_batch_is_that_of_groups_of_four():
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    spread = _spread_of_batch(x)
    for start in (0, 1):
        expected = x[start::2].std(0, unbiased=False).mean()
        torch.testing.assert_close(spread[start::2], expected.expand(4, 1, 2, 2))
    assert _spread_of_batch(x[:1]).abs().max() < 1e-3


def test_stylegan_learns_to_tell_two_kinds_of_pictures_apart():
    torch.manual_seed(0)
    disc = StyleGanDiscriminator(3, 8, levels=3)
    optimizer = torch.optim.Adam(disc.parameters(), 2e-3)
    real, fake = torch.rand(4, 3, 32, 32), F.avg_pool2d(torch.rand(4, 3, 32, 32), 3, 1, 1)
    for _ in range(20):
        optimizer.zero_grad()
        (F.relu(1 - disc(real)).mean() + F.relu(1 + disc(fake)).mean()).backward()
        optimizer.step()
    assert disc(real).min() > disc(fake).max()


@pytest.mark.parametrize("kind", ["stylegan", pytest.param("dino", marks=pytest.mark.slow)])
def test_each_trains_and_resumes_bit_for_bit(kind, splits, tmp_path, request):
    trunk = {"disc_trunk": str(request.getfixturevalue("dino")[0])} if kind == "dino" else {}
    whole = config(discriminator=kind, **trunk)
    train_tokenizer(whole, splits, tmp_path / "whole")
    train_tokenizer(dataclasses.replace(whole, steps=2), splits, tmp_path / "parts")
    train_tokenizer(whole, splits, tmp_path / "parts")
    first, second = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    assert first == second


def test_a_side_that_stylegan_cannot_halve_is_refused():
    odd = dataclasses.replace(config(discriminator="stylegan"), model=dataclasses.replace(TINY, resolution=48))
    with pytest.raises(InputError, match="requires a side of 8, 16, 32, 64 … pixels: 48 is none"):
        Trainer(odd)


def test_what_dino_requires_is_said(tmp_path):
    with pytest.raises(InputError, match=r"disc_trunk is '': dino requires the path of dino_deitsmall16_pretrain\.pth"):
        LossConfig(discriminator="dino")
    with pytest.raises(InputError, match="does not exist"):
        Trainer(config(discriminator="dino", disc_trunk=str(tmp_path / "missing.pth")))
    torch.save({"blocks.0.norm1.weight": torch.ones(384)}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part\.pth does not hold DINO's ViT-S/16: "):
        Trainer(config(discriminator="dino", disc_trunk=str(tmp_path / "part.pth")))
    with pytest.raises(InputError, match=r"loss\.disc_trunk is 'a': only the discriminator dino has a trunk"):
        config(disc_trunk="a")
    masks = ModelConfig(modality="segmentation", n_labels=5)
    with pytest.raises(InputError, match=r"loss\.discriminator is 'dino': dino does not apply to masks"):
        TrainConfig(model=masks, loss=LossConfig(perceptual="none", discriminator="dino", disc_trunk="a"))
