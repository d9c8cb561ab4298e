"""The VQGAN against taming-transformers and diffusers at the same config: `imagepriors bench train-vqgan`.

f16/1024, 72.1 M parameters, 256×256. Each contender runs in a process of its own, so that peak memory and the
allocator's settings are its own, and all take their turn in each round. The rival is measured as published and with our
allocator settings, since those alone are worth a third. For encoding and decoding all have the same weights, and what
they give is compared.
"""

import importlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from codeshards.pool import ALLOCATOR
from imagepriors.benchmarks import harness, peers
from vqgan.checkpoint import save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.exchange import export_diffusers
from vqgan.model import VQGAN
from vqgan.quantize import VectorQuantizer
from vqgan.tokenizer import Tokenizer

_TRAIN_BATCH = {"cpu": 1, "cuda": 8}
_CODE_BATCH = {"cpu": 4, "cuda": 64}
_GRID = 16
_UNCOUNTED, _COUNTED = 1, 2
"""Calls of a process."""
_PUBLISHED = "taming as published, float32"
_RIVALS = {
    _PUBLISHED: ("taming", "float32", False),
    "taming, float32, our allocator settings": ("taming", "float32", True),
    "taming, bfloat16 autocast, our allocator settings": ("taming", "bfloat16", True),
}
_DIFFUSERS = {"diffusers, float32, our allocator settings": ("diffusers", "float32", True)}
_OURS = {
    "imagepriors, float32": ("ours", "float32", True),
    "imagepriors, bfloat16": ("ours", "bfloat16", True),
}
# Task → name → (whose, precision, with our allocator settings); the first of a task is what others are compared with.
CONTENDERS = {
    "train": _RIVALS | _OURS,
    "encode": _RIVALS | _DIFFUSERS | _OURS,
    "decode": _RIVALS | _DIFFUSERS | _OURS,
}
Work = Callable[[], Any]


def _pictures(count: int, seed: int = 0) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8))


def _batch(count: int) -> Tensor:
    """Pictures as networks want them, [B, 3, 256, 256] in -1 … 1."""
    return torch.from_numpy(np.stack(_pictures(count))).permute(0, 3, 1, 2).float() / 127.5 - 1


def _autocast(precision: str) -> Any:
    return torch.autocast(harness.device(), dtype=torch.bfloat16, enabled=precision == "bfloat16")


