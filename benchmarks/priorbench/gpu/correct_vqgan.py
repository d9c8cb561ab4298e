"""Whether stage 1 computes on this device what it computes on the CPU, and the same when it computes again."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codeshards.config import TokenizeConfig
from codeshards.format.manifest import Sidecar
from codeshards.format.plan import PlannedShard
from codeshards.format.schema import GridSpec, ShardSpec
from codeshards.job.encode import ShardTask, WorkerResources, encode_shard
from priorbench.gpu import networks
from priorbench.gpu.check import Figure, Setup
from priorbench.gpu.correct_prior import distance
from priorbench.gpu.networks import Array, own_arithmetic, share
from priorbench.train_vqgan import our_trainer, prepare
from runkit.checkpoints import save_checkpoint
from vqgan.checkpoint import run_folder
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.modalities import to_input
from vqgan.model import build_model
from vqgan.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vqgan.trainer import Trainer

_CPU = torch.device("cpu")
_FLIPPED = 0.999
"""Least share of equal codes in float32: sums are in another order, and a latent may be between two codes."""
_FLIPPED_SMALL = 0.99
"""The same where a few hundred codes are compared, of which one or two may change."""
_FLIPPED_LOW = 0.98
"""The same in bfloat16, where a sum in another order changes roundings, and fewer codes than all roundings do."""
_BFLOAT16 = 0.9
"""Least share of codes in bfloat16 that are those in float32: 94 to 98% on CPUs, and half with distances in it."""
_TF32_APART = 0.005
"""Largest mean difference of decoded pictures, as a share of the range, with the 10 bits of TF32."""
_OTHERS: dict[str, dict[str, Any]] = {
    "l2": {"quantizer": "l2", "embed_dim": 8},
    "simvq": {"quantizer": "simvq"},
    "ibq": {"quantizer": "ibq"},
    "gumbel": {"quantizer": "gumbel"},
    "fsq": {"quantizer": "fsq", "levels": (8, 5, 5, 5), "embed_dim": 4, "codebook_size": 1000},
    "lfq": {"quantizer": "lfq", "embed_dim": 10, "codebook_size": 1024},
    "bsq": {"quantizer": "bsq", "embed_dim": 10, "codebook_size": 1024},
    "maps of 8 labels": {"modality": "segmentation", "n_labels": 8},
    "depth": {"modality": "depth"},
    "a patch of 4": {"patch": 4, "ch_mult": (1,), "halvings": 1},
}
"""Name → fields of a small tokenizer."""


def tokenizer_codes(setup: Setup) -> Iterator[Figure]:
    """Compare codes and decoded pictures with those of the CPU, in both precisions, and other quantisers' too."""
    model, pictures = networks.network(setup), networks.pictures(setup, 8)
    name, cpu = networks.name(setup), networks.tokenizer(model, _CPU)
    exact = networks.tokenizer(model, setup.device)
    half = networks.tokenizer(model, setup.device, "bfloat16")
    codes, low = exact.encode(pictures), half.encode(pictures)
    expected = cpu.encode(pictures)
    yield Figure(f"{name}: codes used", len(np.unique(expected)), at_least=setup.pick(100, 10))
    yield Figure(f"{name}, float32: codes equal to the CPU's", share(codes, expected), "%", at_least=_FLIPPED)
    yield Figure(f"{name}, bfloat16: codes equal to float32", share(low, codes), "%", at_least=_BFLOAT16)
    for precision, ours, least in (("float32", exact, _FLIPPED), ("bfloat16", half, _FLIPPED_LOW)):
        again, moved = _repeated(ours, pictures)
        yield Figure(f"{name}, {precision}: codes equal when encoded again", again, "%", at_least=1)
        yield Figure(f"{name}, {precision}: codes equal in another place", moved, "%", at_least=least)
    yield from _scales(exact, cpu, pictures)
    decoded, shown = cpu.decode(expected), exact.decode(expected)
    yield Figure(f"{name}, float32: pictures apart", _apart(shown, decoded), "%", at_most=_TF32_APART)
    # bfloat16 has three bits less than TF32.
    yield Figure(f"{name}, bfloat16: pictures apart", _apart(half.decode(expected), decoded), "%", at_most=0.04)
    yield from _others(setup)


def _repeated(ours: Tokenizer, pictures: list[Array]) -> tuple[float, float]:
    """Return the shares of codes that are equal when pictures are encoded again, and in the opposite order."""
    with own_arithmetic():
        torch.backends.cudnn.deterministic = True  # as in the job
        first, again, turned = (ours.encode(batch) for batch in (pictures, pictures, pictures[::-1]))
    return share(again, first), share(turned[::-1], first)


def _scales(ours: Tokenizer, cpu: Tokenizer, pictures: list[Array]) -> Iterator[Figure]:
    sides = [side for side in (1, 2, 4, 8) if side < ours.config.grid[0]]
    codes, *scales = ours.encode_async(pictures, sides)()
    # Exactly, because they are a function of the codes in float64.
    expected = [cpu.rescale(codes, side) for side in sides]
    again = [ours.rescale(codes, side) for side in sides]
    for what, found in (("encoded with the picture", scales), ("made from its codes", again)):
        equal = share(np.concatenate([s.ravel() for s in found]), np.concatenate([s.ravel() for s in expected]))
        yield Figure(f"coarser scales, {what}: codes equal to the CPU's", equal, "%", at_least=1)


