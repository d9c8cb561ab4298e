"""Drawing codes against taming-transformers and transformers at the same weights: `imagepriors bench sample`.

Contenders live side by side, each in a process of its own with our allocator settings, and take turns; ratios are taken
within a round. Random weights of minGPT (GPT-2 small, exact GELU, untied head), which the importer turns into a prior;
top-k 100. Before anything is timed, greedy codes are compared. The peer without a cache is so slow that it takes part
in the first round of the small batches only, whole, and in a quarter of the greedy codes.
"""

import contextlib
import functools
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
from imagepriors.benchmarks.harness import RESULTS

_SIDE, _CODEBOOK = 16, 1024
_SIZE = {"n_layer": 12, "n_head": 12, "n_embd": 768}
_BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 4, 16, 64)}
_UNCACHED_UP_TO = 4
"""The largest batch that the peer without a cache draws."""
_LARGE = 16
"""From this batch on two rounds do on a CPU: they take minutes, and are steady."""
_WARM_STEPS = 8
Draw = Callable[[int, int, bool], Tensor]
"""(batch, steps, greedy) → codes [B, steps]."""
_CACHED, _UNCACHED = "taming sample_with_past (its cache)", "taming sample (no cache)"
_TRANSFORMERS, _OURS = "transformers generate, static cache", "imagepriors, float32"
_RIVALS = (_CACHED, _UNCACHED, _TRANSFORMERS)


def _peer_weights() -> Any:
    torch.manual_seed(0)
    return peers.mingpt().GPT(_CODEBOOK, _SIDE**2, **_SIZE).to(harness.device()).eval()


def _prior() -> Prior:
    sequence = SequenceSpec(
        height=_SIDE, width=_SIDE, codebook_size=_CODEBOOK, order="row_major", fingerprint="benchmark"
    )
    weights = _peer_weights().state_dict()
    prior = prior_from_mingpt(weights, n_head=_SIZE["n_head"], sequence=sequence, condition_tokens=[0])
    return prior.to(harness.device())


def ours(**options: Any) -> Draw:
    """Our sampler; where it is greedy it draws all codes and cuts, else it takes the others as given."""
    prior = ready(_prior(), SampleConfig(**options))  # the copy in bfloat16 is made once

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        config = SampleConfig(batch_size=batch, top_k=1 if greedy else 100, **options)
        given = torch.zeros(batch, 0 if greedy else _SIDE**2 - steps, dtype=torch.int64)
        return sample_sequences(prior, batch, config=config, prefix_NP=given)[:, :steps]

    return draw


def taming(cached: bool) -> Draw:
    """The published samplers: what its class-conditional demo calls, and the one without a cache."""
    peer, mingpt = _peer_weights(), peers.mingpt()

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.int64, device=harness.device())
        if cached:
            codes: Tensor = mingpt.sample_with_past(start, peer, steps, sample_logits=not greedy, top_k=100, top_p=1.0)
            return codes.cpu()
        codes = mingpt.sample(peer, start, steps, sample=not greedy, top_k=100)
        return codes[:, 1:].cpu()

    return draw


def transformers() -> Draw:
    """`generate` of GPT2LMHeadModel with a static cache."""
    model = peers.gpt2_from_mingpt(_peer_weights().cpu(), _SIZE["n_head"]).to(harness.device())

    @torch.inference_mode()
    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.int64, device=harness.device())
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


CONTENDERS: dict[str, Callable[[], Draw]] = {
    _UNCACHED: functools.partial(taming, cached=False),
    _CACHED: functools.partial(taming, cached=True),
    _TRANSFORMERS: transformers,
    _OURS: ours,
    f"{_OURS}, compiled": functools.partial(ours, compile=True),
    "imagepriors, bfloat16": functools.partial(ours, precision="bfloat16"),
    "imagepriors, bfloat16, compiled": functools.partial(ours, precision="bfloat16", compile=True),
}


def weight_bytes(precision: str) -> int:
    """Bytes of the matrices that every code is multiplied with: blocks and head, not the tables that are looked up."""
    width = _SIZE["n_embd"]
    weights = 12 * _SIZE["n_layer"] * width**2 + width * _CODEBOOK
    return int(weights * getattr(torch, precision).itemsize)


def serve(name: str) -> None:
    """Be the contender `name`: answer requests for codes or for seconds until there are no more."""
    draw = CONTENDERS[name]()

    def work(batch: int, greedy_steps: int = 0) -> Any:
        if greedy_steps:
            draw(batch, _WARM_STEPS, False)  # what is compiled for a batch knows whether it is greedy
            return draw(batch, greedy_steps, True).tolist()
        # Codes on the CPU: nothing is left to wait for.
        return {"s": harness.seconds(lambda: draw(batch, _SIDE**2, False)), "peak_gib": harness.peak_gib()}

    harness.serve(work)


