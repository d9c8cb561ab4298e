"""The speed of stage 1: encoding, decoding and training steps of f16/1024 at 256×256."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codeprior.speed import peak_flops
from priorbench import harness
from priorbench.gpu import networks, variants
from priorbench.gpu.check import Figure, Setup
from priorbench.gpu.memory import require_compiler, start_afresh
from priorbench.gpu.networks import own_arithmetic, share
from priorbench.tokenize import encode_all
from priorbench.train_vqgan import Anywhere, our_trainer, prepare, train_ours
from vqgan.checkpoint import save_model
from vqgan.compat.diffusers import export_diffusers
from vqgan.config import TrainConfig
from vqgan.cpu_kernels import GroupNorm
from vqgan.modalities import to_input
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vqgan.trainer import Trainer

_ENCODED_PER_S = 3500.0
"""Target of the encoder alone, which is half of the peak of an H100 or H200; the whole job should reach 2,500."""
_BATCH = 128
"""Pictures per batch where only one is measured."""


def encode(setup: Setup) -> Iterator[Figure]:
    """Measure encoding of decoded pictures in memory, decoding of codes, and other ways to compute the encoder."""
    model, what = networks.network(setup), networks.name(setup)
    flops = networks.encoder_flops(model.config)
    exact = networks.tokenizer(model, setup.device)
    yield from _rate(setup, f"{what}, float32", "float32", flops, _encode_rate(setup, exact, setup.pick(64, 2), 1))
    ours = networks.tokenizer(model, setup.device, "bfloat16")
    *usual, largest = setup.pick((64, _BATCH, 256), (2, 4, 8))
    rates = []
    for batch in usual:
        rates.append((yield from _encode_batch(setup, ours, batch, flops)))
    codes = ours.encode(networks.pictures(setup, setup.pick(64, 2)))
    seconds = _median_seconds(lambda: ours.decode(codes))
    yield Figure(f"{what}, bfloat16: decoding", len(codes) / seconds, "images/s")
    yield from _variants(setup, model, exact, variants.VARIANTS)
    # Last, because its activations have 2^31 values, which not all kernels may index.
    rates.append((yield from _encode_batch(setup, ours, largest, flops)))
    yield Figure(f"{what}, bfloat16: the best batch", max(rates), "images/s", at_least=_ENCODED_PER_S)


def _encode_batch(setup: Setup, ours: Tokenizer, batch: int, flops: float) -> Generator[Figure, None, float]:
    """Yield the figures of a size of batch; return its rate."""
    start_afresh()
    what = f"{networks.name(setup)}, bfloat16, batch {batch}"
    rate = _encode_rate(setup, ours, batch, setup.pick(1024 // batch, 2))
    yield from _rate(setup, what, "bfloat16", flops, rate)
    yield Figure(f"{what}: peak memory", harness.peak_gib(), "GiB")
    return rate


def encode_compiled(setup: Setup) -> Iterator[Figure]:
    """Measure encoding with the encoder compiled, and with only its norms compiled."""
    require_compiler(setup.device)
    model, what = networks.network(setup, compiled=True), f"{networks.name(setup)}, bfloat16, compiled"
    batch = setup.pick(_BATCH, 2)
    exact = networks.tokenizer(model, setup.device)
    ours = networks.tokenizer(model, setup.device, "bfloat16", compiled=True)
    start_afresh()
    rate = _encode_rate(setup, ours, batch, setup.pick(8, 2))
    flops = networks.encoder_flops(model.config)
    yield from _rate(setup, f"{what}, batch {batch}", "bfloat16", flops, rate, _ENCODED_PER_S)
    yield Figure(f"{what}: peak memory", harness.peak_gib(), "GiB")
    pictures = networks.pictures(setup, batch)
    yield Figure(f"{what}: codes equal to float32", share(ours.encode(pictures), exact.encode(pictures)), "%")
    del ours
    fused = {"norms and swishes compiled": variants.Variant(block=variants.FusedBlock)}
    yield from _variants(setup, model, exact, fused)
    torch._dynamo.reset()


def _variants(setup: Setup, model: VQGAN, exact: Tokenizer, chosen: dict[str, variants.Variant]) -> Iterator[Figure]:
    """Measure ways to encode pictures that are on the device; yield their speed and their share of float32's codes."""
    pictures = networks.pictures(setup, setup.pick(_BATCH, 2))
    x_BCHW, codes = to_input(pictures, model.config, setup.device), exact.encode(pictures)
    for name, variant in chosen.items():
        way = variants.encoder(model, variant, setup.device)
        seconds = _median_seconds(lambda: way(x_BCHW))  # noqa: B023 - it is called in this round
        yield Figure(f"from the device, {name}", len(pictures) / seconds, "images/s")
        yield Figure(f"from the device, {name}: codes equal to float32", share(way(x_BCHW).cpu().numpy(), codes), "%")


