"""The VQGAN: architecture, quantiser, losses, training, resuming, the tokenizer interface."""

import copy
import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagepriors.demo.layouts import write_demo_data
from imagepriors.presets import load_preset, preset_names
from runkit.checkpoints import checkpoints
from runkit.configs import from_dict
from runkit.signals import StoppedError
from vqgan.checkpoint import fingerprint, load_model, save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.cpu_kernels import GroupNorm
from vqgan.data import open_splits
from vqgan.discriminators import PatchDiscriminator
from vqgan.errors import InputError
from vqgan.losses import EfficientNetLite0Loss, LpipsLoss, adaptive_weight, discriminator_loss
from vqgan.metrics import TokenizerMetrics
from vqgan.model import VQGAN, build_model
from vqgan.palette import fit_palette
from vqgan.quantize import VectorQuantizer, pooled_codes
from vqgan.tokenizer import Tokenizer
from vqgan.train import train_tokenizer
from vqgan.trainer import NonFiniteLossError, Trainer

TINY = ModelConfig(
    resolution=32, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(8,), z_channels=16, embed_dim=8,
    codebook_size=32,
)  # fmt: skip


def tiny_config(**changes):
    defaults = {
        "model": TINY,
        "loss": LossConfig(perceptual="none", disc_start=2, disc_ramp=2, disc_ch=8, disc_layers=1),
        "batch_size": 4, "steps": 6, "learning_rate": 1e-3, "precision": "float32", "device": "cpu",
        "eval_every": 100, "eval_images": 4, "checkpoint_every": 3, "restart_every": 2,
    }  # fmt: skip
    return TrainConfig(**{**defaults, **changes})


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=4, size=32)
    return open_splits("demo", out)


def test_paper_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = VQGAN(ModelConfig())
    assert sum(p.numel() for p in model.parameters()) == 72_141_699  # taming-transformers f16/1024
    keys = model.state_dict().keys()
    for key in (
        "encoder.down.4.attn.1.proj_out.weight", "encoder.down.0.downsample.conv.weight",
        "decoder.up.4.block.2.conv2.bias",
        "encoder.down.2.block.0.nin_shortcut.weight", "decoder.mid.attn_1.q.weight", "quantize.embedding.weight",
        "decoder.up.1.upsample.conv.weight", "quant_conv.weight", "post_quant_conv.bias",
    ):  # fmt: skip
        assert key in keys


def make_quantizer(size, dim, quantizer="vq", **loss):
    config = dataclasses.replace(TINY, codebook_size=size, embed_dim=dim, quantizer=quantizer)
    return VectorQuantizer(config, LossConfig(**loss))


def test_quantiser_agrees_with_brute_force_and_passes_the_gradient_straight_through():
    torch.manual_seed(0)
    quantizer = make_quantizer(16, 4)
    torch.nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    q, loss, codes = quantizer(z)
    rows = z.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = torch.cdist(rows, quantizer.embedding.weight.detach()).argmin(1)
    assert torch.equal(codes.flatten(), nearest)
    q.sum().backward(retain_graph=True)
    assert torch.equal(z.grad, torch.ones_like(z))
    z.grad = None
    loss.backward()
    gap = z.detach() - q.detach()
    torch.testing.assert_close(z.grad, 0.25 * 2 * gap / gap.numel())  # β on the commitment term


def test_unused_codes_restart_at_encoder_outputs():
    quantizer = make_quantizer(8, 4)
    quantizer.used_K[:3] = True
    before = quantizer.embedding.weight[:3].clone()
    z = torch.randn(5, 4, 1, 1)
    assert quantizer.restart_unused(z) == 5
    assert torch.equal(quantizer.embedding.weight[:3], before)
    assert (torch.cdist(quantizer.embedding.weight[3:].detach(), z.flatten(1)).min(1).values < 1e-3).all()
    assert not quantizer.used_K.any()