def train_taming(precision: str) -> Work:
    """Its training step: both optimisers in turn, each with its own forward pass, as Lightning runs them."""
    torch.manual_seed(0)
    model = peers.taming().VQModel(peers.F16, lossconfig={}, n_embed=1024, embed_dim=256)
    model.loss = peers.taming_loss(disc_start=0, disc_weight=0.8)
    model.learning_rate = 4.5e-6
    model.to(harness.device())
    optimizers, _ = model.configure_optimizers()
    x = _batch(_TRAIN_BATCH[harness.device()]).permute(0, 2, 3, 1).to(harness.device())

    def step() -> None:
        for index, optimizer in enumerate(optimizers):
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for other in optimizers:  # what Lightning's toggle_optimizer does
                for group in other.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(id(parameter) in mine)
            with _autocast(precision):
                loss = model.training_step({"image": x}, 0, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def train_ours(precision: str) -> Work:
    """Our training step with the same terms: L1, LPIPS (VGG), hinge discriminator, adaptive weight."""
    import torchvision

    from vqgan.trainer import Trainer

    batch = _TRAIN_BATCH[harness.device()]
    with tempfile.TemporaryDirectory() as folder:
        trunk = Path(folder) / "vgg16-397923af.pth"
        torch.save(torchvision.models.vgg16(weights=None).state_dict(), trunk)
        loss = LossConfig(perceptual="lpips-vgg", trunk=str(trunk), disc_start=0)
        trainer = Trainer(TrainConfig(loss=loss, batch_size=batch, precision=precision))  # type: ignore[arg-type]
    x = _batch(batch)
    return lambda: trainer.step(x)


def random_weights() -> VQGAN:
    """Random weights, the codebook drawn from the latents of other pictures: codes lie close, as after training."""
    torch.manual_seed(0)
    model = VQGAN(ModelConfig()).eval()
    x = torch.from_numpy(np.stack(_pictures(4, seed=1))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = model.latent(x).permute(0, 2, 3, 1).reshape(-1, 256)
        assert isinstance(model.quantize, VectorQuantizer)
        model.quantize.embedding.weight.data.copy_(latents[torch.randperm(len(latents))[:1024]])
    return model


def _codes() -> Tensor:
    """Codes [B, 16, 16] to decode."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1024, (_CODE_BATCH[harness.device()], _GRID, _GRID), generator=generator)


def _taming_with_weights() -> Any:
    model = peers.taming().VQModel(peers.F16, lossconfig={}, n_embed=1024, embed_dim=256)
    model.load_state_dict(random_weights().state_dict())
    return model.eval().to(harness.device())


def _levels(x_BCHW: Tensor) -> list[int]:
    """Pixels as 0 … 255, every 97th."""
    return ((x_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).flatten()[::97].int().tolist()


def encode_taming(precision: str) -> Work:
    """Its `encode`, on tensors that are on the device already."""
    model, x = _taming_with_weights(), _batch(_CODE_BATCH[harness.device()]).to(harness.device())

    @torch.inference_mode()
    def encode() -> list[int]:
        with _autocast(precision):
            return model.encode(x)[2][2].flatten().tolist()  # type: ignore[no-any-return]

    return encode


def decode_taming(precision: str) -> Work:
    """Its codebook and decoder."""
    model, codes = _taming_with_weights(), _codes().to(harness.device())

    @torch.inference_mode()
    def decode() -> list[int]:
        with _autocast(precision):
            return _levels(model.decode(model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, 256))))

    return decode


def _diffusers_with_weights() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "ours", TrainConfig(), random_weights())
        theirs = export_diffusers(Path(folder) / "ours", Path(folder) / "theirs")
        model = importlib.import_module("diffusers").VQModel.from_pretrained(theirs)
    return model.eval().to(harness.device())


def encode_diffusers(precision: str) -> Work:
    """VQModel's encoder and quantiser."""
    model, x = _diffusers_with_weights(), _batch(_CODE_BATCH[harness.device()]).to(harness.device())

    @torch.inference_mode()
    def encode() -> list[int]:
        with _autocast(precision):
            return model.quantize(model.encode(x).latents)[2][2].flatten().tolist()  # type: ignore[no-any-return]

    return encode


def decode_diffusers(precision: str) -> Work:
    """VQModel's codebook and decoder."""
    model, codes = _diffusers_with_weights(), _codes().to(harness.device())

    @torch.inference_mode()
    def decode() -> list[int]:
        with _autocast(precision):
            latents = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, 256))
            return _levels(model.decode(latents, force_not_quantize=True).sample)

    return decode


def _tokenizer(precision: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), TrainConfig(), random_weights())
        return Tokenizer.load(Path(folder), precision=precision)  # type: ignore[arg-type]


def encode_ours(precision: str) -> Work:
    """Our `Tokenizer.encode`, from uint8 pictures to codes in main memory."""
    tokenizer, pictures = _tokenizer(precision), _pictures(_CODE_BATCH[harness.device()])
    return lambda: tokenizer.encode(pictures).ravel().tolist()


def decode_ours(precision: str) -> Work:
    """Our `Tokenizer.decode`, from codes in main memory to uint8 pictures there."""
    tokenizer, codes = _tokenizer(precision), _codes().numpy()
    return lambda: tokenizer.decode(codes).ravel()[::97].tolist()


