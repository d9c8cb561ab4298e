"""Training step, encoding and decoding of the published VQGAN, f16/1024 at 256×256: `imagepriors bench train-vqgan`.

Every contender has the same weights, LPIPS included, and its outputs are compared with the published ones: codes,
pictures, and the loss before the first update. In every round each gets a process of its own, so that peak memory and
the allocator's settings are its own; taming is measured as published and with our settings, since those alone are worth
a third. diffusers has no trainer of its own: its network trains in taming's, with the same losses.
"""

import contextlib
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
from tqdm import tqdm

from codeshards.pool import ALLOCATOR
from imagepriors.benchmarks import harness, peers
from imagepriors.benchmarks.harness import RESULTS
from vqgan.checkpoint import load_model, save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.exchange import export_diffusers
from vqgan.modalities import to_input, to_pictures
from vqgan.model import VQGAN
from vqgan.quantize import VectorQuantizer
from vqgan.tokenizer import Tokenizer, pick_dtype

_MODEL = ModelConfig()
_BATCH = {"cpu": {"train": 1, "encode": 4, "decode": 2}, "cuda": {"train": 8, "encode": 64, "decode": 64}}
Array = npt.NDArray[Any]
Call = Callable[[], Any]
"""One training step, which returns the loss before it, or one pass, which returns codes or pictures."""


class Contender(NamedTuple):
    """What takes part: a job done by somebody."""

    job: str
    """train, encode or decode."""
    who: str
    precision: str
    allocator: bool = True
    """With our allocator settings; without them as its users run it."""
    compiled: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.job}, {self.who}{', compiled' * self.compiled}{'' if self.allocator else ', as it is'}"


def contenders() -> list[Contender]:
    """What is worth measuring here: no bfloat16 where nobody would choose it."""
    cuda, native = harness.device() == "cuda", _native() == "bfloat16"
    found = []
    for job in _BATCH["cpu"]:
        found.append(_as_published(job))
        if not cuda:
            found += [Contender(job, who, "float32") for who in ("taming", "diffusers")]
        found.append(Contender(job, "imagepriors", "float32"))
        if native:
            found += [Contender(job, who, "bfloat16") for who in ("taming", "imagepriors")]
        if cuda and job != "decode":
            found.append(Contender(job, "imagepriors", "bfloat16", compiled=True))
    return found


def _as_published(job: str) -> Contender:
    return Contender(job, "taming", "float32", allocator=harness.device() == "cuda")  # which has its own allocator


def _native() -> str:
    return "bfloat16" if pick_dtype("auto", torch.device(harness.device())) == torch.bfloat16 else "float32"


