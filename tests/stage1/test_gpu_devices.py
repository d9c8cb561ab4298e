"""The code of a GPU on a pretended one: no operation mixes devices, no step waits without need, results are a CPU's."""

import dataclasses

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, pretend_gpu

from imagepriors.demo.layouts import write_demo_data
from runkit.checkpoints import save_checkpoint
from vqgan import discriminators, losses
from vqgan.checkpoint import run_folder
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.losses import LpipsLoss
from vqgan.modalities import to_input
from vqgan.model import build_model
from vqgan.plan import plan_training
from vqgan.tokenizer import Tokenizer
from vqgan.train import evaluate
from vqgan.trainer import Trainer

SMALL = ModelConfig(
    resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), z_channels=8, embed_dim=8,
    codebook_size=32,
)  # fmt: skip
LOSS = LossConfig(perceptual="none", disc_start=1, disc_ramp=2, disc_ch=8, disc_layers=1)


def train_config(model=None, loss=None, **fields):
    return TrainConfig(
        model=dataclasses.replace(SMALL, **(model or {})), loss=dataclasses.replace(LOSS, **(loss or {})),
        **{"batch_size": 4, "steps": 8, "learning_rate": 1e-3, "precision": "float32", "eval_images": 2, **fields},
    )  # fmt: skip