def contend(task: str, whose: str, precision: str) -> dict[str, Any]:
    """Seconds of a call of one contender in this process, what it gave, the memory it held, its share of the limit."""
    work = globals()[f"{task}_{whose}"](precision)
    times = [harness.seconds(work) for _ in range(_UNCOUNTED + _COUNTED)][_UNCOUNTED:]
    found: dict[str, Any] = {"seconds": statistics.median(times), "peak_gib": harness.peak_gib()}
    with FlopCounterMode(display=False) as counter:
        given = work()
    if task != "train":
        found["given"] = given
    return {**found, "share": counter.get_total_flops() / found["seconds"] / harness.flops_floor(precision)}


def run(repeats: int = 3, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders in turns, write the report, and return it as Markdown.

    Raises:
        InputError: a rival is not installed.
    """
    harness.need({"taming": "taming-transformers-rom1504==0.0.6", "einops": "einops", "diffusers": "diffusers"})
    work = [(task, name) for task, names in CONTENDERS.items() for name in names]
    rounds: list[dict[str, Any]] = []
    for _ in range(repeats):
        found = {}
        for task, name in tqdm(work, desc="bench train-vqgan", disable=None):
            whose, precision, allocator = CONTENDERS[task][name]
            found[f"{task}, {name}"] = harness.spawn(
                "train_vqgan", task, whose, precision, env=ALLOCATOR if allocator else {}
            )
        rounds.append(found)
    return _report(rounds, out)


def _agreement(task: str, given: list[int], exact: list[int]) -> str:
    """How far outputs are the published network's."""
    if task == "encode":
        return f"{np.mean(np.equal(given, exact)):.1%} of codes"
    return f"{np.abs(np.subtract(given, exact)).mean():.2f} grey levels off"


def _report(rounds: list[dict[str, Any]], out: Path) -> str:
    rows, headlines = [], {}
    device = harness.device()
    exact = {task: rounds[0][f"{task}, {_PUBLISHED}"].get("given") for task in CONTENDERS}
    own = "taming, float32, our allocator settings"
    for task, names in CONTENDERS.items():
        images = (_TRAIN_BATCH if task == "train" else _CODE_BATCH)[device]
        for name in names:
            runs = [found[f"{task}, {name}"] for found in rounds]
            times = [run["seconds"] for run in runs]
            bases = [[found[f"{task}, {base}"]["seconds"] for found in rounds] for base in (_PUBLISHED, own)]
            against = [harness.ratio(base, times) for base in bases]
            share = f"{harness.median([run['share'] for run in runs]):.0%}"
            same = _agreement(task, runs[0]["given"], exact[task]) if exact[task] else ""
            memory = f"{harness.median([run['peak_gib'] for run in runs]):.1f}"
            rate = f"{images / harness.median(times):.3g}"
            rows.append([f"{task}, {name}", rate, *against, share, memory, same])
            if name in _OURS:
                what = "VQGAN training step" if task == "train" else f"VQGAN {task}"
                headlines[f"{what} in {name.split(', ')[1]}, over taming as published"] = against[0]
    for found in rounds:
        for run in found.values():
            run.pop("given", None)
    text = (
        f"f16/1024 at 256×256, random weights; medians of {len(rounds)} rounds. Train: batch {_TRAIN_BATCH[device]}, "
        "autoencoder + LPIPS (VGG) + discriminator; diffusers has no training step of its own. Encode and decode: "
        f"batch {_CODE_BATCH[device]}, same weights. Of the limit: FLOPs per second over those of a large product in "
        "the same process and precision (convolutions may save multiplications)."
    )
    columns = ["", "images/s", "× published", "× with our allocator settings", "of the limit", "peak GiB", "gives"]
    return harness.save(
        out, "train-vqgan", command="imagepriors bench train-vqgan", text=text, columns=columns, rows=rows,
        figures={"rounds": rounds}, headlines=headlines, packages=("torch", "taming-transformers-rom1504", "diffusers"),
    )  # fmt: skip


if __name__ == "__main__":
    harness.answer(lambda: contend(*sys.argv[1:4]))
