"""Codes drawn on the device: compared with those of the CPU, and compiled steps with plain ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from codeprior import sample
from codeprior.config import ConditionSpec, ModelConfig, Objective, SequenceSpec
from codeprior.draw import race_noise, sample_keys
from codeprior.given import given_prefix
from codeprior.masked import make_prior
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig
from priorbench.gpu.check import Figure, Setup
from priorbench.gpu.memory import require_compiler

_CLASSES = 10


@dataclass(frozen=True)
class _Draw:
    """A way to draw codes."""

    objective: Objective = "ordered"
    config: dict[str, Any] = field(default_factory=dict)
    given: float = 0.0
    """Known share of the codes, a beginning of the sequence."""


_DRAWS = {
    "greedy": _Draw(config={"top_k": 1}),
    "random": _Draw(config={"top_p": 0.95}),
    "guided": _Draw(config={"guidance": 2.0, "guidance_schedule": "power_cosine", "temperature_end": 0.8}),
    "after a given beginning": _Draw(given=0.5),
    "any order, one by one": _Draw("any_order", {"order": "random"}),
    "any order, by confidence in 8 steps": _Draw("any_order", {"order": "confidence", "steps": 8, "guidance": 2.0}),
    "masked, in 8 steps": _Draw("masked", {"order": "confidence", "steps": 8}),
}


def prior_samples(setup: Setup) -> Iterator[Figure]:
    """Compare codes drawn in float32 with those of the CPU, which draws smaller batches of the same samples."""
    n = setup.pick(32, 6)
    yield Figure("random numbers, bit by bit: equal", _equal_noise(setup), "%", at_least=1)
    for name, draw in _DRAWS.items():
        prior = _prior(setup, draw.objective)
        known_NP = torch.randint(prior.sequence.codebook_size, (n, int(draw.given * prior.sequence.length)))
        drawn = [
            _codes(model, n, SampleConfig(**draw.config, batch_size=batch), given_prefix(prior.sequence, known_NP))
            for model, batch in ((copy.deepcopy(prior).to(setup.device), n), (prior, n // 2))
        ]
        yield _equal(f"{name}: equal codes", *drawn)


def _equal_noise(setup: Setup) -> float:
    """Return the share of the sampler's random numbers that are those of the CPU, of a quarter of a million."""
    keys_B, codes_BK = sample_keys(0, 0, 64), torch.randint(2**20, (64, 4096))
    places_B = torch.arange(64)
    expected, found = (
        race_noise(keys_B.to(device), places_B.to(device), codes_BK.to(device)).cpu()
        for device in (torch.device("cpu"), setup.device)
    )
    return float((found == expected).double().mean())


def _equal(what: str, found_NT: Tensor, expected_NT: Tensor) -> Figure:
    """Return the share of equal codes, of which those of one sample may differ.

    Rounding changes about one code in 10**5, where two codes finish the race almost together, and then all codes of
    that sample after it.
    """
    share = float((found_NT == expected_NT).double().mean())
    return Figure(what, share, "%", at_least=1 - 1 / len(found_NT))


def _prior(setup: Setup, objective: Objective = "ordered") -> Prior:
    """Return a prior on the CPU with random weights, so large that a code depends on those before it."""
    side = setup.pick(8, 4)
    condition = ConditionSpec(name="class", height=1, width=1, vocabulary=_CLASSES, fingerprint="")
    sequence = SequenceSpec(
        height=side, width=side, codebook_size=setup.pick(1024, 64), order="zcurve", fingerprint="check",
        conditions=(condition,), objective=objective,
    )  # fmt: skip
    layers, heads, width = setup.pick((2, 4, 128), (1, 2, 32))
    prior = make_prior(ModelConfig(n_layer=layers, n_head=heads, n_embd=width), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    return prior.eval()


def _codes(prior: Prior, n: int, config: SampleConfig, given_NT: Tensor | None = None) -> Tensor:
    classes_N = torch.arange(n) % _CLASSES
    return sample.sample_sequences(prior, n, condition=classes_N, config=config, given_NT=given_NT)


def prior_samples_compiled(setup: Setup) -> Iterator[Figure]:
    """Compare compiled steps, on a GPU replays of CUDA graphs, with plain ones."""
    require_compiler(setup.device)
    prior, cuda = _prior(setup).to(setup.device), setup.device.type == "cuda"
    programs = setup.pick(((1, 1.0), (8, 2.0)), ((2, 2.0),))
    _forget_compiled()
    try:
        for batch, guidance in programs:
            n = max(8, 2 * batch)  # later batches reuse the cache of the first
            plain, compiled = (
                _codes(prior, n, SampleConfig(batch_size=batch, guidance=guidance, compile=compile, drafts=0))
                for compile in (False, True)
            )
            yield _equal(f"compiled, batch {batch}, guidance {guidance:g}: equal codes", compiled, plain)
        counts = torch._dynamo.utils.counters
        yield Figure("breaks of the compiled step", sum(counts["graph_break"].values()), at_most=0)
        # On a CPU, whose cache grows, a full one is contiguous, and that is another program.
        most = len(programs) * (1 if cuda else 2)
        yield Figure("programs compiled", counts["stats"]["unique_graphs"], at_least=len(programs), at_most=most)
        if cuda:
            yield Figure("programs that use no CUDA graph", counts["inductor"]["cudagraph_skips"], at_most=0)
            # At most one for each cache: if later steps did not replay, there would be hundreds.
            recorded = _recorded_graphs()
            yield Figure("CUDA graphs recorded", recorded, at_least=len(programs), at_most=2 * len(programs))
    finally:
        _forget_compiled()


def _forget_compiled() -> None:
    """Drop compiled steps with their CUDA graphs and counts, because only a few programs are kept for a function."""
    sample._compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def _recorded_graphs() -> int:
    """Return the number of CUDA graphs that compiled code has recorded."""
    from torch._inductor.cudagraph_trees import get_container

    manager = get_container(torch.cuda.current_device()).tree_manager
    return 0 if manager is None else manager.new_graph_id().id
