"""Training steps of GPT-2 on image codes, compared with rivals: `python -m priorbench train-prior`.

In each round each contender runs in a separate process, so peak memory and allocator settings are its own; ratios are
taken within a round. The C library's allocator has the settings of this project, or its defaults for a rival "as it
is". Codes are random. Before anything is timed, the losses of taming, transformers and this project on one batch are
compared at the same weights.
"""

import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.compat import prior_from_mingpt
from codeprior.config import ModelConfig, SequenceSpec, TrainConfig
from codeprior.data import Batch
from codeprior.model import Prior
from codeprior.optim import make_optimizer
from codeprior.speed import resolve_precision, step_flops_per_sequence
from codeprior.trainer import SequenceLoss, train_step
from priorbench import harness, peers, processes
from priorbench.harness import RESULTS
from priorbench.nanogpt import NanoGPT
from runkit.machine import ALLOCATOR
from vqgan.config import ModelConfig as VqganConfig

_CODEBOOK = 1024
_VQGAN = VqganConfig()


class Size(NamedTuple):
    """A transformer and its batch."""

    layers: int
    heads: int
    width: int
    codes: int
    """Per sequence, a multiple of 16."""
    batch: int


SIZES = {
    "cpu": {"GPT-2 small": Size(12, 12, 768, 256, 4)},
    "cuda": {"GPT-2 small": Size(12, 12, 768, 256, 64), "GPT-2 medium, 512 codes": Size(24, 16, 1024, 512, 32)},
}
_AS_IS = ", as it is"
_NANO, _PIXELS = "nanoGPT, compiled", "taming, pixels encoded in the step"
_TRANSFORMERS, _MINGPT = "transformers", "taming's minGPT"
Step = Callable[[], Any]
Attention = Literal["sdpa", "xformers", "math"]


def _codes(size: Size, start: int) -> tuple[Tensor, Tensor]:
    """Inputs with a start token and targets of a transformer over one vocabulary, both [B, T]."""
    codes = torch.randint(_CODEBOOK, (size.batch, size.codes), device=harness.device())
    return F.pad(codes[:, :-1], (1, 0), value=start), codes


def nanogpt(size: Size, precision: str, compiled: bool) -> Step:
    """The training step of nanoGPT: fused AdamW, clipping by torch's function."""
    with torch.device(harness.device()):
        model: nn.Module = NanoGPT(_CODEBOOK, size.codes, layers=size.layers, heads=size.heads, width=size.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if compiled:
        model.compile()
    inputs, codes = _codes(size, _CODEBOOK)
    return _plain_step(model, lambda: model(inputs, codes), optimizer, precision)


def transformers(size: Size, precision: str, compiled: bool) -> Step:
    """GPT2LMHeadModel with SDPA, no dropout; fused AdamW and clipping, the defaults of its Trainer."""
    with torch.device(harness.device()):
        model = peers.gpt2(_CODEBOOK, size.codes, layers=size.layers, heads=size.heads, width=size.width)
    model.config.pad_token_id = None  # else every step looks for it in the batch, and waits for the GPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, codes = _codes(size, 0)

    def loss() -> Tensor:
        logits = model(inputs, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())

    return _plain_step(model, loss, optimizer, precision)


def _plain_step(
    model: nn.Module, loss_of_batch: Callable[[], Tensor], optimizer: torch.optim.Optimizer, precision: str
) -> Step:
    autocast = harness.autocast(precision)

    def step() -> None:
        with autocast:
            loss = loss_of_batch()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _mingpt(size: Size) -> Any:
    sizes = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.width}
    return peers.mingpt().GPT(_CODEBOOK, size.codes, **sizes)


def _net2net(size: Size) -> Any:
    """The published Net2NetTransformer: minGPT over the codes of a VQGAN, without a condition."""
    vqgan, gpt = peers.taming_vqgan(_VQGAN).eval(), _mingpt(size)
    net = importlib.import_module("taming.models.cond_transformer")
    permuter = importlib.import_module("taming.modules.transformer.permuter")
    made = {
        "vqgan": lambda: vqgan,
        "gpt": lambda: gpt,
        "taming.modules.transformer.permuter.Identity": permuter.Identity,
    }
    vars(net)["instantiate_from_config"] = lambda config: made[config["target"]]()
    model = net.Net2NetTransformer(
        {"target": "gpt"}, {"target": "vqgan"}, "__is_unconditional__", unconditional=True
    ).to(harness.device())
    model.learning_rate = 4.5e-6
    return model


def taming_codes(size: Size, precision: str, compiled: bool) -> Step:
    """The training step of taming's transformer on codes, which its own trainer does not support."""
    model = _net2net(size)
    optimizer = model.configure_optimizers()
    inputs, codes = _codes(size, 0)

    def loss() -> Tensor:
        return F.cross_entropy(model.transformer(inputs)[0].flatten(0, 1), codes.flatten())

    return _taming_step(loss, optimizer, precision)


