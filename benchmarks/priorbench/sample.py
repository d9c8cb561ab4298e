"""Sampling codes, compared with taming-transformers and transformers: `python -m priorbench sample`.

Each contender runs in a long-lived process with the allocator settings of this project; ratios are taken within a
round. All have the same random weights of minGPT (GPT-2 small, exact GELU, untied head), and top-k is 100. Greedy
codes are compared before a contender is timed; those of a prior of any order, which has weights of its own and draws
several codes per step, are not compared. The rival without a cache is slow, so it is measured only in the first
round of small batches in float32, and compared by a quarter of the greedy codes.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codeprior.compat import prior_from_mingpt
from codeprior.config import ModelConfig, SequenceSpec
from codeprior.given import given_prefix
from codeprior.model import Prior
from codeprior.sample import prepare, sample_sequences
from codeprior.sample_config import SampleConfig
from codeprior.speed import resolve_precision
from priorbench import harness, peers, processes
from priorbench.harness import RESULTS
from runkit.configs import from_dict
from runkit.machine import ALLOCATOR

_SIDE, _CODEBOOK = 16, 1024
_SIZE = {"n_layer": 12, "n_head": 12, "n_embd": 768}
_BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 4, 16, 64)}
_UNCACHED_UP_TO = 4
"""Largest batch of the rival without a cache."""
_LARGE = 16
"""From this batch on, two rounds suffice on a CPU: they take minutes, and vary little."""
_WARM_STEPS = 8
Draw = Callable[[int, int, bool], Tensor]
"""(batch, steps, greedy) → codes [B, steps]."""
_CACHED, _UNCACHED = "taming sample_with_past (its cache)", "taming sample (no cache)"
_TRANSFORMERS = "transformers generate, static cache"
_ANY_ORDER = "imagepriors, any order"
Contender = tuple[str, str]
"""Name and precision."""


def _peer_weights(precision: str = "float32") -> Any:
    torch.manual_seed(0)
    peer = peers.mingpt().GPT(_CODEBOOK, _SIDE**2, **_SIZE)
    return peer.to(harness.device(), getattr(torch, precision)).eval()


def _prior() -> Prior:
    sequence = SequenceSpec(
        height=_SIDE, width=_SIDE, codebook_size=_CODEBOOK, order="row_major", fingerprint="benchmark"
    )
    weights = _peer_weights().state_dict()
    prior = prior_from_mingpt(weights, n_head=_SIZE["n_head"], sequence=sequence, condition_tokens=[0])
    return prior.to(harness.device())


def ours(precision: str, compiled: bool = False) -> Draw:
    """The sampler of this project. Greedy sampling draws all codes and truncates; else the other codes are given."""
    options: dict[str, Any] = {"precision": precision, "compile": compiled}
    prior = prepare(_prior(), SampleConfig(**options))  # casts the weights once

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        config = SampleConfig(batch_size=batch, top_k=1 if greedy else 100, **options)
        given = given_prefix(prior.sequence, torch.zeros(batch, 0 if greedy else _SIDE**2 - steps))
        return sample_sequences(prior, batch, config=config, given_NT=given)[:, :steps]

    return draw


def any_order(precision: str, steps: int) -> Draw:
    """A prior of any order that draws in so many steps."""
    sequence = SequenceSpec(
        height=_SIDE, width=_SIDE, codebook_size=_CODEBOOK, order="row_major", fingerprint="benchmark",
        objective="any_order",
    )  # fmt: skip
    torch.manual_seed(0)
    options: dict[str, Any] = {"precision": precision, "steps": steps}
    prior = prepare(Prior(from_dict(ModelConfig, _SIZE), sequence).to(harness.device()), SampleConfig(**options))

    def draw(batch: int, codes: int, greedy: bool) -> Tensor:
        config = SampleConfig(batch_size=batch, top_k=1 if greedy else 100, **options)
        return sample_sequences(prior, batch, config=config)[:, :codes]

    return draw


def taming(precision: str, cached: bool) -> Draw:
    """The published samplers: that of its class-conditional demo, and that without a cache."""
    peer, mingpt = _peer_weights(precision), peers.mingpt()

    def draw(batch: int, steps: int, greedy: bool) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.int64, device=harness.device())
        if cached:
            codes: Tensor = mingpt.sample_with_past(start, peer, steps, sample_logits=not greedy, top_k=100, top_p=1.0)
            return codes.cpu()
        codes = mingpt.sample(peer, start, steps, sample=not greedy, top_k=100)
        return codes[:, 1:].cpu()

    return draw


def transformers(precision: str) -> Draw:
    """`generate` of GPT2LMHeadModel with a static cache."""
    model = peers.gpt2_from_mingpt(_peer_weights().cpu(), _SIZE["n_head"])
    model.to(harness.device(), getattr(torch, precision))

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


CONTENDERS: dict[str, Callable[[str], Draw]] = {
    _CACHED: functools.partial(taming, cached=True),  # the first, whose greedy codes are the reference
    _UNCACHED: functools.partial(taming, cached=False),
    _TRANSFORMERS: transformers,
    "imagepriors": ours,
    "imagepriors, compiled": functools.partial(ours, compiled=True),
    **{f"{_ANY_ORDER} in {steps} steps": functools.partial(any_order, steps=steps) for steps in (16, 64)},
}


def contenders() -> list[Contender]:
    """Contenders on this device: bfloat16 only where it is faster, and compiled bfloat16 only on a GPU."""
    cuda = harness.device() == "cuda"
    found = [(name, "float32") for name in CONTENDERS]
    if resolve_precision("auto", torch.device(harness.device())) == "bfloat16":
        slow = {_UNCACHED} if cuda else {_UNCACHED, "imagepriors, compiled"}
        found += [(name, "bfloat16") for name in CONTENDERS if name not in slow]
    return found


def weights() -> int:
    """Number of weights in matrix products: blocks and head, without embedding tables."""
    width = _SIZE["n_embd"]
    return 12 * _SIZE["n_layer"] * width**2 + width * _CODEBOOK


def floor_s(batch: int, precision: str, floors: dict[str, float]) -> float:
    """Lower bound of the seconds of a batch: reading the weights for each code, or multiplying by them.

    Args:
        batch: Pictures per batch.
        precision: Precision of weights and products.
        floors: `read` → bytes per second, precision → FLOPs per second.
    """
    reading_s: float = weights() * getattr(torch, precision).itemsize / floors["read"]
    return _SIDE**2 * max(reading_s, 2 * batch * weights() / floors[precision])


def serve(name: str, precision: str) -> None:
    """Answer requests for codes or seconds until the end of input."""
    draw = CONTENDERS[name](precision)

    def work(batch: int, greedy_steps: int = 0) -> Any:
        if greedy_steps:
            draw(batch, _WARM_STEPS, False)  # compiled code is specific to a batch and to greedy sampling
            return draw(batch, greedy_steps, True).tolist()
        # The codes are on the CPU, so no synchronisation is required.
        return {"s": harness.seconds(lambda: draw(batch, _SIDE**2, False)), "peak_gib": harness.peak_gib()}

    processes.serve(work)


class Turns:
    """Measures contenders; greedy codes are compared before a contender is first timed at a batch."""

    def __init__(self, servers: Mapping[Contender, processes.Server]) -> None:
        self._servers = servers
        self._exact: dict[int, Tensor] = {}
        self._compared: set[tuple[Contender, int]] = set()

    def measure(self, turn: tuple[Contender, int]) -> dict[str, Any]:
        """Seconds and peak memory; the first time also the share of greedy codes equal to the reference."""
        one, batch = turn
        found: dict[str, Any] = {}
        if turn not in self._compared:
            self._compared.add(turn)
            steps = _SIDE**2 // 4 if one[0] == _UNCACHED else _SIDE**2
            codes = torch.tensor(self._servers[one].ask(batch=batch, greedy_steps=steps))
            if one == (_CACHED, "float32"):
                self._exact[batch] = codes
            if batch in self._exact and not one[0].startswith(_ANY_ORDER):  # otherwise the reference has failed
                found["equal"] = float((codes == self._exact[batch][:, :steps]).float().mean())
        return {**found, **self._servers[one].ask(batch=batch)}


def rounds_of(turn: tuple[Contender, int], repeats: int) -> int:
    """Number of rounds of a contender at a batch."""
    (name, _), batch = turn
    if name == _UNCACHED:
        return 1
    return min(repeats, 2) if batch >= _LARGE and harness.device() == "cpu" else repeats


def run(repeats: int, *, out: Path = RESULTS) -> str:
    """Measure all contenders and report.

    Raises:
        InputError: a rival is not installed.
    """
    peers.require("taming", "einops", "transformers")
    taking_part = contenders()
    floors = {precision: harness.flops_floor(precision) for precision in {precision for _, precision in taking_part}}
    floors["read"] = harness.read_floor()
    with contextlib.ExitStack() as stack:
        servers = {one: stack.enter_context(processes.Server("sample", *one, env=ALLOCATOR)) for one in taking_part}
        for server in servers.values():
            server.wait_until_ready()  # nothing is timed while a contender loads
        return harness.run_rounds(
            "bench sample",
            [
                (one, batch) for batch in _BATCHES[harness.device()] for one in taking_part
                if one[0] != _UNCACHED or batch <= _UNCACHED_UP_TO
            ],
            Turns(servers).measure,
            lambda found: _report(found, floors, out),
            repeats,
            lambda turn: rounds_of(turn, repeats),
        )  # fmt: skip


def _over(seconds: dict[str, list[float]], key: str, rival: str) -> str:
    """Ratio in the rounds that both finished; empty if there are none."""
    theirs, own = (seconds.get(one, []) for one in (rival, key))
    both = min(len(theirs), len(own))
    return harness.ratio(theirs[:both], own[:both]) if both else ""


def _rivals(precision: str) -> dict[str, str]:
    """Column → name of the rival in the figures."""
    return {
        _CACHED: f"{_CACHED}, {precision}",
        f"{_UNCACHED}, float32": f"{_UNCACHED}, float32",
        _TRANSFORMERS: f"{_TRANSFORMERS}, {precision}",
    }


def table(figures: dict[str, Any]) -> harness.Table:
    """Table of times, ratios in the same precision, and ratios to the lower bound."""
    rows: list[list[str]] = []
    headlines: dict[str, str] = {}
    for batch, founds in figures["batches"].items():
        seconds = harness.values_of(founds, "s")
        for key, found in founds.items():
            name, _, precision = key.rpartition(", ")
            if key not in seconds:
                rows.append([name, precision, str(batch), harness.failure(found)])
                continue
            s, least_s = harness.median(seconds[key]), floor_s(int(batch), precision, figures["floors"])
            over = {
                column: _over(seconds, key, rival) if rival.endswith(precision) else ""
                for column, rival in _rivals(precision).items()
            }
            rows.append([
                name, precision, str(batch), f"{s / int(batch):.3g}", *over.values(), f"{s / least_s:.2f}",
                f"{found[0]['peak_gib']:.1f}", f"{found[0]['equal']:.1%}" if "equal" in found[0] else "",
            ])  # fmt: skip
            if name.startswith("imagepriors"):
                kind = name.replace("imagepriors", precision)
                what = f"Drawing {_SIDE**2} codes, GPT-2 small, batch {batch}, {kind}"
                headlined = over if name == "imagepriors" or name.startswith(_ANY_ORDER) else (_CACHED,)
                headlines |= {f"{what}, over {rival}": over[rival] for rival in headlined if over[rival]}
    columns = [
        "", "precision", "batch", "s per image", *(f"× {rival}" for rival in _rivals("")), "s over the floor",
        "peak GiB", "greedy codes as taming's",
    ]  # fmt: skip
    return harness.table_of(columns, rows, headlines)


def _report(found: dict[tuple[Contender, int], harness.Rounds], floors: dict[str, float], out: Path) -> str:
    batches: dict[int, dict[str, harness.Rounds]] = {}
    for ((name, precision), batch), of_one in found.items():
        batches.setdefault(batch, {})[f"{name}, {precision}"] = of_one
    figures = {"floors": floors, "batches": batches}
    count = max(map(len, found.values()))
    rare = f"; {_LARGE} and more: {min(count, 2)}" if harness.device() == "cpu" else ""
    peaks = ", ".join(f"{floors[name] / 1e9:,.0f} GFLOP/s in {name}" for name in floors if name != "read")
    return harness.save(
        out, "sample", table(figures),
        command=harness.command("sample", count),
        text=f"{_SIDE**2} codes by GPT-2 small, top-k 100. All have the same weights and the allocator settings of "
        "imagepriors. × is codes per second over the rival's in the same precision and round, median and range over "
        f"{harness.rounds(count)}{rare}. Without a cache: one round, float32, batches up to {_UNCACHED_UP_TO}, "
        "because its cost grows with the square of the length. Floor: a lower bound of the time, reading the weights "
        f"once per code at the {floors['read'] / 1e9:.3g} GB/s of a large sum, or multiplying by them at the speed of "
        f"a large product ({peaks}), whichever takes longer; at batch 1 imagepriors drafts codes with 8-bit weights in "
        "float32 unless compiled, and reads those of float32 once for several codes. Peak GiB: of the process, in this "
        "and the smaller batches. Greedy codes: share equal to those of taming with its cache in float32 (rounding "
        "changes near ties, and all codes after them). A prior of any order has blocks of the same size and weights of "
        "its own, so its codes are others; its floor is that of one code per step.",
        figures=figures,
        packages=("torch", *peers.packages(("taming", "transformers"))),
    )  # fmt: skip


if __name__ == "__main__":
    serve(*sys.argv[1:])