def _others(setup: Setup) -> Iterator[Figure]:
    for name, fields in _OTHERS.items():
        config = dataclasses.replace(networks.TINY, **fields)
        torch.manual_seed(0)
        model = build_model(config).eval()
        cpu, ours = networks.tokenizer(model, _CPU), networks.tokenizer(model, setup.device)
        pictures = _random_pictures(config, 8)
        expected = cpu.encode(pictures)
        equal, used = share(ours.encode(pictures), expected), len(np.unique(expected))
        apart = _apart(ours.decode(expected), cpu.decode(expected), config.modality == "segmentation")
        yield Figure(f"{name}: codes equal to the CPU's, {used} used", equal, "%", at_least=_FLIPPED_SMALL)
        most = 0.03 if config.modality == "segmentation" else _TF32_APART  # labels whose logits are close may change
        yield Figure(f"{name}: pictures apart", apart, "%", at_most=most)


def _random_pictures(config: ModelConfig, count: int) -> list[Array]:
    """Return smooth pictures of a modality: random ones have nearly the same latents everywhere."""
    side, rng = config.resolution, np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, config.channels, 4, 4)))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1).numpy()
    if config.modality == "segmentation":
        return list(smooth.argmax(1).astype(np.uint8))
    if config.modality == "depth":
        return list(smooth[:, 0].astype(np.float32))
    return list((255 * smooth).astype(np.uint8).transpose(0, 2, 3, 1))


def _apart(found: Array, expected: Array, labels: bool = False) -> float:
    """Return the mean difference as a share of the range, or of labels the share that differs."""
    if labels:
        return float(np.mean(found != expected))
    scale = 1.0 if found.dtype.kind == "f" else 255.0
    return float(np.mean(np.abs(found.astype(np.float64) - expected))) / scale


class _Steps(NamedTuple):
    """What some training steps did."""

    terms: list[dict[str, float]]
    """Loss terms of each step."""
    gradients: list[Tensor]
    """Of the first step: those of the autoencoder and of the discriminator, flat."""
    update: Tensor
    """Change of all weights by the steps, flat."""


def vqgan_losses(setup: Setup) -> Iterator[Figure]:
    """Compare losses, gradients and updates of the VQGAN with those of the CPU, and bfloat16 with float32."""
    config = networks.config(setup)
    config = config.at_resolution(setup.pick(64, config.resolution))
    prepare(setup.work / "vqgan-losses", diffusers=False, config=config)
    pictures = _random_pictures(config, 2)
    with own_arithmetic(tf32=False):
        cpu = _take_steps(setup, "cpu", "float32", pictures)
        ours = _take_steps(setup, setup.device.type, "float32", pictures)
        half = _take_steps(setup, setup.device.type, "bfloat16", pictures)
    # Convolutions of other shapes of tiles sum in another order; ReLU, pooling and hinge change side at some values.
    # Noise of 5e-6 in all convolutions of a CPU gives 7e-4, 0.015 (Adam's first updates are signs), 0.003 and 0.06.
    yield from _compare("float32 and the CPU", ours, cpu, losses=5e-3, later=0.1, gradients=0.02, updates=0.3)
    # Some codes change in bfloat16, and with them what the decoder and the discriminator see; on CPUs a loss is up to
    # 7% apart and gradients up to 0.65. Gradients that have nothing in common are 1.4 apart.
    yield from _compare("bfloat16 and float32", half, ours, losses=0.2, gradients=0.9)


def _take_steps(setup: Setup, device: str, precision: str, pictures: list[Array]) -> _Steps:
    trainer = our_trainer(setup.work / "vqgan-losses", precision, len(pictures), device=device)
    before, gradients = _weights(trainer), []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append(_flat(p.grad for p in parameters))

    for optimizer in (trainer.optimizer, trainer.disc_optimizer):
        optimizer.register_step_pre_hook(record)
    terms = [trainer.step(to_input(pictures, trainer.config.model, trainer.device)) for _ in range(3)]
    return _Steps(terms, gradients[:2], _weights(trainer) - before)


def _weights(trainer: Trainer) -> Tensor:
    return _flat(itertools.chain(trainer.model.parameters(), trainer.disc.parameters()))


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().cpu().flatten() for tensor in tensors])


def _compare(
    what: str,
    found: _Steps,
    expected: _Steps,
    *,
    losses: float,
    gradients: float,
    later: float | None = None,
    updates: float | None = None,
) -> Iterator[Figure]:
    """Yield how far apart the first steps are and, where limits are given, the third steps and the updates."""
    for step, most in ((0, losses), (2, later)):
        if most is None:
            continue
        apart = {name: _relative(value, found.terms[step][name]) for name, value in expected.terms[step].items()}
        worst = max(apart, key=lambda name: apart[name])
        yield Figure(f"{what}: losses of step {step + 1} apart, most {worst}", apart[worst], "%", at_most=most)
    for part, ours, theirs in zip(("autoencoder", "discriminator"), found.gradients, expected.gradients, strict=True):
        yield Figure(f"{what}: gradients of the {part} apart", distance([ours], [theirs]), "%", at_most=gradients)
    if updates:
        yield Figure(f"{what}: updates apart", distance([found.update], [expected.update]), "%", at_most=updates)