def taming_pixels(size: Size, precision: str, compiled: bool) -> Step:
    """The training step of taming: VQGAN encodes the pictures, minGPT is trained on the codes."""
    model = _net2net(size)
    side = _VQGAN.resolution
    pictures = torch.rand(size.batch, side, side, 3, device=harness.device()) * 2 - 1
    return _taming_step(lambda: model.training_step({"image": pictures}, 0), model.configure_optimizers(), precision)


def _taming_step(loss_of_batch: Callable[[], Tensor], optimizer: torch.optim.Optimizer, precision: str) -> Step:
    autocast = harness.autocast(precision)

    def step() -> None:
        with autocast:
            loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ours(size: Size, precision: str, compiled: bool, attention: Attention = "sdpa", by_block: bool = False) -> Step:
    """The training step of this project on a batch in main memory; compiled as a whole, or one block for all."""
    device = torch.device(harness.device())
    with device:  # a CPU draws the weights of large priors slowly
        prior = _prior(size, attention)
    loss, optimizer = SequenceLoss(prior), make_optimizer(prior, TrainConfig())
    if compiled:
        for part in prior.blocks if by_block else [loss]:
            part.compile()
    batch = Batch(
        condition_BC=torch.zeros(size.batch, 1, dtype=torch.int64),
        codes_BT=torch.randint(_CODEBOOK, (size.batch, size.codes)),
    )
    autocast = harness.autocast(precision)

    def step() -> None:
        parts = [batch.to(device)]
        train_step(loss, optimizer, parts, learning_rate=1e-4, grad_clip=1.0, autocast=autocast)

    return step


def step_flops(size: Size) -> float:
    """FLOPs that a training step of a transformer needs."""
    with torch.device("meta"):
        return step_flops_per_sequence(_prior(size)) * size.batch


def _sequence(size: Size) -> SequenceSpec:
    return SequenceSpec(
        height=size.codes // 16, width=16, codebook_size=_CODEBOOK, order="row_major", fingerprint="benchmark"
    )


def _prior(size: Size, attention: Attention = "sdpa") -> Prior:
    config = ModelConfig(
        n_layer=size.layers, n_head=size.heads, n_embd=size.width, position="learned", attention=attention
    )
    return Prior(config, _sequence(size))


# Name → (function that builds its step, compiled, with the allocator settings of this project, required modules).
CONTENDERS: dict[str, tuple[Callable[[Size, str, bool], Step], bool, bool, tuple[str, ...]]] = {
    _NANO + _AS_IS: (nanogpt, True, False, ()),
    _NANO: (nanogpt, True, True, ()),
    _TRANSFORMERS: (transformers, False, True, ("transformers",)),
    _MINGPT: (taming_codes, False, True, ("taming", "einops", "transformers")),
    _PIXELS + _AS_IS: (taming_pixels, False, False, ("taming", "einops", "transformers")),
    _PIXELS: (taming_pixels, False, True, ("taming", "einops", "transformers")),
    "imagepriors": (ours, False, True, ()),
    "imagepriors, compiled": (ours, True, True, ()),
}


def contenders(model: str) -> list[str]:
    """Contenders at a size: a GPU has one allocator setting, and sizes after the first have fewer contenders."""
    found = []
    for name, (_, _, allocator, _) in CONTENDERS.items():
        if harness.device() == "cuda" and not allocator:
            continue
        if model == next(iter(SIZES[harness.device()])) or name.startswith((_NANO, _TRANSFORMERS, "imagepriors")):
            found.append(name)
    return found


def measure(name: str, model: str, precision: str) -> dict[str, float]:
    """Figures of one contender in one round."""
    torch.manual_seed(0)
    make, compiled, _, _ = CONTENDERS[name]
    step = make(SIZES[harness.device()][model], precision, compiled)
    seconds = harness.median_seconds(step, warm=2)  # the first call compiles, the second allocates
    peak_gib = harness.peak_gib()
    return {"s": seconds, "peak_gib": peak_gib, "floor": harness.flops_floor(precision)}


@torch.no_grad()
def losses(model: str) -> dict[str, float]:
    """Mean loss of one batch of codes at the same weights, in float32, of taming, transformers and this project."""
    size, device = SIZES[harness.device()][model], harness.device()
    torch.manual_seed(0)
    peer = _mingpt(size).eval()
    inputs, codes = (tensor[:4].to(device) for tensor in _codes(size, 0))
    prior = prior_from_mingpt(peer.state_dict(), n_head=size.heads, sequence=_sequence(size), condition_tokens=[0])
    their_logits = {
        _MINGPT: peer.to(device)(inputs)[0],
        _TRANSFORMERS: peers.gpt2_from_mingpt(peer.cpu(), size.heads).to(device)(inputs).logits,
    }
    found = {name: float(F.cross_entropy(x.flatten(0, 1), codes.flatten())) for name, x in their_logits.items()}
    start = torch.zeros(len(codes), 1, dtype=torch.int64, device=device)
    return found | {"imagepriors": float(prior.to(device).nll(start, codes).mean())}


