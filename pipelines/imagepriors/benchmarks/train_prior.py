"""Training steps of GPT-2 small on 256 codes of 1024 against its rivals: `imagepriors bench train-prior`.

All contenders of a precision take turns, so that what else the machine does falls on all alike; a ratio is the median
over rounds of the ratio within a round. The C library's allocator has our settings (those of every command of ours), or
its own for the rivals as their users run them: a process for each. Random weights, random codes.
"""

import contextlib
import functools
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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
from codeprior.trainer import SequenceLoss, train_step
from codeshards.pool import ALLOCATOR

_RESULTS = Path(__file__).parent / "results"
_SIDE, _CODEBOOK, _WIDTH, _HEADS, _LAYERS = 16, 1024, 768, 12, 12
_BATCH = {"cpu": 4, "cuda": 64}
_NANO, _PIXELS, _AS_IS = "nanoGPT, compiled", "taming, pixels encoded in the step", ", as it is"
_DDCONFIG = {
    "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
Step = Callable[[], Any]


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
        self.tokens, self.places = nn.Embedding(_CODEBOOK + 1, _WIDTH), nn.Embedding(_SIDE**2, _WIDTH)
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


def nanogpt(device: str, precision: str, compiled: bool) -> Step:
    """Its step: fused AdamW, clipping by torch's function."""
    model: nn.Module = NanoGPT().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if compiled:
        model.compile()
    codes = torch.randint(_CODEBOOK, (_BATCH[device], _SIDE**2), device=device)
    inputs = F.pad(codes[:, :-1], (1, 0), value=_CODEBOOK)
    autocast = make_autocast(torch.device(device), precision)  # type: ignore[arg-type]

    def step() -> None:
        with autocast:
            loss = model(inputs, codes)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(device: str, precision: str, compiled: bool) -> Step:
    """Our train step on a batch in main memory."""
    sequence = SequenceSpec(height=_SIDE, width=_SIDE, codebook_size=_CODEBOOK, order="row_major", fingerprint="none")
    prior = Prior(ModelConfig(n_layer=_LAYERS, n_head=_HEADS, n_embd=_WIDTH), sequence).to(device)
    loss, optimizer = SequenceLoss(prior), make_optimizer(prior, TrainConfig())
    if compiled:
        loss.compile()
    B = _BATCH[device]
    batch = Batch(condition_BC=torch.zeros(B, 1, dtype=torch.int64), codes_BT=torch.randint(_CODEBOOK, (B, _SIDE**2)))
    autocast = make_autocast(torch.device(device), precision)  # type: ignore[arg-type]

    def step() -> None:
        parts = [batch.to(torch.device(device))]
        train_step(loss, optimizer, parts, learning_rate=1e-4, grad_clip=1.0, autocast=autocast)

    return step


def taming_pixels(device: str, precision: str, compiled: bool) -> Step:
    """The published Net2NetTransformer's training step: VQGAN encodes the pictures, minGPT is trained on the codes."""
    from imagepriors.benchmarks.peers import mingpt, taming

    vqgan = taming().VQModel(_DDCONFIG, lossconfig={}, n_embed=_CODEBOOK, embed_dim=256).eval()
    gpt = mingpt().GPT(_CODEBOOK, _SIDE**2, n_layer=_LAYERS, n_head=_HEADS, n_embd=_WIDTH)
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
    pictures = torch.rand(_BATCH[device], 256, 256, 3, device=device) * 2 - 1

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model.training_step({"image": pictures}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


# Name → (what makes its step, compiled, with our allocator settings).
CONTENDERS: dict[str, tuple[Callable[[str, str, bool], Step], bool, bool]] = {
    _NANO + _AS_IS: (nanogpt, True, False),
    _NANO: (nanogpt, True, True),
    "nanoGPT": (nanogpt, False, True),
    _PIXELS + _AS_IS: (taming_pixels, False, False),
    _PIXELS: (taming_pixels, False, True),
    "imagepriors": (ours, False, True),
    "imagepriors, compiled": (ours, True, True),
}
_UNCOUNTED = 2
"""Rounds: the first compiles, the second allocates."""


def serve(precision: str) -> None:
    """Read names of contenders from stdin and answer with the seconds of one step of each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr  # what the rivals print

    @functools.cache
    def step_of(name: str) -> Step:
        make, compiled, _ = CONTENDERS[name]
        return make(device, precision, compiled)

    for line in sys.stdin:
        step = step_of(line.strip())
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, file=answers, flush=True)


def _measure(precision: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step of each contender, in rounds."""
    command = [sys.executable, "-m", "imagepriors.benchmarks.train_prior", precision]
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with contextlib.ExitStack() as stack:
        servers = {
            ours_too: stack.enter_context(
                subprocess.Popen(
                    command, env={**os.environ, **(ALLOCATOR if ours_too else {})},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                )
            )
            for ours_too in (False, True)
        }  # fmt: skip
        for number in tqdm(range(repeats + _UNCOUNTED), desc=f"rounds in {precision}", disable=None):
            for name, (_, _, allocator) in CONTENDERS.items():
                server = servers[allocator]
                assert server.stdin is not None
                assert server.stdout is not None
                print(name, file=server.stdin, flush=True)
                answer = server.stdout.readline()
                if not answer:
                    raise RuntimeError(f"{name!r} failed: see above")
                if number >= _UNCOUNTED:
                    seconds[name].append(float(answer))
    return seconds


def run(repeats: int = 5, out: Path = _RESULTS) -> str:
    """Measure all contenders, write JSON and a Markdown table, and return the table."""
    cuda = torch.cuda.is_available()
    native = resolve_precision(TrainConfig(), torch.device("cuda" if cuda else "cpu"))
    # Where bfloat16 is slower nobody would choose it.
    results = {precision: _measure(precision, repeats) for precision in sorted({"float32", native}, reverse=True)}
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    batch = _BATCH["cuda" if cuda else "cpu"]
    lines = [
        f"One step (forward, backward, clipping, AdamW) of GPT-2 small on {batch} × {_SIDE**2} codes of {_CODEBOOK} on "
        f"{device}, torch {torch.__version__}; our allocator settings but where it says as it is, {repeats} rounds "
        "in turn, ratios are medians within a round; `imagepriors bench train-prior`.",
        "",
        "| | precision | s/step | tokens/s | × nanoGPT compiled | × as it is | × taming with pixels | × as it is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for precision, seconds in results.items():
        for name, found in seconds.items():
            ratios = [
                statistics.median(other / one for one, other in zip(found, seconds[base], strict=True))
                for base in (_NANO, _NANO + _AS_IS, _PIXELS, _PIXELS + _AS_IS)
            ]
            s = statistics.median(found)
            figures = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {name} | {precision} | {s:.3g} | {batch * _SIDE**2 / s:.4g} | {figures} |")
    table = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    stem = "train-prior-" + ("".join(c if c.isalnum() else "-" for c in device.lower()) if cuda else "cpu")
    (out / f"{stem}.md").write_text(table)
    (out / f"{stem}.json").write_text(json.dumps({"seconds": results}, indent=2) + "\n")
    return table


if __name__ == "__main__":
    serve(sys.argv[1])