def _pictures(count: int, seed: int = 0) -> list[Array]:
    shape = (count, _MODEL.resolution, _MODEL.resolution, 3)
    return list(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def _codes(count: int) -> Array:
    side = _MODEL.resolution // 2 ** (len(_MODEL.ch_mult) - 1)
    return np.random.default_rng(0).integers(0, _MODEL.codebook_size, (count, side, side))


def _autocast(precision: str) -> Any:
    return torch.autocast(harness.device(), dtype=torch.bfloat16, enabled=precision == "bfloat16")


def random_weights() -> VQGAN:
    """Random weights, the codebook drawn from the latents of other pictures: codes lie close, as after training."""
    torch.manual_seed(0)
    model = VQGAN(_MODEL).eval()
    with torch.inference_mode():
        latents = model.latent(to_input(_pictures(4, seed=1), _MODEL)).permute(0, 2, 3, 1).flatten(0, 2)
    assert isinstance(model.quantize, VectorQuantizer)
    codebook = model.quantize.embedding.weight.data
    codebook.copy_(latents[torch.randperm(len(latents))[torch.arange(len(codebook)) % len(latents)]])
    return model


def prepare(work: Path, diffusers: bool) -> int:
    """Write the weights that all contenders load; returns the number of the autoencoder's parameters."""
    model = random_weights()
    save_model(work / "tokenizer", TrainConfig(model=_MODEL), model)
    if diffusers:
        export_diffusers(work / "tokenizer", work / "diffusers")
    trunk = peers.vgg_features().state_dict()
    torch.save({f"features.{name}": value for name, value in trunk.items()}, work / "trunk.pth")
    return sum(parameter.numel() for parameter in model.parameters())


class _Anywhere(contextlib.nullcontext[None]):
    """In place of FlopCounterMode's tracker of modules, whose hooks autograd.grad refuses."""

    parents = frozenset({"Global"})


def _published(work: Path, who: str) -> Any:
    """taming's VQModel with the weights; for diffusers with its network in place of taming's."""
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
    """The published step: both optimisers in turn, each with its own forward pass, as Lightning runs them."""
    model = _published(work, who)
    model.loss = peers.taming_loss(work / "trunk.pth", disc_start=0, disc_weight=0.8).to(harness.device())
    model.learning_rate = 4.5e-6
    optimizers, _ = model.configure_optimizers()
    pictures = to_input(_pictures(batch), _MODEL).permute(0, 2, 3, 1).to(harness.device())

    def step() -> float:
        losses = []
        for index, optimizer in enumerate(optimizers):
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for other in optimizers:  # what Lightning's toggle_optimizer does
                for group in other.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(id(parameter) in mine)
            with _autocast(precision):
                loss = model.training_step({"image": pictures}, 0, index)
            losses.append(model.logged)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(losses[0]["train/nll_loss"])

    return step


def train_ours(work: Path, precision: str, batch: int, compiled: bool) -> Call:
    """Our step with the same terms: L1, LPIPS (VGG), hinge discriminator, adaptive weight."""
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
    """Its `encode`, on pictures that are on the device already."""
    model = _published(work, who).eval()
    pictures = to_input(_pictures(batch), _MODEL).to(harness.device())

    @torch.no_grad()  # in inference mode the counter of FLOPs meets autocast too late
    def encode() -> Array:
        with _autocast(precision):
            codes: Tensor = model.encode(pictures)[2][2]
        return codes.cpu().numpy().ravel()

    return encode


def decode_rival(work: Path, who: str, precision: str, batch: int) -> Call:
    """Its codebook and `decode`, from codes that are on the device already to pictures."""
    model = _published(work, who).eval()
    codes = torch.from_numpy(_codes(batch)).to(harness.device())

    @torch.no_grad()  # in inference mode the counter of FLOPs meets autocast too late
    def decode() -> Array:
        with _autocast(precision):
            latents = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, _MODEL.embed_dim))
            pictures: Tensor = model.decode(latents)
        return to_pictures(pictures, _MODEL)

    return decode


def _ours(work: Path, job: str, precision: str, batch: int, compiled: bool) -> Call:
    """Our `Tokenizer`: from uint8 pictures to codes in main memory, and back."""
    if job == "train":
        return train_ours(work, precision, batch, compiled)
    tokenizer = Tokenizer.load(work / "tokenizer", precision=precision, compiled=compiled)  # type: ignore[arg-type]
    if job == "decode":
        codes = _codes(batch)
        return lambda: tokenizer.decode(codes)
    pictures = _pictures(batch)
    return lambda: tokenizer.encode(pictures).ravel()