def test_l2_codes_compare_and_decode_on_the_unit_sphere():
    torch.manual_seed(0)
    quantizer = make_quantizer(16, 4, "l2")
    z = torch.randn(2, 4, 3, 3)
    q, _, codes = quantizer(z)
    rows = torch.nn.functional.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = (rows @ torch.nn.functional.normalize(quantizer.embedding.weight, dim=1).T).argmax(1)
    assert torch.equal(codes.flatten(), nearest)
    torch.testing.assert_close(q.norm(dim=1), torch.ones(2, 3, 3))
    assert torch.equal(quantizer.codes(100 * z), codes)


def test_ema_codes_move_to_the_mean_of_their_latents():
    quantizer = make_quantizer(2, 1, codebook_decay=0.5)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    z = torch.tensor([-3.0, -5.0, 4.0]).view(3, 1, 1, 1)
    for _ in range(30):
        before = quantizer.embedding.weight.clone()
        for part in (z[:1], z[1:]):  # of an accumulated batch
            quantizer(part)
        assert torch.equal(quantizer.embedding.weight, before)
        quantizer.update_ema()
    torch.testing.assert_close(quantizer.embedding.weight.flatten(), torch.tensor([-4.0, 4.0]))
    _, loss, _ = quantizer(z.requires_grad_())
    assert not quantizer.embedding.weight.requires_grad
    torch.testing.assert_close(loss, torch.tensor(0.25 * 2 / 3))  # the commitment term alone
    quantizer.eval()
    quantizer(z + 10)
    torch.testing.assert_close(quantizer.embedding.weight.flatten(), torch.tensor([-4.0, 4.0]))


def test_swapped_beta_weighs_the_other_term():
    z = torch.randn(1, 4, 2, 2)
    grads = []
    for swap in (False, True):
        torch.manual_seed(0)
        quantizer = make_quantizer(8, 4, swap_beta=swap)
        quantizer(z)[1].backward()
        grads.append(quantizer.embedding.weight.grad)
    torch.testing.assert_close(grads[1], 0.25 * grads[0])


def test_large_codebooks_are_searched_in_parts(monkeypatch):
    quantizer = make_quantizer(64, 4)
    z = torch.randn(2, 4, 9, 9)
    whole = quantizer.codes(z)
    monkeypatch.setattr("vqgan.quantize._DISTANCES", 640)
    assert torch.equal(quantizer.codes(z), whole)


def test_offline_perceptual_loss_ranks_distortions_and_spares_the_target():
    loss = EfficientNetLite0Loss()
    torch.manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8), 64, mode="bicubic") * 2 - 1
    noise = torch.randn_like(target)
    small, large = (loss(target + scale * noise, target) for scale in (0.05, 0.3))
    assert loss(target, target) < 1e-6
    assert 0 < small < large
    output, wanted = (target + 0.1).requires_grad_(), target.clone().requires_grad_()
    loss(output, wanted).backward()
    assert output.grad.abs().sum() > 0
    assert wanted.grad is None


def test_missing_lpips_trunk_is_named(tmp_path):
    with pytest.raises(InputError, match=r"vgg16-397923af\.pth"):
        LpipsLoss("vgg", str(tmp_path / "vgg16-397923af.pth"))


def test_lpips_runs_from_a_local_trunk(tmp_path):
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "trunk.pth")
    loss = LpipsLoss("squeeze", str(tmp_path / "trunk.pth"))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert loss(x, x) == 0
    assert loss(x, -x) > 0


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    assert math.isclose(float(adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.5]))), 10.0, rel_tol=1e-3)
    assert float(adaptive_weight(torch.tensor([3e9]), torch.tensor([0.0]))) == 1e4


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_learns_to_tell_noise_from_flat_pictures(kind):
    torch.manual_seed(0)
    disc = PatchDiscriminator(3, 8, 2)
    optimizer = torch.optim.Adam(disc.parameters(), 1e-3)
    first = None
    for _ in range(40):
        loss = discriminator_loss(kind, disc(torch.zeros(4, 3, 32, 32)), disc(torch.randn(4, 3, 32, 32)))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.6 * first


