"""Training, encoding and decoding of the published VQGAN, f16/1024 at 256×256: `python -m priorbench train-vqgan`.

All contenders have the same weights, including those of LPIPS. Codes, pictures and the loss before the first update are
compared with those of the published code. In each round each contender runs in a separate process, so peak memory and
allocator settings are its own. taming is measured as published and with the settings of this project, which account for
a third of the speed. diffusers has no trainer: its network is trained by taming's, with the same losses.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from priorbench import harness, peers, processes
from priorbench.harness import RESULTS
from runkit.machine import ALLOCATOR
from vqgan.checkpoint import load_model, save_model
from vqgan.compat.diffusers import export_diffusers
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.cpu_kernels import resolve_precision
from vqgan.modalities import to_input, to_pictures
from vqgan.model import VQGAN
from vqgan.quantize import VectorQuantizer
from vqgan.tokenizer import Tokenizer

_MODEL = ModelConfig()
_BATCH = {"cpu": {"train": 1, "encode": 4, "decode": 2}, "cuda": {"train": 8, "encode": 64, "decode": 64}}
Array = npt.NDArray[Any]
Call = Callable[[], Any]
"""One training step, which returns the loss before the update, or one pass, which returns codes or pictures."""


class Contender(NamedTuple):
    """An implementation of one of the three tasks."""

    job: str
    """train, encode or decode."""
    who: str
    precision: str
    as_it_is: bool = False
    """With default allocator settings, and on a GPU with TF32 in convolutions, torch's default."""
    compiled: bool = False

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{self.job}, {self.who}{', compiled' * self.compiled}{', as it is' * self.as_it_is}"

    @property
    def key(self) -> str:
        """Name in the figures."""
        return f"{self.name}, {self.precision}"


def contenders() -> list[Contender]:
    """Contenders on this device: bfloat16 only where it is faster, compiled code only on GPUs."""
    precisions = ("float32", "bfloat16") if _native() == "bfloat16" else ("float32",)
    found = []
    for job in _BATCH["cpu"]:
        found.append(_as_published(job))
        for precision in precisions:
            found += [Contender(job, who, precision) for who in ("taming", "diffusers", "imagepriors")]
        if harness.device() == "cuda" and job != "decode":
            found.append(Contender(job, "imagepriors", "bfloat16", compiled=True))
    return found


def _as_published(job: str) -> Contender:
    return Contender(job, "taming", "float32", as_it_is=True)


def _native() -> str:
    return resolve_precision("auto", torch.device(harness.device()))


