"""Sampling against taming-transformers and Hugging Face at the same weights: `imagepriors bench sample`.

All contenders run in one process, with our allocator settings, and take turns. The peer without a cache is so slow that
it takes part in the first round of small batches only, and in a quarter of the greedy codes. Random weights of minGPT
(GELU, biases, untied head), converted by the importer, top-k 100.
"""

import sys
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
from codeshards.pool import ALLOCATOR
from imagepriors.benchmarks import harness, peers

_SIDE, _CODEBOOK = 16, 1024
_BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 4, 16, 64)}
_UNCACHED_UP_TO = 4
"""The largest batch that is drawn without a cache."""
_SIZE = {"n_layer": 12, "n_head": 12, "n_embd": 768}
# Name → codes [B, steps] from (batch, steps, greedy).
Draw = Callable[[int, int, bool], Tensor]
_BASE = "taming sample_with_past (its cache)"
_UNCACHED = "taming sample (no cache)"
_OURS = "imagepriors, float32"


def _peer_weights(device: str) -> Any:
    torch.manual_seed(0)
    return peers.mingpt().GPT(_CODEBOOK, _SIDE**2, **_SIZE).to(device).eval()


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
    mingpt = peers.mingpt()

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        if cached:
            codes: Tensor = mingpt.sample_with_past(start, peer, steps, sample_logits=not greedy, top_k=100, top_p=1.0)
            return codes.cpu()
        codes = mingpt.sample(peer, start, steps, sample=not greedy, top_k=100)
        return codes[:, 1:].cpu()

    return draw


def _hugging_face(peer: Any, device: str) -> Draw:
    model = peers.gpt2_from_mingpt(peer, _SIZE["n_head"]).to(device)

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


def measure(draws: dict[str, Draw], batch: int, repeats: int) -> dict[str, Any]:
    """Seconds of every round and the share of greedy codes that are the peer's."""
    exact = draws[_BASE](batch, _SIDE**2, True)
    seconds: dict[str, list[float]] = {}
    equal = {}
    for name, draw in draws.items():
        if name != _UNCACHED or batch <= _UNCACHED_UP_TO:
            steps = _SIDE**2 // 4 if name == _UNCACHED else _SIDE**2
            equal[name] = float((draw(batch, steps, True) == exact[:, :steps]).float().mean())
            seconds[name] = []
            if "compiled" in name:
                draw(batch, _SIDE**2, False)
    for index in tqdm(range(repeats), desc=f"bench sample, batch {batch}", disable=None):
        for name, times in seconds.items():
            if index == 0 or name != _UNCACHED:
                times.append(harness.seconds(lambda name=name: draws[name](batch, _SIDE**2, False)))  # type: ignore[misc]
    return {"seconds": seconds, "equal": equal}


def run(repeats: int = 3, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders in turns, write the report, and return it as Markdown."""
    harness.need({"taming": "taming-transformers-rom1504==0.0.6", "transformers": "transformers"})
    return _report(harness.spawn("sample", str(repeats), env=ALLOCATOR), out)


def measure_all(repeats: int) -> dict[str, Any]:
    """All batch sizes; and the seconds in which the weights of blocks and head can be read, once for every code."""
    device = harness.device()
    draws = contenders(device)
    large = max(_BATCHES[device])
    found = {str(b): measure(draws, b, repeats if b < large else min(repeats, 2)) for b in _BATCHES[device]}
    prior = _prior(_peer_weights("cpu"), "cpu")
    numbers = sum(parameter.numel() for parameter in prior.blocks.parameters()) + prior.code_embedding.weight.numel()
    reads_s = numbers * _SIDE**2 / harness.read_floor()
    return {"batches": found, "floor_s": {"float32": 4 * reads_s, "bfloat16": 2 * reads_s}}


def _report(figures: dict[str, Any], out: Path) -> str:
    found, floor = figures["batches"], figures["floor_s"]
    rows, headlines = [], {}
    for batch, measured in found.items():
        seconds = measured["seconds"]
        for name, times in seconds.items():
            cached = harness.ratio(seconds[_BASE][: len(times)], times)
            slow = seconds.get(_UNCACHED, [])
            uncached = harness.ratio(slow, times[: len(slow)]) if slow else ""
            limit_s = floor["bfloat16" if "bfloat16" in name else "float32"]
            share = f"{harness.median(times) / limit_s:.2f}" if batch == "1" else ""
            per_image_s, equal = harness.median(times) / int(batch), f"{measured['equal'][name]:.1%}"
            rows.append([name, batch, f"{per_image_s:.3g}", cached, uncached, share, equal])
            if name == _OURS:
                headlines[f"sampling 256 codes, batch {batch}, float32, over taming's cached sampler"] = cached
                if slow:
                    headlines[f"sampling 256 codes, batch {batch}, float32, over taming's uncached sampler"] = uncached
    text = (
        f"Sampling {_SIDE**2} codes with gpt2-small, top-k 100; {len(seconds[_BASE])} rounds of the largest batch, "
        f"{len(found['1']['seconds'][_BASE])} of the others, one without a cache. Weight streaming: the time over that "
        "of reading every weight once a code. Greedy codes: share that is taming's at the same weights."
    )
    columns = [
        "", "batch", "s per image", "× taming cached", "× taming uncached", "× weight streaming",
        "greedy codes as taming",
    ]  # fmt: skip
    return harness.save(
        out, "sample", command="imagepriors bench sample", text=text, columns=columns, rows=rows, figures=figures,
        headlines=headlines, packages=("torch", "transformers", "taming-transformers-rom1504"),
    )  # fmt: skip


if __name__ == "__main__":
    harness.answer(lambda: measure_all(int(sys.argv[1])))