def _encode_rate(setup: Setup, tokenizer: Tokenizer, batch: int, count: int) -> float:
    """Return images per second from decoded pictures in memory to codes in memory."""
    pictures = networks.pictures(setup, batch)
    seconds = _median_seconds(lambda: encode_all(tokenizer, [pictures], count))
    return batch * count / seconds


def _median_seconds(work: Callable[[], Any]) -> float:
    return harness.median_seconds(work, warm=2, repeats=3)


def _rate(
    setup: Setup, what: str, precision: str, flops: float, rate: float, at_least: float | None = None
) -> Iterator[Figure]:
    """Yield a rate, its FLOP/s, and the share of the device's."""
    yield Figure(what, rate, "images/s", at_least=at_least)
    yield Figure(f"{what}: operations", flops * rate / 1e12, "TFLOP/s")
    yield Figure(f"{what}: share of the peak", flops * rate / peak_flops(setup.device, precision), "%")


def train_vqgan(setup: Setup) -> Iterator[Figure]:
    """Measure training steps with LPIPS and the discriminator in bfloat16, and other ways to compute them."""
    trainer = _trainer(setup)
    flops = _step_flops(setup, trainer)
    yield from _train(setup, trainer, "as it is", flops)
    with own_arithmetic():
        torch.backends.cudnn.benchmark = True
        yield from _train(setup, trainer, "cuDNN measures its algorithms", flops)
    for part in (trainer.model, trainer.disc):
        variants.replaced(part, GroupNorm, variants.LowNorm)
    yield from _train(setup, trainer, "GroupNorm in bfloat16", flops)


def train_vqgan_compiled(setup: Setup) -> Iterator[Figure]:
    """Measure training steps with encoder and decoder compiled; not in a rehearsal, where that takes a minute."""
    require_compiler(setup.device)
    flops = _step_flops(setup, _trainer(setup))  # those of compiled code cannot be counted
    with torch.compiler.set_stance(setup.pick("default", "force_eager")):
        yield from _train(setup, _trainer(setup, compiled=True), "compiled", flops)
    torch._dynamo.reset()


def _trainer(setup: Setup, compiled: bool = False) -> Trainer:
    """Return a trainer in bfloat16."""
    work = setup.work / "vqgan-train"
    if not (work / "trunk.pth").exists():
        prepare(work, diffusers=False, config=networks.config(setup))
    return our_trainer(work, "bfloat16", _train_batch(setup), compiled, setup.device.type)


def _train_batch(setup: Setup) -> int:
    return setup.pick(16, 2)


def _train(setup: Setup, trainer: Trainer, how: str, flops: float) -> Iterator[Figure]:
    batch = _train_batch(setup)
    step = train_ours(trainer, networks.pictures(setup, batch))
    start_afresh()
    what = f"VQGAN {networks.name(setup)}, batch {batch}, {how}"
    yield from _rate(setup, what, "bfloat16", flops, batch / _median_seconds(step))
    yield Figure(f"{what}: peak memory", harness.peak_gib(), "GiB")


def _step_flops(setup: Setup, trainer: Trainer) -> float:
    """Return the floating-point operations of a training step per picture."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Anywhere()  # type: ignore[assignment]
    with counter:
        train_ours(trainer, networks.pictures(setup, 2))()
    return counter.get_total_flops() / 2


def encode_diffusers(setup: Setup) -> Iterator[Figure]:
    """Measure diffusers' VQModel with the same weights under autocast, from pictures on the device."""
    from diffusers import VQModel

    model, work = networks.network(setup), setup.work / "vqgan-diffusers"
    if not (work / "theirs").exists():
        save_model(work / "ours", TrainConfig(model=model.config), model)
        export_diffusers(work / "ours", work / "theirs")
    pictures = networks.pictures(setup, setup.pick(_BATCH, 2))
    codes = networks.tokenizer(model, setup.device).encode(pictures)
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        theirs: Any = VQModel.from_pretrained(work / "theirs").to(setup.device, memory_format=layout).eval()
        x_BCHW = to_input(pictures, model.config, setup.device).contiguous(memory_format=layout)

        @torch.inference_mode()
        def way(theirs: Any = theirs, x_BCHW: Tensor = x_BCHW) -> Tensor:
            with torch.autocast(setup.device.type, dtype=torch.bfloat16):
                found: Tensor = theirs.quantize(theirs.encode(x_BCHW).latents)[2][2]
            return found

        rate = len(pictures) / _median_seconds(way)
        yield Figure(f"diffusers, bfloat16, {name}", rate, "images/s")
        equal = share(way().cpu().numpy().ravel(), codes.ravel())
        yield Figure(f"diffusers, bfloat16, {name}: codes equal to our float32", equal, "%")