def measure(work: str, job: str, who: str, precision: str, compiled: str) -> dict[str, Any]:
    """One contender's figures of one round in this process; the first time FLOPs too, and the output goes to a file."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 for all, as it does in our tokenizer
    batch = _BATCH[harness.device()][job]
    if who == "imagepriors":
        call = _ours(Path(work), job, precision, batch, compiled == "compiled")
    else:
        rival = {"train": train_rival, "encode": encode_rival, "decode": decode_rival}[job]
        call = rival(Path(work), who, precision, batch)
    counter, output = FlopCounterMode(display=False), Path(work) / f"{job}-{who}-{precision}{compiled}.npy"
    counter.mod_tracker = _Anywhere()  # type: ignore[assignment]
    counting = not output.exists() and not compiled  # compiled code hides from it
    with counter if counting else contextlib.nullcontext():
        np.save(output, call())
    seconds = harness.steady(call, warm=2 if harness.device() == "cuda" else 0)
    peak_gib = harness.peak_gib()
    speed = harness.flops_floor(precision)
    return {"s": seconds / batch, "flops": counter.get_total_flops() / batch, "floor": speed, "peak_gib": peak_gib}


def _likeness(work: Path, who: Contender) -> str:
    """How far its first output is from the published one."""
    found, published = (
        np.load(work / f"{who.job}-{name}.npy")
        for name in (f"{who.who}-{who.precision}{'compiled' * who.compiled}", "taming-float32")
    )
    if who.job == "train":
        return f"loss {float(found):.6g}, published {float(published):.6g}"
    equal = f"{np.mean(np.equal(found, published)):.2%} equal"
    if who.job == "encode":
        return equal
    apart = np.abs(found.astype(int) - published)
    psnr = f", {10 * np.log10(255**2 / np.square(apart).mean()):.1f} dB" if apart.any() else ""
    return f"{equal}, at most {apart.max()} of 255 apart{psnr}"


def _measured(repeats: int, work: Path, taking_part: list[Contender]) -> dict[Contender, list[dict[str, Any]]]:
    rounds: dict[Contender, list[dict[str, Any]]] = {one: [] for one in taking_part}
    with tqdm(total=repeats * len(rounds), desc="bench train-vqgan", disable=None) as bar:
        for _ in range(repeats):
            for one, found in rounds.items():
                arguments = (str(work), one.job, one.who, one.precision, "compiled" * one.compiled)
                found.append(harness.spawn("train_vqgan", *arguments, env=ALLOCATOR if one.allocator else {}))
                bar.update()
    return rounds


def _over(seconds: dict[Contender, list[float]], one: Contender) -> dict[str, str]:
    """Rival → ratio, empty where it does not take part."""
    rivals = {
        "taming as published (float32)": _as_published(one.job),
        "taming, same settings": Contender(one.job, "taming", one.precision),
        "diffusers, same settings": Contender(one.job, "diffusers", one.precision),
    }
    return {
        name: harness.ratio(seconds[rival], seconds[one]) if rival in seconds else "" for name, rival in rivals.items()
    }


def run(repeats: int, *, out: Path = RESULTS) -> str:
    """Measure all contenders and report.

    Raises:
        InputError: a rival is not installed.
    """
    taking_part = contenders()
    rivals = sorted({one.who for one in taking_part} - {"imagepriors"})
    peers.require(*rivals, *(["einops", "transformers"] if rivals else []))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parameters = prepare(work, "diffusers" in rivals)
        rounds = _measured(repeats, work, taking_part)
        likeness = {one: _likeness(work, one) if rivals else "" for one in taking_part}
    seconds = {one: [found["s"] for found in of_one] for one, of_one in rounds.items()}
    ratios = {one: _over(seconds, one) for one in rounds}
    rows = []
    headlines: dict[str, str] = {}
    for one, of_one in rounds.items():
        s, floor, gib = (harness.median([found[name] for found in of_one]) for name in ("s", "floor", "peak_gib"))
        # Counted once for all that do the same work: compiled code hides from it, an allocator changes nothing.
        same = (rounds[other] for other in rounds if other[:3] == one[:3])
        flops = max(of_other[0]["flops"] for of_other in same)
        rows.append([
            one.name, one.precision, f"{1 / s:.3g}", *ratios[one].values(), f"{flops / 1e12:.2f}",
            f"{flops / s / floor:.0%}", f"{gib:.1f}", likeness[one],
        ])  # fmt: skip
        if one.who == "imagepriors" and one.precision in ("float32", _native()):
            what = {"train": "VQGAN training step", "encode": "VQGAN encoding", "decode": "VQGAN decoding"}[one.job]
            kind = one.precision + ", compiled" * one.compiled
            headlines |= {f"{what}, {kind}, over {rival}": value for rival, value in ratios[one].items() if value}
    batches = ", ".join(f"{job} {count}" for job, count in _BATCH[harness.device()].items())
    return harness.save(
        out, "train-vqgan",
        command="imagepriors bench train-vqgan",
        text=f"VQGAN f16/1024 at {_MODEL.resolution}×{_MODEL.resolution}, {parameters:,} parameters, the same random "
        f"weights for all; batch: {batches}. Training: L1 + LPIPS (VGG) + discriminator with its adaptive weight; the "
        "loss is L1 + LPIPS before the first update. diffusers' network trains in taming's trainer. × is images per "
        f"second over the rival's in the same round, median and range over {repeats} rounds, each in fresh processes. "
        "As it is: with the C library's allocator as it comes, else all have our settings of it. Of matmul speed: the "
        "FLOPs it runs a second over those of a large matrix product in the same process and precision; above 100% "
        "where convolutions save multiplications.",
        columns=["", "precision", "images/s", *(f"× {name}" for name in ratios[taking_part[0]]), "TFLOP an image",
                 "of matmul speed", "peak GiB", "output against the published"],
        rows=rows,
        figures={f"{one.name}, {one.precision}": found for one, found in rounds.items()},
        headlines=headlines,
        packages=["torch", *(_PACKAGES[name] for name in rivals)],
    )  # fmt: skip


_PACKAGES = {"taming": "taming-transformers-rom1504", "diffusers": "diffusers"}

if __name__ == "__main__":
    harness.answer(lambda: measure(*sys.argv[1:]))