def _pictures(count: int, seed: int = 0, side: int | None = None) -> list[Array]:
    side = side or _MODEL.resolution
    shape = (count, side, side, 3)
    return list(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def _codes(count: int) -> Array:
    side = _MODEL.resolution // 2 ** (len(_MODEL.ch_mult) - 1)
    return np.random.default_rng(0).integers(0, _MODEL.codebook_size, (count, side, side))


def random_weights(config: ModelConfig | None = None) -> VQGAN:
    """Random weights with a codebook of latents of other pictures, so that codes are close as after training.

    Args:
        config: Architecture for RGB pictures; None: that of this suite.
    """
    torch.manual_seed(0)
    model = VQGAN(config or _MODEL).eval()
    height, width = model.config.grid
    with torch.inference_mode():
        pictures = _pictures(-(-model.config.codebook_size // (height * width)), seed=1, side=model.config.resolution)
        latents = model.latent(to_input(pictures, model.config)).permute(0, 2, 3, 1).flatten(0, 2)
    assert isinstance(model.quantize, VectorQuantizer)
    codebook = model.quantize.embedding.weight.data
    codebook.copy_(latents[torch.randperm(len(latents))[torch.arange(len(codebook)) % len(latents)]])
    return model


def prepare(work: Path, diffusers: bool) -> int:
    """Write the weights that all contenders load, and return the number of parameters of the autoencoder."""
    model = random_weights()
    save_model(work / "tokenizer", TrainConfig(model=_MODEL), model)
    if diffusers:
        export_diffusers(work / "tokenizer", work / "diffusers")
    trunk = peers.vgg_features().state_dict()
    torch.save({f"features.{name}": value for name, value in trunk.items()}, work / "trunk.pth")
    return sum(parameter.numel() for parameter in model.parameters())


class _Anywhere(contextlib.nullcontext[None]):
    """Replacement of FlopCounterMode's module tracker, whose hooks do not work with autograd.grad."""

    parents = frozenset({"Global"})


def published(work: Path, who: str) -> Any:
    """taming's VQModel with the weights, with the network of diffusers if `who` is diffusers."""
    model = peers.taming_vqgan(_MODEL)
    if who == "diffusers":
        from diffusers import VQModel

        theirs = VQModel.from_pretrained(work / "diffusers")
        for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"):
            setattr(model, part, getattr(theirs, part))
    else:
        model.load_state_dict(load_model(work / "tokenizer")[1].state_dict())
    return model.to(harness.device())


def train_rival(work: Path, who: str, precision: str, batch: int) -> Call:
    """The published training step: both optimizers, each with its own forward pass, as Lightning runs them."""
    model = published(work, who)
    model.loss = peers.taming_loss(work / "trunk.pth", disc_start=0, disc_weight=0.8).to(harness.device())
    model.learning_rate = 4.5e-6
    optimizers, _ = model.configure_optimizers()
    pictures = to_input(_pictures(batch), _MODEL).permute(0, 2, 3, 1).to(harness.device())

    def step() -> float:
        losses = []
        for index, optimizer in enumerate(optimizers):
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for other in optimizers:  # as in Lightning's toggle_optimizer
                for group in other.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(id(parameter) in mine)
            with harness.autocast(precision):
                loss = model.training_step({"image": pictures}, 0, index)
            losses.append(model.logged)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(losses[0]["train/nll_loss"])

    return step


def train_ours(work: Path, precision: str, batch: int, compiled: bool) -> Call:
    """The training step of this project with the same losses: L1, LPIPS (VGG), hinge discriminator, adaptive weight."""
    from vqgan.trainer import Trainer

    loss = LossConfig(perceptual="lpips-vgg", trunk=str(work / "trunk.pth"), disc_start=0)
    config = TrainConfig(model=_MODEL, loss=loss, batch_size=batch, precision=precision, compile=compiled)  # type: ignore[arg-type]
    trainer = Trainer(config)
    trainer.model.load_state_dict(load_model(work / "tokenizer")[1].state_dict())
    pictures = to_input(_pictures(batch), _MODEL)

    def step() -> float:
        terms = trainer.step(pictures)
        return terms["reconstruction"] + terms["perceptual"]

    return step


def encode_rival(work: Path, who: str, precision: str, batch: int) -> Call:
    """`encode` of a rival on pictures that are already on the device."""
    model = published(work, who).eval()
    pictures = to_input(_pictures(batch), _MODEL).to(harness.device())

    @torch.no_grad()  # FlopCounterMode does not count autocast products in inference mode
    def encode() -> Array:
        with harness.autocast(precision):
            codes: Tensor = model.encode(pictures)[2][2]
        return codes.cpu().numpy().ravel()

    return encode


def decode_rival(work: Path, who: str, precision: str, batch: int) -> Call:
    """`decode` of a rival from codes that are already on the device to pictures."""
    model = published(work, who).eval()
    codes = torch.from_numpy(_codes(batch)).to(harness.device())

    @torch.no_grad()  # FlopCounterMode does not count autocast products in inference mode
    def decode() -> Array:
        with harness.autocast(precision):
            latents = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, _MODEL.embed_dim))
            pictures: Tensor = model.decode(latents)
        return to_pictures(pictures, _MODEL)

    return decode


def _ours(work: Path, job: str, precision: str, batch: int, compiled: bool) -> Call:
    """`Tokenizer` of this project: from uint8 pictures to codes in main memory, and back."""
    if job == "train":
        return train_ours(work, precision, batch, compiled)
    tokenizer = Tokenizer.load(work / "tokenizer", precision=precision, compiled=compiled)  # type: ignore[arg-type]
    if job == "decode":
        codes = _codes(batch)
        return lambda: tokenizer.decode(codes)
    pictures = _pictures(batch)
    return lambda: tokenizer.encode(pictures).ravel()


def measure(folder: str, contender: str) -> dict[str, Any]:
    """Figures of one contender in one round; the first round also counts FLOPs and writes the output to a file.

    Args:
        folder: Folder that `prepare` wrote.
        contender: Fields of the contender as a JSON list.
    """
    work, one = Path(folder), Contender(*json.loads(contender))
    torch.manual_seed(0)
    if not one.as_it_is:
        torch.backends.cudnn.allow_tf32 = False  # exact float32, as in the tokenizer of this project
    batch = _BATCH[harness.device()][one.job]
    if one.who == "imagepriors":
        call = _ours(work, one.job, one.precision, batch, one.compiled)
    else:
        rival = {"train": train_rival, "encode": encode_rival, "decode": decode_rival}[one.job]
        call = rival(work, one.who, one.precision, batch)
    counter, output = FlopCounterMode(display=False), _output(work, one)
    counter.mod_tracker = _Anywhere()  # type: ignore[assignment]
    counting = not output.exists() and not one.compiled  # compiled code cannot be counted
    with counter if counting else contextlib.nullcontext():
        np.save(output, call())
    seconds = harness.median_seconds(call, warm=2 if harness.device() == "cuda" else 0)
    peak_gib = harness.peak_gib()
    return {
        "s": seconds / batch, "flops": counter.get_total_flops() / batch, "floor": harness.flops_floor(one.precision),
        "peak_gib": peak_gib, "likeness": _likeness(work, one),
    }  # fmt: skip


def _output(work: Path, one: Contender) -> Path:
    return work / f"{one.key}.npy"


def _likeness(work: Path, one: Contender) -> str:
    """Describe the difference of its output from the published one; empty without the latter."""
    paths = _output(work, one), _output(work, _as_published(one.job))
    if not paths[1].exists():
        return ""
    found, published = map(np.load, paths)
    if one.job == "train":
        return f"loss {float(found):.6g}, published {float(published):.6g}"
    equal = f"{np.mean(np.equal(found, published)):.2%} equal"
    if one.job == "encode":
        return equal
    apart = np.abs(found.astype(int) - published)
    psnr = f", {10 * np.log10(255**2 / np.square(apart).mean()):.1f} dB" if apart.any() else ""
    return f"{equal}, at most {apart.max()} of 255 apart{psnr}"


def run(repeats: int, *, out: Path = RESULTS) -> str:
    """Measure all contenders and report.

    Raises:
        InputError: a rival is not installed.
    """
    taking_part = {one.key: one for one in contenders()}
    rivals = sorted({one.who for one in taking_part.values()} - {"imagepriors"})
    peers.require(*rivals, *(["einops", "transformers"] if rivals else []))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parameters = prepare(work, "diffusers" in rivals)
        return harness.run_rounds(
            "bench train-vqgan",
            taking_part,
            lambda key: _measure(work, taking_part[key]),
            lambda found: _report(found, rivals, parameters, out),
            repeats,
        )


def _measure(work: Path, one: Contender) -> dict[str, Any]:
    env = {} if one.as_it_is else ALLOCATOR
    found: dict[str, Any] = processes.spawn("train_vqgan", str(work), json.dumps(one), env=env)
    return found


def _rivals(precision: str) -> dict[str, str]:
    """Column → name of the rival in the figures, after the task."""
    return {
        "taming as published (float32)": "taming, as it is, float32",
        "taming, same precision": f"taming, {precision}",
        "diffusers, same precision": f"diffusers, {precision}",
    }


_WHAT = {"train": "VQGAN training step", "encode": "VQGAN encoding", "decode": "VQGAN decoding"}


def table(figures: dict[str, harness.Rounds]) -> harness.Table:
    """Table of images/s, ratios and the share of a matrix product's speed; `figures` has the contenders' keys."""
    seconds = harness.values_of(figures, "s")
    rows: list[list[str]] = []
    headlines: dict[str, str] = {}
    for key, found in figures.items():
        name, _, precision = key.rpartition(", ")
        job, _, who = name.partition(", ")
        if key not in seconds:
            rows.append([name, precision, harness.failure(found)])
            continue
        s, gib = (harness.median([of_round[figure] for of_round in found]) for figure in ("s", "peak_gib"))
        floor = harness.best_floor(of_one for other, of_one in figures.items() if other.endswith(precision))
        plain = figures[key.replace(", compiled", "")]  # FLOPs are counted without compilation
        flops = max(of_round.get("flops", float("nan")) for of_round in plain)
        over = {
            rival: harness.ratio(seconds[f"{job}, {their}"], seconds[key]) if f"{job}, {their}" in seconds else ""
            for rival, their in _rivals(precision).items()
        }
        rows.append([
            name, precision, f"{1 / s:.3g}", *over.values(), f"{flops / 1e12:.2f}", f"{flops / s / floor:.0%}",
            f"{gib:.1f}", found[0]["likeness"],
        ])  # fmt: skip
        if who.startswith("imagepriors"):
            what, other = f"{_WHAT[job]}, {precision}", ""
            if "compiled" in who:
                what, other = f"{what}, compiled", " (not compiled)"
            headlines |= {f"{what}, over {rival}{other}": value for rival, value in over.items() if value}
    columns = [
        "", "precision", "images/s", *(f"× {rival}" for rival in _rivals("")), "TFLOP per image", "of matmul speed",
        "peak GiB", "output against the published",
    ]  # fmt: skip
    return harness.table_of(columns, rows, headlines)


def _report(figures: dict[str, harness.Rounds], rivals: list[str], parameters: int, out: Path) -> str:
    count = max(map(len, figures.values()))
    batches = ", ".join(f"{job} {size}" for job, size in _BATCH[harness.device()].items())
    return harness.save(
        out, "train-vqgan", table(figures),
        command=harness.command("train-vqgan", count),
        text=f"VQGAN f16/1024 at {_MODEL.resolution}×{_MODEL.resolution}, {parameters:,} parameters, the same random "
        f"weights for all; batch: {batches}. Training: L1 + LPIPS (VGG) + discriminator with its adaptive weight; the "
        "loss is L1 + LPIPS before the first update. The discriminators have the same layers, but that of taming has "
        "BatchNorm and that of imagepriors GroupNorm. diffusers' network is trained by taming's trainer. × is images "
        f"per second over the rival's in the same round, median and range over {harness.rounds(count)}, each in fresh "
        "processes; no rival is compiled. As it is: with the default allocator settings of the C library, and on a "
        "GPU with TF32 in convolutions (torch's default), so the share may exceed 100%; all others have the "
        "allocator settings of imagepriors and exact float32. Of matmul speed: FLOPs per second over those of a "
        "large matrix product in the same precision, the fastest of all processes of the run.",
        figures=figures,
        packages=["torch", *peers.packages(rivals)],
    )  # fmt: skip


if __name__ == "__main__":
    processes.write_answer(lambda: measure(*sys.argv[1:]))
