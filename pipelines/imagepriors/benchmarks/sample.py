"""Sampling against taming-transformers and Hugging Face at the same weights: `imagepriors bench sample`.

All contenders run in one process and take turns, so that what else the machine does falls on all alike; a ratio is the
median over rounds of the ratio within a round. The peer without a cache is so slow that it takes part in the first
round only, and in a quarter of the greedy codes. Random weights of minGPT (GELU, biases, untied head), converted by the
importer, top-k 100.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from codeprior.config import SampleConfig, SequenceSpec
from codeprior.model import Prior
from codeprior.released import prior_from_mingpt
from codeprior.sample import ready, sample_sequences

_RESULTS = Path(__file__).parent / "results"
_SIDE, _CODEBOOK = 16, 1024
_BATCHES = {"cpu": (1, 4), "cuda": (1, 4, 64)}
_SIZE = {"n_layer": 12, "n_head": 12, "n_embd": 768}
# Name → codes [B, steps] from (batch, steps, greedy).
Draw = Callable[[int, int, bool], Tensor]
_BASE = "taming sample_with_past (its cache)"
_UNCACHED = "taming sample (no cache)"
_OURS = "imagepriors, float32"


def _peer_weights(device: str) -> Any:
    from imagepriors.benchmarks.peers import mingpt

    torch.manual_seed(0)
    return mingpt().GPT(_CODEBOOK, _SIDE**2, **_SIZE).to(device).eval()


def _prior(peer: Any, device: str) -> Prior:
    sequence = SequenceSpec(
        height=_SIDE, width=_SIDE, codebook_size=_CODEBOOK, order="row_major", fingerprint="benchmark"
    )
    prior = prior_from_mingpt(peer.state_dict(), n_head=_SIZE["n_head"], sequence=sequence, condition_tokens=[0])
    return prior.to(device)


def _ours(prior: Prior, **options: Any) -> Draw:
    settled = ready(prior, SampleConfig(**options))  # the copy in bfloat16 is made once

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        config = SampleConfig(batch_size=batch, top_k=1 if greedy else 100, **options)
        return sample_sequences(settled, batch, config=config)[:, :steps]

    return draw


def _taming(peer: Any, device: str, cached: bool) -> Draw:
    from imagepriors.benchmarks.peers import mingpt

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        if cached:
            codes: Tensor = mingpt().sample_with_past(
                start, peer, steps, sample_logits=not greedy, top_k=100, top_p=1.0
            )
            return codes.cpu()
        codes = mingpt().sample(peer, start, steps, sample=not greedy, top_k=100)
        return codes[:, 1:].cpu()

    return draw


def _hugging_face(peer: Any, device: str) -> Draw:
    from imagepriors.benchmarks.peers import gpt2_from_mingpt

    model = gpt2_from_mingpt(peer, _SIZE["n_head"]).to(device)

    @torch.inference_mode()
    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        codes: Tensor = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=not greedy,
            top_k=100,
            cache_implementation="static",
        )
        return codes[:, 1:].cpu()

    return draw


def contenders(device: str) -> dict[str, Draw]:
    """Name → a sampler; all have the same weights."""
    peer = _peer_weights(device)
    prior = _prior(peer, device)
    return {
        _UNCACHED: _taming(peer, device, cached=False),
        _BASE: _taming(peer, device, cached=True),
        "Hugging Face generate, static cache": _hugging_face(peer, device),
        _OURS: _ours(prior),
        "imagepriors, float32, compiled": _ours(prior, compile=True),
        "imagepriors, bfloat16": _ours(prior, precision="bfloat16"),
        "imagepriors, bfloat16, compiled": _ours(prior, precision="bfloat16", compile=True),
    }


def _timed(draw: Draw, batch: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    draw(batch, _SIDE**2, False)  # codes on the CPU: nothing is left to wait for
    return time.perf_counter() - start


def measure(draws: dict[str, Draw], batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of every round and the share of greedy codes that are the peer's."""
    exact = draws[_BASE](batch, _SIDE**2, True)
    equal = {}
    for name, draw in draws.items():
        steps = _SIDE**2 // 4 if name == _UNCACHED else _SIDE**2
        equal[name] = float((draw(batch, steps, True) == exact[:, :steps]).float().mean())
    seconds: dict[str, list[float]] = {name: [] for name in draws}
    for index in tqdm(range(repeats), desc=f"bench sample, batch {batch}", disable=None):
        for name, draw in draws.items():
            if index == 0 or name != _UNCACHED:
                seconds[name].append(_timed(draw, batch))
    return {"seconds": seconds, "equal": equal}


def _ratio(seconds: dict[str, list[float]], over: str, name: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[name], strict=False))


def run(repeats: int = 5, out: Path = _RESULTS) -> str:
    """Measure all contenders, write JSON and a Markdown table, and return the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    draws = contenders(device)
    lines = [
        f"Sampling {_SIDE**2} codes with gpt2-small on {machine}, torch {torch.__version__}, {repeats} rounds in turn; "
        "`imagepriors bench sample`.",
        "Ratios are medians over rounds. Greedy codes: share that equals taming's at the same weights.",
        "",
        "| batch | | s per image | × taming cached | × taming uncached | greedy codes as taming |",
        "|---|---|---|---|---|---|",
    ]
    results = {}
    for batch in _BATCHES[device]:
        found = results[f"batch {batch}"] = measure(draws, batch, repeats)
        for name, rounds in found["seconds"].items():
            per_image_s = statistics.median(rounds) / batch
            cached, uncached = (_ratio(found["seconds"], over, name) for over in (_BASE, _UNCACHED))
            share = f"{found['equal'][name]:.1%}"
            lines.append(f"| {batch} | {name} | {per_image_s:.3g} | {cached:.2f} | {uncached:.2f} | {share} |")
    table = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    stem = "sample-" + ("".join(c if c.isalnum() else "-" for c in machine.lower()) if device == "cuda" else "cpu")
    (out / f"{stem}.md").write_text(table)
    (out / f"{stem}.json").write_text(json.dumps(results, indent=2) + "\n")
    return table
