"""Training steps of a prior on codes against its rivals: `imagepriors bench train-prior`.

GPT-2 small on 256 codes of 1024; on a GPU GPT-2 medium on 512. Each contender runs in a process of its own, all of them
in turn in every round. The C library's allocator has our settings (those of every command of ours), or its own for the
rivals as their users run them. Random weights, random codes.
"""

import functools
import importlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from codeprior.config import ModelConfig, SequenceSpec, TrainConfig
from codeprior.data import Batch
from codeprior.model import Prior
from codeprior.optim import make_autocast, make_optimizer, resolve_precision
from codeprior.released import prior_from_mingpt
from codeprior.speed import step_flops_per_sequence
from codeprior.trainer import SequenceLoss, train_step
from codeshards.pool import ALLOCATOR
from imagepriors.benchmarks import harness, peers

_ON_GPU = harness.device() == "cuda"
_MODEL: dict[str, Any] = (
    {"n_layer": 24, "n_head": 16, "n_embd": 1024} if _ON_GPU else {"n_layer": 12, "n_head": 12, "n_embd": 768}
)
_WIDTH, _HEADS, _LAYERS = _MODEL["n_embd"], _MODEL["n_head"], _MODEL["n_layer"]
_GRID = (16, 32) if _ON_GPU else (16, 16)
_TOKENS, _CODEBOOK = _GRID[0] * _GRID[1], 1024
_BATCH = 64 if _ON_GPU else 4
_NANO, _PIXELS, _AS_IS, _OURS = "nanoGPT, compiled", "taming, pixels encoded in the step", ", as it is", "imagepriors"
_UNCOUNTED, _COUNTED = 2, 3
"""Steps of a process: the first compiles, the second allocates."""
Step = Callable[[], Any]
Precision = Any