def _relative(value: float, other: float) -> float:
    # The mean of a discriminator's logits may be near zero; all terms are of the order of one.
    return abs(value - other) / max(abs(value), 0.1)


def vqgan_resume(setup: Setup) -> Iterator[Figure]:
    """Save a run, continue it, and continue it again from its checkpoint."""
    from vqgan.trainer import Trainer

    config = setup.pick(ModelConfig(ch=64).at_resolution(64), networks.TINY)
    # All that has a state: moments, the average of the weights, the moving codebook, and random restarts of codes.
    loss = LossConfig(perceptual="none", disc_start=0, codebook_decay=0.99)
    settings = TrainConfig(
        model=config, loss=loss, batch_size=4, ema_decay=0.99, restart_every=2, device=setup.device.type  # type: ignore[arg-type]
    )  # fmt: skip
    whole, run = Trainer(settings), setup.work / "vqgan-resume"
    x_BCHW = to_input(_random_pictures(config, 4), config)
    for _ in range(3):
        whole.step(x_BCHW)
    saved = {name: tensor.clone() for name, tensor in _tensors(whole).items()}
    folder = save_checkpoint(run, whole.step_done, keep=1, **whole.state())
    expected = [whole.step(x_BCHW) for _ in range(3)]
    del whole
    resumed = Trainer(dataclasses.replace(settings, seed=1))
    resumed.config = settings
    resumed.check(folder, run_folder(run))
    resumed.restore(folder)
    found = _tensors(resumed)
    differ = sum(not torch.equal(tensor, found[name]) for name, tensor in saved.items())
    yield Figure("tensors of the state that differ", differ, at_most=0)
    yield Figure("moments in another layout than their weights", _misplaced(resumed), at_most=0)
    after = [resumed.step(x_BCHW) for _ in range(3)]
    apart = max(_relative(a[key], b[key]) for a, b in zip(expected, after, strict=True) for key in a)
    # A GPU adds gradients in an order that changes from run to run. Noise of 1e-6 in convolutions gives 0.018 on a CPU.
    yield Figure("losses of the next steps apart", apart, "%", at_most=0 if setup.device.type == "cpu" else 0.1)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.state()
    return {**state["weights"], **state["tensors"]}


def _misplaced(trainer: Trainer) -> int:
    """Return the number of moments that the fused kernel would read in a wrong order, or on another device."""
    return sum(
        moment.device != weight.device or (moment.shape == weight.shape and moment.stride() != weight.stride())
        for optimizer in (trainer.optimizer, trainer.disc_optimizer)
        for weight, state in optimizer.state.items()
        for moment in state.values()
    )


def shards_again(setup: Setup) -> Iterator[Figure]:
    """Encode two shards, again, and both at once by threads as a worker of the job does; compare the files."""
    rows, model = setup.pick(256, 6), networks.network(setup)
    config = TokenizeConfig(batch_size=setup.pick(64, 4), precision="bfloat16", scales=(1, 2))
    height, width = model.config.grid
    grid = GridSpec(height=height, width=width, codebook_size=model.config.codebook_size, fingerprint="none")
    spec, samples = ShardSpec(image=grid, scales=config.scales), networks.split(setup, 2 * rows)
    ours, resources = networks.tokenizer(model, setup.device, "bfloat16"), WorkerResources(decode_threads=4)

    def encode(index: int, folder: str) -> Sidecar:
        start, stop = index * rows, (index + 1) * rows
        shard = PlannedShard(split="train", index=index, start=start, stop=stop)
        task = ShardTask(shard=shard, plan_hash="none", samples=samples.subset(range(start, stop)))
        place = setup.work / "vqgan-shards" / folder
        return encode_shard(
            task, tokenizers={"image": ours}, spec=spec, config=config, out=place, resources=resources
        )  # fmt: skip

    with own_arithmetic(), ThreadPoolExecutor(2) as pool:
        first, again = ([encode(index, folder) for index in range(2)] for folder in ("first", "again"))
        at_once = list(pool.map(encode, range(2), ("at once", "at once")))
    resources.decode_pool.shutdown()
    yield Figure("rows", sum(sidecar.rows for sidecar in first), at_least=2 * rows)
    yield Figure("distinct files", len({_hashes(sidecar) for sidecar in first}), at_least=2)
    yield Figure("shards that differ when encoded again", _unequal(again, first), at_most=0)
    yield Figure("shards that differ when encoded at once", _unequal(at_once, first), at_most=0)


def _hashes(sidecar: Sidecar) -> tuple[str, ...]:
    return tuple(record.sha256 for record in sidecar.files.values())


def _unequal(found: Sequence[Sidecar], expected: Sequence[Sidecar]) -> int:
    return sum(_hashes(a) != _hashes(b) for a, b in zip(found, expected, strict=True))