@pytest.mark.parametrize(("modality", "n_labels"), [("rgb", 0), ("segmentation", 8), ("depth", 0), ("pose", 0)])
def test_every_modality_trains_and_tokenizes(splits, tmp_path, modality, n_labels):
    model = dataclasses.replace(TINY, modality=modality, n_labels=n_labels)
    summary = train_tokenizer(tiny_config(model=model, steps=2), splits, tmp_path)
    assert sum(summary["code_counts"]) == 4 * 64
    assert ("val_miou" if modality == "segmentation" else "val_psnr_db") in summary
    tokenizer = Tokenizer.load(tmp_path)
    wanted = () if modality == "rgb" else (modality,)
    pictures = [splits["val"].read(i, 32, conditions=wanted).picture(modality) for i in range(3)]
    codes = tokenizer.encode(pictures)
    assert codes.dtype == np.uint16
    assert codes.shape == (3, 8, 8)
    assert tokenizer.decode(codes).shape == np.stack(pictures).shape
    many = np.resize(codes, (130, *codes.shape[1:]))  # decoded in parts, whatever memory there is
    np.testing.assert_allclose(tokenizer.decode(many)[-1].astype(int), tokenizer.decode(many[-1:])[0], atol=1)


@pytest.mark.parametrize("quantizer", ["vq", "l2", "gumbel", "palette"])
def test_continuous_scales_are_the_nearest_codes_of_block_means(quantizer):
    """Against loops: mean of each block of the latent, then the code at the smallest distance (or largest logit)."""
    torch.manual_seed(0)
    extra = {"embed_dim": 3, "resolution": 8, "ch_mult": (1,)} if quantizer == "palette" else {}
    model = build_model(dataclasses.replace(TINY, quantizer=quantizer, **extra)).eval()
    x = torch.rand(2, 3, model.config.resolution, model.config.resolution) * 2 - 1
    with torch.inference_mode():
        codes_Bhw, *scales = model.encode_scales(x, (1, 2, 4), "continuous")
        latent = x if quantizer == "palette" else model.latent(x)
        assert torch.equal(codes_Bhw, model.encode(x))
        for side, scale_BSS in zip((1, 2, 4), scales, strict=True):
            step = latent.shape[2] // side
            assert scale_BSS.shape == (2, side, side)
            for b, row, column in np.ndindex(2, side, side):
                block = latent[b, :, row * step : (row + 1) * step, column * step : (column + 1) * step]
                z_D = block.double().mean((1, 2))
                if quantizer == "gumbel":
                    score_K = model.quantize.proj.weight.double()[:, :, 0, 0] @ z_D + model.quantize.proj.bias.double()
                else:
                    codebook_KD = model.quantize.lookup(torch.arange(model.config.codebook_size)[None, None])[0, :, 0].T
                    z_D = z_D / z_D.norm() if quantizer == "l2" else z_D
                    score_K = -(codebook_KD.double() - z_D).square().sum(1)
                assert score_K.max() - score_K[scale_BSS[b, row, column]] < 1e-6


def naive_scale(codes_HW, codebook_KD, side):
    """The code at the smallest distance to each block's mean code vector, in loops."""
    step = len(codes_HW) // side
    found = np.empty((side, side), np.int64)
    for row, column in np.ndindex(side, side):
        block = codes_HW[row * step : (row + 1) * step, column * step : (column + 1) * step]
        mean_D = sum(codebook_KD[code] for code in block.ravel()) / block.size
        found[row, column] = min(
            range(len(codebook_KD)), key=lambda code: float(((codebook_KD[code] - mean_D) ** 2).sum())
        )
    return found


