"""The code of a GPU on a pretended one: no operation mixes devices, no step waits without need, results are a CPU's."""

import dataclasses

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, pretend_gpu

from vqgan import discriminators, losses
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.discriminators import DinoDiscriminator
from vqgan.losses import LpipsLoss
from vqgan.modalities import to_input
from vqgan.model import build_model
from vqgan.plan import plan_training
from vqgan.tokenizer import Tokenizer
from vqgan.train import Run, evaluate
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
    "vq, restarts": train_config(restart_every=2, accumulate=2, clip_grad=1.0, ema_decay=0.9),
    "l2, moving averages": train_config({"quantizer": "l2"}, {"codebook_decay": 0.9}, optimizer="muon"),
    "simvq, rotation, stylegan": train_config(
        {"quantizer": "simvq"}, {"quantizer_gradient": "rotation", "discriminator": "stylegan", "entropy_weight": 0.1}
    ),
    "ibq, dino, bfloat16": train_config(
        {"quantizer": "ibq"}, {"discriminator": "dino", "disc_trunk": "random", "entropy_weight": 0.1},
        precision="bfloat16",
    ),
    "fsq, lpips": train_config(
        {"quantizer": "fsq", "levels": (4, 3, 3), "embed_dim": 3, "codebook_size": 36},
        {"perceptual": "lpips-alex", "l2_weight": 1.0}, optimizer="muon",
    ),
    "lfq, depth": train_config(
        {"quantizer": "lfq", "embed_dim": 5, "modality": "depth"}, {"entropy_weight": 0.1, "disc_loss": "vanilla"}
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
    monkeypatch.setattr(losses, "_download_trunk", lambda file: file)
    monkeypatch.setattr(losses, "load_weights", lambda *_: {})
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
        loss, *restart = waited
        assert loss.startswith("trainer.py:step: tolist")
        expected = ["nonzero", "copy to the GPU"] if config.restart_every and step % 2 == 0 else []
        assert [wait.split(": ")[1].split(" (")[0] for wait in restart] == expected
    _, _, on_cpu = trained(dataclasses.replace(config, device="cpu"))
    rtol = 5e-2 if config.precision == "bfloat16" else 1e-3
    for ours, theirs in zip(found, on_cpu, strict=True):
        assert ours == pytest.approx(theirs, rel=rtol, abs=1e-3)