def measure(servers: dict[str, harness.Server], batch: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Name → seconds of every round, peak memory so far and the share of greedy codes that are the cached peer's."""
    taking_part = {name: it for name, it in servers.items() if name != _UNCACHED or batch <= _UNCACHED_UP_TO}
    exact: Tensor | None = None
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(taking_part, key=lambda name: name != _CACHED):  # its codes first
        steps = _SIDE**2 // 4 if name == _UNCACHED else _SIDE**2
        codes = torch.tensor(taking_part[name].ask(batch=batch, greedy_steps=steps))
        exact = codes if exact is None else exact
        found[name] = {"s": [], "equal": float((codes == exact[:, :steps]).float().mean())}
    rounds = min(repeats, 2) if batch >= _LARGE and harness.device() == "cpu" else repeats
    for index in tqdm(range(rounds), desc=f"bench sample, batch {batch}", disable=None):
        for name, server in taking_part.items():
            if index == 0 or name != _UNCACHED:
                answer = server.ask(batch=batch)
                found[name]["s"].append(answer["s"])
                found[name]["peak_gib"] = answer["peak_gib"]
    return {name: found[name] for name in taking_part}


def _over(found: dict[str, dict[str, Any]], name: str) -> dict[str, str]:
    """Rival → ratio of the rounds in which both took part."""
    ratios = {}
    for rival in _RIVALS:
        theirs, own = (found[one]["s"] if one in found else [] for one in (rival, name))
        both = min(len(theirs), len(own))
        ratios[rival] = harness.ratio(theirs[:both], own[:both]) if both else ""
    return ratios


def run(repeats: int, *, out: Path = RESULTS) -> str:
    """Measure all contenders and report.

    Raises:
        InputError: a rival is not installed.
    """
    peers.require("taming", "transformers")
    cuda = harness.device() == "cuda"
    names = [name for name in CONTENDERS if cuda or "bfloat16, compiled" not in name]
    bytes_per_s = harness.read_floor()
    results = {}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(harness.Server("sample", name, env=ALLOCATOR)) for name in names}
        for batch in _BATCHES[harness.device()]:
            results[batch] = measure(servers, batch, repeats)
    rows = []
    headlines: dict[str, str] = {}
    for batch, found in results.items():
        for name, figures in found.items():
            s, over = harness.median(figures["s"]), _over(found, name)
            floor_s = _SIDE**2 * weight_bytes("bfloat16" if "bfloat16" in name else "float32") / bytes_per_s
            rows.append([
                name, str(batch), f"{s / batch:.3g}", *over.values(), f"{s / floor_s:.2f}" if batch == 1 else "",
                f"{figures['peak_gib']:.1f}", f"{figures['equal']:.1%}",
            ])  # fmt: skip
            if name.startswith("imagepriors"):
                what = f"Drawing {_SIDE**2} codes, GPT-2 small, batch {batch}, {name.removeprefix('imagepriors, ')}"
                told = _RIVALS if name == _OURS else (_CACHED,)
                headlines |= {f"{what}, over {rival}": over[rival] for rival in told if over[rival]}
    rare = f"; {_LARGE} and more: {min(repeats, 2)}" if harness.device() == "cpu" else ""
    return harness.save(
        out, "sample",
        command="imagepriors bench sample",
        text=f"{_SIDE**2} codes by GPT-2 small, top-k 100, the same weights and our allocator settings for all. × is "
        f"codes per second over the rival's in the same round, median and range over {repeats} rounds{rare}. Without a "
        f"cache: one round, batches up to {_UNCACHED_UP_TO}, since its cost grows with the square of the length. "
        f"Floor: reading the weights once for each code at the {bytes_per_s / 1e9:.3g} GB/s that one large sum reads. "
        "Peak GiB: of the process, in this and the smaller batches. Greedy codes: share that equals taming's with its "
        "cache (in float32; close calls part, and what follows them too).",
        columns=["", "batch", "s per image", *(f"× {rival}" for rival in _RIVALS), "s over the floor", "peak GiB",
                 "greedy codes as taming's"],
        rows=rows,
        figures={"read_bytes_per_s": bytes_per_s, **{f"batch {batch}": found for batch, found in results.items()}},
        headlines=headlines,
        packages=("torch", "taming-transformers-rom1504", "transformers"),
    )  # fmt: skip


if __name__ == "__main__":
    serve(sys.argv[1])