@pytest.mark.parametrize("quantizer", ["vq", "l2", "gumbel", "palette"])
def test_quantised_scales_follow_from_codes_and_codebook_alone(quantizer):
    torch.manual_seed(0)
    extra = {"embed_dim": 3, "resolution": 8, "ch_mult": (1,)} if quantizer == "palette" else {}
    model = build_model(dataclasses.replace(TINY, quantizer=quantizer, **extra)).eval()
    x = torch.rand(2, 3, model.config.resolution, model.config.resolution) * 2 - 1
    with torch.inference_mode():
        codes_Bhw, *scales = model.encode_scales(x, (1, 2, 4))
        size = model.config.codebook_size
        codebook_KD = model.quantize.lookup(torch.arange(size)[None, None])[0, :, 0].T.double().numpy()
        assert torch.equal(codes_Bhw, model.encode(x))
        for side, scale_BSS in zip((1, 2, 4), scales, strict=True):
            naive_BSS = [naive_scale(codes.numpy(), codebook_KD, side) for codes in codes_Bhw]
            np.testing.assert_array_equal(scale_BSS, naive_BSS)
            again = pooled_codes(codes_Bhw[1:], model.quantize, side)
            assert torch.equal(again, scale_BSS[1:])


def test_training_lowers_the_loss(splits, tmp_path):
    train_tokenizer(
        tiny_config(steps=40, restart_every=0, mirror=False, loss=LossConfig(perceptual="none", disc_weight=0)),
        splits,
        tmp_path,
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["reconstruction"] for line in lines if "reconstruction" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert list((tmp_path / "reconstructions").glob("*.png"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "optimizer": "muon", "ema_decay": 0.9, "accumulate": 2, "clip_grad": 1.0, "crop_scale": 0.5,
            "loss": LossConfig(perceptual="none", codebook_decay=0.9, disc_start=2, disc_ch=8, disc_layers=1),
        },
    ],
    ids=["plain", "everything"],
)  # fmt: skip
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(splits, tmp_path, changes):
    whole = tiny_config(checkpoint_every=4, **changes)
    train_tokenizer(whole, splits, tmp_path / "whole")
    train_tokenizer(whole, splits, tmp_path / "parts")
    # What a kill at step 5 leaves: the checkpoint of step 4 alone, and a log that runs past it.
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000006")
    (tmp_path / "parts" / "model.safetensors").unlink()
    train_tokenizer(whole, splits, tmp_path / "parts")
    assert (tmp_path / "whole" / "best" / "model.safetensors").is_file()
    assert list((tmp_path / "parts" / "tensorboard").iterdir())
    for name, value in load_model(tmp_path / "whole")[1].state_dict().items():
        assert torch.equal(value, load_model(tmp_path / "parts")[1].state_dict()[name]), name