def _agreement(model: str) -> str:
    """Describe the losses at the same weights; raises ContenderError if they differ."""
    found = processes.spawn("train_prior", "losses", model)
    if max(found.values()) - min(found.values()) > 1e-3:
        raise processes.ContenderError(
            f"at the same weights the losses differ, so nothing here can be compared: {found}"
        )
    listed = ", ".join(f"{name} {value:.5f}" for name, value in found.items())
    return f"At the same weights one batch's losses are equal: {listed}. "


def run(repeats: int, *, out: Path = RESULTS) -> str:
    """Measure all contenders and report.

    Raises:
        InputError: a rival is not installed.
    """
    device = harness.device()
    first, *_ = SIZES[device]
    needed = sorted({module for name in contenders(first) for module in CONTENDERS[name][3]})
    peers.require(*needed)
    agreement = _agreement(first) if needed else ""
    native = resolve_precision("auto", torch.device(device))  # bfloat16 is measured only where it is faster
    precisions = sorted({native, "float32"} if device == "cpu" else {native}, reverse=True)
    groups = itertools.product(SIZES[device], precisions)
    packages = peers.packages(module for module in needed if module != "einops")
    text = f"`auto` picks {native} here; {_sizes()}. {agreement}"
    return harness.run_rounds(
        "bench train-prior",
        [(name, model, str(precision)) for model, precision in groups for name in contenders(model)],
        _measure,
        lambda found: _report(found, text, packages, out),
        repeats,
    )


def _measure(contender: tuple[str, str, str]) -> dict[str, Any]:
    env = ALLOCATOR if CONTENDERS[contender[0]][2] else {}
    found: dict[str, Any] = processes.spawn("train_prior", "measure", *contender, env=env)
    return found


def _sizes() -> str:
    sizes = SIZES[harness.device()].items()
    listed = ", ".join(f"{model}: {size.batch} × {size.codes} codes" for model, size in sizes)
    return f"{listed} of {_CODEBOOK}"


_RIVALS = (_NANO, _NANO + _AS_IS, _TRANSFORMERS, _MINGPT, _PIXELS, _PIXELS + _AS_IS)


def table(figures: dict[str, dict[str, harness.Rounds]], device: str) -> harness.Table:
    """Table of times, ratios within a size and precision, and MFU.

    Args:
        figures: `MODEL, PRECISION` → contender → rounds.
        device: Device of the measurement: cpu or cuda.
    """
    rows: list[list[str]] = []
    headlines: dict[str, str] = {}
    for group, founds in figures.items():
        model, _, precision = group.rpartition(", ")
        size, flops = SIZES[device][model], step_flops(SIZES[device][model])
        same = (
            found for other, of_group in figures.items() if other.endswith(precision) for found in of_group.values()
        )
        floor = harness.best_floor(same)
        seconds = harness.values_of(founds, "s")
        for name, found in founds.items():
            if name not in seconds:
                rows.append([name, model, precision, harness.failure(found)])
                continue
            s, gib = (harness.median([of_round[figure] for of_round in found]) for figure in ("s", "peak_gib"))
            over = {
                rival: harness.ratio(seconds[rival], seconds[name]) if rival in seconds else "" for rival in _RIVALS
            }
            rows.append([
                name, model, precision, f"{s:.3g}", f"{size.batch * size.codes / s:.4g}", *over.values(),
                f"{flops / s / floor:.0%}", f"{gib:.1f}",
            ])  # fmt: skip
            if name.startswith("imagepriors"):
                who = name.removeprefix("imagepriors").removeprefix(", ")
                what = f"Training step of {model}, {precision}{', ' * bool(who)}{who}"
                headlined = (_NANO,) if who else _RIVALS
                headlines |= {f"{what}, over {rival}": over[rival] for rival in headlined if over[rival]}
    columns = [
        "", "model", "precision", "s/step", "tokens/s", *(f"× {rival}" for rival in _RIVALS), "MFU", "peak GiB",
    ]  # fmt: skip
    return harness.table_of(columns, rows, headlines)


def _report(found: dict[tuple[str, str, str], harness.Rounds], setup: str, packages: list[str], out: Path) -> str:
    figures: dict[str, dict[str, harness.Rounds]] = {}
    for (name, model, precision), of_one in found.items():
        figures.setdefault(f"{model}, {precision}", {})[name] = of_one
    count = max(map(len, found.values()))
    return harness.save(
        out, "train-prior", table(figures, harness.device()),
        command=harness.command("train-prior", count),
        text=f"One step (forward, backward, clipping, AdamW); {setup}Each has its own step and optimizer; model and "
        "step of nanoGPT are reimplemented. As it is: with the default allocator settings of the C library; all "
        "others have those of imagepriors. × is tokens per second over the rival's in the same round, median and "
        f"range over {harness.rounds(count)}, each in fresh processes. MFU: the FLOPs that the transformer needs "
        "(attention not halved, encoding not counted) over those of a large matrix product in the same precision, "
        "the fastest of all processes of the run.",
        figures=figures,
        packages=["torch", *packages],
    )  # fmt: skip


if __name__ == "__main__":
    jobs: dict[str, Callable[..., dict[str, float]]] = {"measure": measure, "losses": losses}
    processes.write_answer(lambda: jobs[sys.argv[1]](*sys.argv[2:]))