RUNS = {
    "vq, restarts": train_config(restart_every=4, accumulate=2, clip_grad=1.0, ema_decay=0.9),
    "l2, moving averages": train_config({"quantizer": "l2"}, {"codebook_decay": 0.9}, optimizer="muon"),
    "simvq, rotation, stylegan": train_config(
        {"quantizer": "simvq"}, {"quantizer_gradient": "rotation", "discriminator": "stylegan", "entropy_weight": 0.1}
    ),
    "ibq, dino, bfloat16": train_config(
        {"quantizer": "ibq"}, {"discriminator": "dino", "disc_trunk": "random", "entropy_weight": 0.1},
        precision="bfloat16",
    ),
    "fsq, lpips": train_config(
        {"quantizer": "fsq", "levels": (4, 3, 3), "embed_dim": 3, "codebook_size": 36, "resolution": 32},
        {"perceptual": "lpips-alex", "l2_weight": 1.0}, optimizer="muon",
    ),
    "lfq, depth": train_config(
        {"quantizer": "lfq", "embed_dim": 5, "modality": "depth"},
        {"entropy_weight": 0.1, "disc_loss": "vanilla", "perceptual": "efficientnet-lite0"},
    ),
    "bsq, segmentation": train_config(
        {"quantizer": "bsq", "embed_dim": 5, "modality": "segmentation", "n_labels": 7}, {"entropy_weight": 0.1}
    ),
    "magvit2": train_config({"network": "magvit2"}, {"swap_beta": True}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def random_networks(monkeypatch):
    """Random weights instead of published ones, and one thread, as networks this small lose by more."""
    from torchvision.models import VisionTransformer

    def trunk(_):
        made = VisionTransformer(
            image_size=32, patch_size=16, num_layers=12, num_heads=2, hidden_dim=16, mlp_dim=16
        )  # fmt: skip
        made.heads = torch.nn.Identity()
        return made

    monkeypatch.setattr(discriminators, "load_dino", trunk)
    load = losses.load_weights
    monkeypatch.setattr(losses, "_download_trunk", lambda _: None)
    monkeypatch.setattr(losses, "load_weights", lambda path, error: load(path, error) if path else {})
    monkeypatch.setattr(LpipsLoss, "_load_trunk", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(config, count=4):
    rng, side = np.random.default_rng(0), config.resolution
    if config.modality == "depth":
        return rng.random((count, side, side), dtype=np.float32)
    if config.modality == "segmentation":
        return rng.integers(config.n_labels, size=(count, side, side), dtype=np.uint8)
    return rng.integers(256, size=(count, side, side, 3), dtype=np.uint8)


def trained(config, steps=4):
    """Return a trainer after a few steps, the waits of each step, and the loss terms of each."""
    with pretend_gpu(config.device == "cuda") as waits:
        trainer, found, waited = Trainer(config), [], []
        for _ in range(steps):
            waits.clear()
            found.append(trainer.step(to_input(pictures(config.model), config.model, trainer.device)))
            waited.append([*waits])
        return trainer, waited, found


@pytest.mark.parametrize("name", RUNS)
def test_steps_wait_for_the_loss_only(name):
    config = RUNS[name]
    trainer, waits, found = trained(dataclasses.replace(config, device="cuda"))
    assert all(p.device == GPU for part in (trainer.shipped, trainer.disc) for p in part.parameters())
    for step, waited in enumerate(waits, start=1):
        if step == 2:  # the first one with a discriminator moves the features that it sees
            continue
        loss, *restart = waited
        assert loss.startswith("trainer.py:step: tolist")
        expected = ["nonzero", "copy to the GPU"] if config.restart_every and step == 4 else []
        assert [wait.split(": ")[1].split(" (")[0] for wait in restart] == expected
    _, _, on_cpu = trained(dataclasses.replace(config, device="cpu"))
    rtol = 5e-2 if config.precision == "bfloat16" else 1e-3
    for ours, theirs in zip(found, on_cpu, strict=True):
        for key in theirs if config.precision == "float32" else ("loss", "reconstruction", "quantization"):
            assert ours[key] == pytest.approx(theirs[key], rel=rtol, abs=1e-3)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=8, n_val=3, size=32)
    return open_splits("demo", out)


@pytest.mark.parametrize("name", ["vq, restarts", "l2, moving averages"])
def test_a_run_on_a_gpu_evaluates_and_resumes_from_its_checkpoint(name, splits, tmp_path):
    config = dataclasses.replace(RUNS[name], device="cuda")
    with pretend_gpu():
        first, _, _ = trained(config, steps=2)
        metrics, originals, outputs = evaluate(first, splits["val"])
        assert originals.dtype == outputs.dtype == np.uint8
        assert metrics.counts_K.sum() == 2 * 64
        save_checkpoint(tmp_path, first.step_done, keep=1, **first.state())
        saved = next((tmp_path / "checkpoints").iterdir())
        second = Trainer(config)
        second.check(saved, run_folder(tmp_path))
        second.restore(saved)
        x = to_input(pictures(config.model), config.model, first.device)
        assert second.step(x) == pytest.approx(first.step(x))


def test_a_plan_tries_as_many_pictures_at_once_as_the_training_has_on_the_gpu(splits, tmp_path, monkeypatch):
    shapes = []
    step = Trainer.step

    def recorded(self, x_BCHW):
        shapes.append(x_BCHW.shape)
        return step(self, x_BCHW)

    monkeypatch.setattr(Trainer, "step", recorded)
    config = dataclasses.replace(RUNS["vq, restarts"], device="cuda")
    with pretend_gpu():
        plan = plan_training(config, splits, tmp_path / "run")
    assert plan.figures["device"] == "cuda"
    assert plan.figures["time_s"] > 0
    assert max(len_ for len_, *_ in shapes) == config.batch_size // config.accumulate == 2


def tokenizer(name, device, precision="float32"):
    config = RUNS[name].model
    torch.manual_seed(0)
    model = build_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Tokenizer(config, model, "f", torch.device(device), precision)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("scales_from", ["quantised", "continuous"])
def test_pictures_are_encoded_while_the_cpu_goes_on(name, scales_from):
    shown = pictures(RUNS[name].model)
    cpu = tokenizer(name, "cpu")
    expected = cpu.encode_async(shown, (1, 2), scales_from)()
    with pretend_gpu() as waits:
        gpu = tokenizer(name, "cuda")
        waits.clear()
        finish = gpu.encode_async(shown, (1, 2), scales_from)
        assert waits == []
        found = finish()
        assert waits == []
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        assert np.array_equal(gpu.rescale(found[0], 2), cpu.rescale(found[0], 2))
        for ours, theirs in zip(gpu.nearest_codes(3, 5), cpu.nearest_codes(3, 5), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4)
        waits.clear()
        ours = gpu.decode(found[0]).astype(float)
        assert len(waits) == 2  # the codes and the pictures are copied
        np.testing.assert_allclose(ours, cpu.decode(found[0]), atol=1.001)


def test_a_released_gumbel_model_and_bfloat16_run_on_a_gpu():
    config = dataclasses.replace(SMALL, quantizer="gumbel")
    with pretend_gpu():
        made = Tokenizer(config, build_model(config), "f", GPU, "bfloat16")
        codes = made.encode(pictures(config))
        assert codes.shape == (4, 8, 8)
        assert made.decode(codes).shape == (4, 16, 16, 3)