@pytest.mark.slow
def test_run_killed_at_a_random_moment_loses_only_the_steps_after_its_last_checkpoint(splits, tmp_path):
    every, config = 3, tiny_config(steps=18, checkpoint_every=3)

    def start(out):
        process = multiprocessing.get_context("spawn").Process(target=train_tokenizer, args=(config, splits, out))
        process.start()
        return process

    process = start(tmp_path / "killed")
    while process.is_alive() and not checkpoints(tmp_path / "killed"):
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    process.kill()
    process.join()
    log = tmp_path / "killed" / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []  # the first line may still have been to come
    logged = max((json.loads(line)["step"] for line in lines), default=0)
    with log.open("a") as file:
        file.write('{"step": 1, "lo')  # what a power cut may leave
    saved = int(checkpoints(tmp_path / "killed")[-1].name.removeprefix("step-"))
    assert logged - saved <= every  # the step after a checkpoint begins only when it is whole
    for out in ("killed", "whole"):
        process = start(tmp_path / out)
        process.join()
        assert process.exitcode == 0
    killed, whole = (load_model(tmp_path / out)[1].state_dict() for out in ("killed", "whole"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert summary["steps"] == 18


def test_one_step_follows_the_weighted_sum_of_the_terms():
    """The step differentiates its terms one by one; here it is compared with autograd on their written-out sum."""
    config = tiny_config(loss=LossConfig(perceptual="none", disc_start=0, disc_ramp=1, disc_ch=8, disc_layers=1))
    trainer, reference = Trainer(config), Trainer(config)
    found = {}
    trainer.optimizer.step = lambda: found.update({k: p.grad.clone() for k, p in trainer.model.named_parameters()})
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    trainer.step(x)

    output, quantization, _ = reference.model(x)
    loss = (output - x).abs().mean()
    adversarial = -reference.disc(output).mean()
    last = reference.model.decoder.conv_out.weight
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (loss, adversarial)]
    weight = norms[0] / (norms[1] + 1e-4)
    (loss + config.loss.disc_weight * weight.detach() * adversarial + quantization).backward()
    for name, parameter in reference.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_weights_are_averaged_over_the_steps():
    trainer = Trainer(tiny_config(ema_decay=0.999))
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    expected = trainer.model.decoder.conv_out.weight.detach().clone()
    for step in range(1, 4):
        trainer.step(x)
        expected.lerp_(trainer.model.decoder.conv_out.weight.detach(), 1 - step / (10 + step))
    torch.testing.assert_close(trainer.shipped.decoder.conv_out.weight, expected)
    assert all(parameter.grad_fn is None for parameter in trainer.shipped.parameters())


def test_a_mask_with_an_unknown_label_loses_only_its_own_sample(tmp_path, caplog):
    for split, count in (("train", 12), ("val", 3)):
        for number in range(count):
            for folder, mask in ((split, False), (f"{split}_segmentation", True)):
                (tmp_path / folder).mkdir(exist_ok=True)
                label = 255 if number == 1 else number % 3
                picture = Image.new("L" if mask else "RGB", (32, 32), label if mask else (number, 0, 0))
                picture.save(tmp_path / folder / f"{number}.png")
    masks = dataclasses.replace(TINY, modality="segmentation", n_labels=3)
    train_tokenizer(tiny_config(model=masks, steps=3), open_splits("folder", tmp_path), tmp_path / "run")
    assert "mask holds label 255, wanted 0 … 2" in caplog.text
    few = dataclasses.replace(masks, n_labels=2)
    split = open_splits("folder", tmp_path)["train"]
    only = split.subset([split.keys.index(key) for key in ("2", "5", "8", "11")])  # whose masks are all label 2
    with pytest.raises(InputError, match="mask holds label 2, wanted 0 … 1"):
        train_tokenizer(tiny_config(model=few, steps=3), {"train": only, "val": only}, tmp_path / "few")


MASKS = dataclasses.replace(TINY, modality="segmentation", n_labels=3)


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (MASKS, {}, "loss.perceptual is 'lpips-vgg': perceptual networks do not apply to masks; choose 'none'"),
        (MASKS, {"perceptual": "efficientnet-lite0"}, "loss.perceptual is 'efficientnet-lite0'"),
        (MASKS, {"perceptual": "none", "l2_weight": 2.0}, "loss.l2_weight is 2.0: masks are compared by cross-entropy"),
        (TINY, {"perceptual": "none", "trunk": "vgg.pth"}, "loss.trunk is 'vgg.pth': only LPIPS has a trunk"),
        (TINY, {"swap_beta": True, "codebook_decay": 0.9}, "loss.swap_beta is True: no term pulls the codes"),
    ],
)
def test_a_loss_that_cannot_apply_is_refused_but_in_what_was_trained_without_it(tmp_path, model, loss, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(model=model, loss=LossConfig(**loss))
    whole = TrainConfig(model=model, loss=LossConfig(perceptual="none"))
    save_model(tmp_path, whole, VQGAN(model))
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "loss": loss}))  # as an earlier version saved it
    pictures = np.zeros((1, 32, 32) if model is MASKS else (1, 32, 32, 3), np.uint8)
    assert Tokenizer.load(tmp_path, device="cpu").encode(pictures).shape == (1, 8, 8)


