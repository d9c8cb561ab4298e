"""Training steps of GPT-2 small on 256 codes of 1024 against its rivals: `imagepriors bench train-prior`.

All contenders of a precision run in one process with our allocator settings and take turns, so that what else the
machine does falls on all alike; a ratio is the median over rounds of the ratio within a round. Random weights, codes.
"""

import contextlib
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
from codeprior.optim import make_autocast, make_optimizer
from codeprior.trainer import SequenceLoss, train_step

_RESULTS = Path(__file__).parent / "results"
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
_SIDE, _CODEBOOK, _WIDTH, _HEADS, _LAYERS = 16, 1024, 768, 12, 12
_BATCH = {"cpu": 4, "cuda": 64}
_NANO, _PIXELS = "nanoGPT, compiled", "taming, pixels encoded in the step"
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


CONTENDERS: dict[str, tuple[Callable[[str, str, bool], Step], bool]] = {
    _NANO: (nanogpt, True),
    "nanoGPT": (nanogpt, False),
    _PIXELS: (taming_pixels, False),
    "imagepriors": (ours, False),
    "imagepriors, compiled": (ours, True),
}


def _measure(precision: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step of each contender, in rounds, after one round that is not counted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):  # what the rivals print
        steps = {name: make(device, precision, compiled) for name, (make, compiled) in CONTENDERS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in tqdm(range(repeats + 2), desc=f"rounds in {precision}", disable=None):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if device == "cuda":
                    torch.cuda.synchronize()
                if number >= 2:  # the first compiles, the second allocates
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def run(repeats: int = 5, out: Path = _RESULTS) -> str:
    """Measure all contenders, write JSON and a Markdown table, and return the table."""
    results: dict[str, dict[str, list[float]]] = {}
    for precision in ("float32", "bfloat16"):
        done = subprocess.run(
            [sys.executable, "-m", "imagepriors.benchmarks.train_prior", precision, str(repeats)],
            env={**os.environ, **_ALLOCATOR}, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        results[precision] = json.loads(done.stdout)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    batch = _BATCH["cuda" if cuda else "cpu"]
    lines = [
        f"One step (forward, backward, clipping, AdamW) of GPT-2 small on {batch} × {_SIDE**2} codes of {_CODEBOOK} on "
        f"{device}, torch {torch.__version__}; the same allocator settings for all, {repeats} rounds in turn, ratios "
        "are medians within a round; `imagepriors bench train-prior`.",
        "",
        "| | precision | s/step | tokens/s | × nanoGPT compiled | × taming with pixels |",
        "|---|---|---|---|---|---|",
    ]
    for precision, seconds in results.items():
        for name, found in seconds.items():
            ratios = [
                statistics.median(other / one for one, other in zip(found, seconds[base], strict=True))
                for base in (_NANO, _PIXELS)
            ]
            s = statistics.median(found)
            figures = f"{s:.3g} | {batch * _SIDE**2 / s:.4g} | {ratios[0]:.2f} | {ratios[1]:.2f}"
            lines.append(f"| {name} | {precision} | {figures} |")
    table = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    stem = "train-prior-" + ("".join(c if c.isalnum() else "-" for c in device.lower()) if cuda else "cpu")
    (out / f"{stem}.md").write_text(table)
    (out / f"{stem}.json").write_text(json.dumps({"seconds": results}, indent=2) + "\n")
    return table


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