class NanoBlock(nn.Module):
    """The block of a plain GPT-2 as nanoGPT writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Residual attention, residual MLP."""
        B, S, D = x.shape
        q, k, v = (part.view(B, S, _HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(D, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(B, S, D))
        result: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return result


class NanoGPT(nn.Module):
    """GPT-2 over one vocabulary of codes and a start token, head tied to the embedding, loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(_CODEBOOK + 1, _WIDTH), nn.Embedding(_TOKENS, _WIDTH)
        self.blocks = nn.ModuleList(NanoBlock() for _ in range(_LAYERS))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _CODEBOOK + 1, bias=False)
        self.apply(self._start)
        self.tokens.weight = self.head.weight

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        x = self.tokens(inputs) + self.places(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)


def _codes() -> Tensor:
    return torch.randint(_CODEBOOK, (_BATCH, _TOKENS))


def _sequence() -> SequenceSpec:
    height, width = _GRID
    return SequenceSpec(height=height, width=width, codebook_size=_CODEBOOK, order="row_major", fingerprint="none")


def _plain_step(model: nn.Module, loss_of: Callable[[], Tensor], precision: Precision) -> Step:
    """A step as nanoGPT takes it: fused AdamW, clipping by torch's function."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    autocast = make_autocast(torch.device(harness.device()), precision)

    def step() -> None:
        with autocast:
            loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(precision: Precision) -> Step:
    """nanoGPT's model, compiled."""
    model: nn.Module = NanoGPT().to(harness.device())
    model.compile()
    codes = _codes().to(harness.device())
    inputs = F.pad(codes[:, :-1], (1, 0), value=_CODEBOOK)
    return _plain_step(model, lambda: model(inputs, codes), precision)


def _mingpt() -> Any:
    torch.manual_seed(0)
    return peers.mingpt().GPT(_CODEBOOK, _TOKENS, **_MODEL).to(harness.device())


def mingpt(precision: Precision) -> Step:
    """The transformer of taming-transformers on codes, with nanoGPT's optimizer."""
    model, codes = _mingpt(), _codes().to(harness.device())
    inputs = F.pad(codes[:, :-1], (1, 0))
    return _plain_step(model, lambda: F.cross_entropy(model(inputs)[0].flatten(0, 1), codes.flatten()), precision)


def hugging_face(precision: Precision) -> Step:
    """GPT2LMHeadModel of transformers, attention by SDPA, with nanoGPT's optimizer."""
    model = peers.gpt2_from_mingpt(_mingpt(), _HEADS).to(harness.device()).train()
    codes = _codes().to(harness.device())
    inputs = F.pad(codes[:, :-1], (1, 0))

    def loss() -> Tensor:
        logits = model(inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    return _plain_step(model, loss, precision)


def ours(precision: Precision, *, compiled: bool = False, attention: Any = "sdpa") -> Step:
    """Our train step on a batch in main memory."""
    place = torch.device(harness.device())
    prior = Prior(ModelConfig(attention=attention, **_MODEL), _sequence()).to(place)
    loss, optimizer = SequenceLoss(prior), make_optimizer(prior, TrainConfig())
    if compiled:
        loss.compile()
    batch = Batch(condition_BC=torch.zeros(_BATCH, 1, dtype=torch.int64), codes_BT=_codes())
    autocast = make_autocast(place, precision)

    def step() -> None:
        train_step(loss, optimizer, [batch.to(place)], learning_rate=1e-4, grad_clip=1.0, autocast=autocast)

    return step


def taming_pixels(precision: Precision) -> Step:
    """The published Net2NetTransformer's training step: VQGAN encodes the pictures, minGPT is trained on the codes."""
    device = harness.device()
    vqgan = peers.taming().VQModel(peers.F16, lossconfig={}, n_embed=_CODEBOOK, embed_dim=256).eval()
    gpt = peers.mingpt().GPT(_CODEBOOK, _TOKENS, **_MODEL)
    net: Any = importlib.import_module("taming.models.cond_transformer")
    permuter = importlib.import_module("taming.modules.transformer.permuter")
    made = {
        "vqgan": lambda: vqgan,
        "gpt": lambda: gpt,
        "taming.modules.transformer.permuter.Identity": permuter.Identity,
    }
    net.instantiate_from_config = lambda config: made[config["target"]]()
    model = net.Net2NetTransformer(
        {"target": "gpt"}, {"target": "vqgan"}, "__is_unconditional__", unconditional=True
    ).to(device)
    model.learning_rate = 4.5e-6
    optimizer = model.configure_optimizers()
    pictures = torch.rand(_BATCH, 16 * _GRID[0], 16 * _GRID[1], 3, device=device) * 2 - 1

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model.training_step({"image": pictures}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


# Name → (what makes its step, with our allocator settings).
CONTENDERS: dict[str, tuple[Callable[[Precision], Step], bool]] = {
    _NANO + _AS_IS: (nanogpt, False),
    _NANO: (nanogpt, True),
    "transformers GPT-2": (hugging_face, True),
    "taming minGPT": (mingpt, True),
    _PIXELS + _AS_IS: (taming_pixels, False),
    _PIXELS: (taming_pixels, True),
    _OURS: (ours, True),
    _OURS + ", compiled": (functools.partial(ours, compiled=True), True),
}
if _ON_GPU and importlib.util.find_spec("xformers"):
    CONTENDERS[_OURS + ", xformers"] = (functools.partial(ours, attention="xformers"), True)


def contend(name: str, precision: Precision) -> dict[str, float]:
    """Seconds of a step of one contender in this process, the most memory it held, and what products could reach."""
    torch.manual_seed(0)
    step = CONTENDERS[name][0](precision)
    times = [harness.seconds(step) for _ in range(_UNCOUNTED + _COUNTED)][_UNCOUNTED:]
    found = {"seconds": statistics.median(times), "peak_gib": harness.peak_gib()}
    return {**found, "flops_floor": harness.flops_floor(precision)}


@torch.no_grad()
def difference() -> float:
    """The largest difference of logits between minGPT, transformers' GPT-2 and ours at the same weights."""
    peer = _mingpt().eval()
    prior = prior_from_mingpt(peer.state_dict(), n_head=_HEADS, sequence=_sequence(), condition_tokens=[0])
    codes = _codes().to(harness.device())
    exact = peer(F.pad(codes[:, :-1], (1, 0)))[0]
    own = prior.to(harness.device())(torch.zeros(_BATCH, 1, dtype=torch.int64, device=codes.device), codes[:, :-1])
    theirs = peers.gpt2_from_mingpt(peer, _HEADS).to(harness.device())(F.pad(codes[:, :-1], (1, 0))).logits
    return max(float((other - exact).abs().max()) for other in (own, theirs))


def run(repeats: int = 3, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders in turns, write the report, and return it as Markdown."""
    harness.need({"taming": "taming-transformers-rom1504==0.0.6", "transformers": "transformers"})
    gap = difference()
    native = resolve_precision(TrainConfig(), torch.device(harness.device()))
    precisions = sorted({"float32", native}, reverse=True)  # where bfloat16 is slower nobody would choose it
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(repeats):
        work = [(name, precision) for precision in precisions for name in CONTENDERS]
        rounds.append(
            {
                f"{name}, {precision}": harness.spawn(
                    "train_prior", name, precision, env=ALLOCATOR if CONTENDERS[name][1] else {}
                )
                for name, precision in tqdm(work, desc="bench train-prior", disable=None)
            }
        )
    return _report(rounds, precisions, gap, out)


def _report(rounds: list[dict[str, dict[str, float]]], precisions: Sequence[str], gap: float, out: Path) -> str:
    def all_of(name: str, precision: str, figure: str = "seconds") -> list[float]:
        return [found[f"{name}, {precision}"][figure] for found in rounds]

    flops = step_flops_per_sequence(Prior(ModelConfig(**_MODEL), _sequence())) * _BATCH
    rows, headlines = [], {}
    for precision in precisions:
        for name in CONTENDERS:
            times = all_of(name, precision)
            shares = [flops / s / f for s, f in zip(times, all_of(name, precision, "flops_floor"), strict=True)]
            against = [
                harness.ratio(all_of(base, precision), times) for base in (_NANO, _NANO + _AS_IS, _PIXELS + _AS_IS)
            ]
            s = harness.median(times)
            memory = harness.median(all_of(name, precision, "peak_gib"))
            share = "" if name.startswith(_PIXELS) else f"{harness.median(shares):.0%}"
            rows.append([name, precision, f"{s:.3g}", f"{_BATCH * _TOKENS / s:.4g}", share, f"{memory:.1f}", *against])
            if name == _OURS:
                what = f"training step of {'GPT-2 medium' if _ON_GPU else 'GPT-2 small'} in {precision}"
                headlines[f"{what}, over nanoGPT compiled"] = against[0]
                headlines[f"{what}, over taming's, which encodes pixels in the step"] = against[2]
    text = (
        f"One step (forward, backward, clipping, AdamW) on {_BATCH} × {_TOKENS} codes of {_CODEBOOK}, {_LAYERS} "
        f"layers, {_HEADS} heads, width {_WIDTH}; {len(rounds)} rounds. Our allocator settings but where it says as "
        "it is. MFU: FLOPs of the model over those of a large product in the same process. Before: at the same "
        f"weights the logits of minGPT, of transformers' GPT-2 and ours differ by {gap:.1e} at most."
    )
    columns = [
        "", "precision", "s/step", "tokens/s", "MFU", "peak GiB", "× nanoGPT compiled", "× as it is",
        "× taming with pixels as it is",
    ]  # fmt: skip
    return harness.save(
        out, "train-prior", command="imagepriors bench train-prior", text=text, columns=columns, rows=rows,
        figures={"rounds": rounds}, headlines=headlines,
        packages=("torch", "transformers", "taming-transformers-rom1504"),
    )  # fmt: skip


if __name__ == "__main__":
    harness.answer(lambda: contend(sys.argv[1], sys.argv[2]))