def test_depth_is_trained_as_three_equal_channels_and_against_a_discriminator():
    depth = dataclasses.replace(TINY, modality="depth")
    loss = LossConfig(perceptual="efficientnet-lite0", disc_start=0, disc_ramp=1, disc_ch=8, disc_layers=1)
    trainer = Trainer(tiny_config(model=depth, loss=loss))
    x = torch.rand(4, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        reconstruction = trainer.model(x)[0]
        pictures = [torch.cat([part] * 3, 1) for part in (reconstruction, x)]
        expected = EfficientNetLite0Loss()(*pictures)
    figures = trainer.step(x)
    assert figures["perceptual"] == pytest.approx(float(expected), rel=1e-3)
    assert figures["discriminator"] > 0
    assert figures["adaptive_weight"] > 0


def test_masks_are_judged_as_probabilities():
    loss = LossConfig(perceptual="none", disc_start=0, disc_ramp=1, disc_ch=8, disc_layers=1)
    trainer = Trainer(tiny_config(model=MASKS, loss=loss))
    seen = []
    trainer.disc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    labels = torch.randint(3, (4, 32, 32))
    trainer.step(torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float())
    assert all(x.min() >= 0 for x in seen)
    torch.testing.assert_close(seen[1].sum(1), torch.ones(4, 32, 32))


@pytest.mark.slow
def test_compiled_steps_agree_with_plain_ones():
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    plain, compiled = (Trainer(tiny_config(compile=flag)) for flag in (False, True))
    for _ in range(3):  # the discriminator starts in the third
        a, b = plain.step(x), compiled.step(x)
        assert a.keys() == b.keys()
        assert abs(a["loss"] - b["loss"]) < 1e-2
    assert plain.model.state_dict().keys() == compiled.model.state_dict().keys()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_continues(number, splits, tmp_path, default_handlers):
    config = tiny_config(steps=400, checkpoint_every=1000)
    timer = threading.Timer(1.5, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(StoppedError, match="the same command resumes there"):
        train_tokenizer(config, splits, tmp_path)
    (saved,) = checkpoints(tmp_path)
    step = int(saved.name.removeprefix("step-"))
    assert 0 < step < 400
    summary = train_tokenizer(dataclasses.replace(config, steps=step + 1), splits, tmp_path)
    assert summary["steps"] == step + 1


def test_palette_gives_one_code_per_pixel(splits, tmp_path):
    fit_palette(splits["train"], tmp_path, colours=64, resolution=16)
    tokenizer = Tokenizer.load(tmp_path)
    picture = splits["val"].read(0, 16).image
    codes = tokenizer.encode([picture])
    assert codes.shape == (1, 16, 16)
    colours = tokenizer.decode(np.arange(64).reshape(1, 8, 8)).reshape(64, 3).astype(float)
    brute = np.square(picture.reshape(-1, 1, 3) - colours).sum(-1).argmin(1)
    assert (codes.ravel() == brute).mean() > 0.99  # ties aside: the decoded colours are rounded
    assert np.abs(tokenizer.decode(codes)[0].astype(int) - picture).mean() < 12
    with pytest.raises(InputError, match="fewer than"):
        fit_palette(splits["train"], tmp_path, colours=60_000, resolution=8)


def test_checkpoints_rotate_and_other_configs_are_refused(splits, tmp_path):
    config = tiny_config(checkpoint_every=1, keep_checkpoints=2)
    train_tokenizer(config, splits, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005", "step-00000006"]
    with pytest.raises(InputError, match="batch_size was 4 and is 8 now"):
        train_tokenizer(dataclasses.replace(config, batch_size=8), splits, tmp_path)
    with pytest.raises(InputError, match=r"loss.beta was 0.25 and is 0.5 now"):
        train_tokenizer(dataclasses.replace(config, loss=dataclasses.replace(config.loss, beta=0.5)), splits, tmp_path)


@pytest.mark.parametrize("codebook_decay", [0.0, 0.9])
def test_non_finite_loss_stops_with_its_step_and_keeps_the_evidence(splits, tmp_path, codebook_decay):
    trainer = Trainer(tiny_config(loss=LossConfig(perceptual="none", disc_weight=0, codebook_decay=codebook_decay)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 0 \(loss, reconstruction"):
        trainer.step(torch.full((4, 3, 32, 32), float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    with pytest.raises(NonFiniteLossError, match="weights are in"):
        train_tokenizer(tiny_config(learning_rate=1e30), splits, tmp_path)
    (evidence,) = tmp_path.glob("non-finite-step-*/rank-0")
    assert load_file(evidence / "batch.safetensors")["batch"].shape == (4, 3, 32, 32)
    assert (evidence / "model.safetensors").is_file()


def test_fingerprint_follows_weights_and_architecture(tmp_path):
    torch.manual_seed(0)
    model = VQGAN(TINY)
    save_model(tmp_path / "a", tiny_config(), model)
    save_model(tmp_path / "b", tiny_config(steps=7), model)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    with torch.no_grad():
        model.quantize.embedding.weight[0, 0] += 1
    save_model(tmp_path / "b", tiny_config(), model)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_wrong_weights_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    save_model(tmp_path, tiny_config(model=dataclasses.replace(TINY, codebook_size=64)), VQGAN(TINY))
    with pytest.raises(InputError, match="does not fit"):
        Tokenizer.load(tmp_path)


def test_decoding_refuses_foreign_codes(tmp_path):
    save_model(tmp_path, tiny_config(), VQGAN(TINY))
    with pytest.raises(InputError, match="code 32 is not in the codebook of 32"):
        Tokenizer.load(tmp_path, device="cpu").decode(np.full((1, 8, 8), 32))


def test_metrics_match_their_definitions():
    metrics = TokenizerMetrics("rgb", 4)
    target = np.zeros((1, 4, 4, 3), np.uint8)
    metrics.add(target + 5, target, np.array([[[0, 1], [1, 1]]]))
    result = metrics.result()
    assert math.isclose(result["val_psnr_db"], 10 * math.log10(255**2 / 25))
    assert result["val_usage"] == 0.5
    assert math.isclose(result["val_perplexity"], math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))
    masks = TokenizerMetrics("segmentation", 4, 3)
    masks.add(np.array([[[1, 1], [2, 2]]], np.uint8), np.array([[[1, 2], [2, 2]]], np.uint8), np.zeros((1, 1, 1), int))
    result = masks.result()
    assert result["val_pixel_accuracy"] == 0.75
    assert math.isclose(result["val_miou"], (1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 2**25}, "codebook_size is 33554432"),
        ({"ch": 33}, "multiple of 8"),
        ({"resolution": 33}, "resolution is 33"),
        ({"modality": "segmentation"}, "n_labels is 0"),
        ({"ch": 136}, r"ch · ch_mult is 136"),
    ],
)
def test_bad_configs_say_field_value_and_remedy(changes, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"warmup_steps": -10}, "warmup_steps is -10"),
        ({"loss": {"disc_ch": 30}}, "disc_ch is 30"),
        ({"loss": {"disc_layers": 4, "disc_start": 2}}, "disc_layers is 4: too many for pictures of 32"),
    ],
)
def test_bad_runs_are_refused_before_they_start(changes, words):
    loss = changes.pop("loss", {})
    with pytest.raises(InputError, match=words):
        Trainer(tiny_config(loss=LossConfig(perceptual="none", **loss), **changes))


def test_unknown_fields_are_refused():
    with pytest.raises(InputError, match="stepz"):
        from_dict(TrainConfig, {"stepz": 3}, InputError)


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.startswith(("gpt2-", "tiny"))])
def test_presets_parse(name):
    assert isinstance(from_dict(TrainConfig, load_preset(name, "vqgan")), TrainConfig)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_groupnorm_in_bfloat16_is_as_exact_as_pytorchs(mean):
    torch.manual_seed(0)
    ours = GroupNorm(4, 16)
    torch.nn.init.normal_(ours.weight)
    x = (torch.randn(2, 16, 24, 20) + mean).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn_like(x)

    def gradients(norm, x):
        y = norm(x)
        return [y, *torch.autograd.grad(y, [x, norm.weight, norm.bias], upstream.to(x.dtype))]

    theirs = torch.nn.GroupNorm(4, 16)
    theirs.load_state_dict(ours.state_dict())
    exact = gradients(copy.deepcopy(theirs).double(), x.detach().double().requires_grad_())
    for mine, native, truth in zip(gradients(ours, x), gradients(theirs, x), exact, strict=True):
        assert mine.dtype == native.dtype
        error, native_error = ((part.double() - truth).norm() / truth.norm() for part in (mine, native))
        assert error < max(1.5 * native_error, 0.004)  # bfloat16 rounds by up to 0.004
