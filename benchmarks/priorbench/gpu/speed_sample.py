"""Drawing 256 codes with a class-conditional GPT-2 medium in bfloat16, decoding them, and a rival."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codeprior.config import ConditionSpec, ModelConfig, SequenceSpec
from codeprior.given import given_prefix
from codeprior.model import Prior
from codeprior.sample import prepare, sample_codes, sample_sequences
from codeprior.sample_config import SampleConfig
from priorbench import harness, peers
from priorbench.gpu.check import Figure, Setup
from priorbench.gpu.memory import require_compiler, start_afresh, waits
from priorbench.gpu.replay import replayed
from vqgan.config import ModelConfig as VqganConfig
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer

_CLASSES = 1000
_WARM = 8
"""Codes that a first call draws: with CUDA graphs the first step warms up, the second is recorded."""
_CONFIG = SampleConfig(precision="bfloat16", top_k=100)
_MOST_OVER_READING, _LEAST_IMAGES = 1.5, 150
"""Targets: of the time of batch 1, and of images per second with decoding."""
_MOST_AT_FIRST = 3.0
"""Limit of the time of the first batch, in which libraries start. The attention of cuDNN, which torch 2.11 prefers on
an H100, plans each length of a cache for 25 ms or more: then a first batch takes 7 times as long as a later one."""
_PARTS = 4
"""Graphs of a replayed step that reads no more of the cache than it needs: on average 5/8 of it."""
_FEW = 16
"""Copies before the first code and after the last; a call for each code would be 256."""
Draw = Callable[[], Any]
"""Draws and returns codes in main memory, so nothing need wait for the GPU."""


def sample(setup: Setup) -> Iterator[Figure]:
    """Measure drawing without compilation, guided, in any order, with decoding, and replayed as a plain CUDA graph."""
    start_afresh()
    exact, read = _prior(setup), harness.read_floor()
    prior = prepare(exact, _CONFIG)
    one, some, many = _batches(setup)
    first_s = harness.seconds(_draw(prior, one, _CONFIG))
    for batch in (one, some, many):
        s = _seconds(prior, batch, _CONFIG)
        yield from _figures(f"batch {batch}", prior, batch, s, read)
        if batch == one:
            yield Figure("first batch: time over that of a later one", first_s / s, "×", at_most=_MOST_AT_FIRST)
    yield Figure("calls in a batch that wait for the GPU", waits(_draw(prior, some, _CONFIG)), at_most=_FEW)
    guided_s = _seconds(prior, some, replace(_CONFIG, guidance=3.0))
    yield from _figures(f"batch {some}, guided", prior, 2 * some, guided_s, read, images=some)
    yield _with_pictures(setup, prior, f"batch {many} with decoding", many, _CONFIG)
    yield _equal_codes(exact)
    for batch, parts in ((one, 1), (some, 1), (many, 1), (many, _PARTS)):
        yield from _replayed_figures(prior, batch, parts, read)
    free = prepare(_prior(setup, "any_order"), _CONFIG)
    any_s = _seconds(free, some, replace(_CONFIG, steps=setup.pick(64, 4)))
    yield Figure(f"batch {some}, any order in {setup.pick(64, 4)} steps", some / any_s, "images/s")


def sample_compiled(setup: Setup) -> Iterator[Figure]:
    """Measure drawing with compiled steps, which are CUDA graphs on a GPU."""
    require_compiler(setup.device)
    config = replace(_CONFIG, compile=True)
    start_afresh()
    prior, read = prepare(_prior(setup), config), harness.read_floor()
    one, _, many = _batches(setup)
    for batch, most in ((one, _MOST_OVER_READING), (many, None)):
        what = f"batch {batch}, compiled"
        yield Figure(f"{what}: first {_WARM} codes", harness.seconds(_draw(prior, batch, config, _WARM)), "s")
        yield from _figures(what, prior, batch, _seconds(prior, batch, config), read, at_most=most)
    yield _with_pictures(setup, prior, f"batch {many}, compiled, with decoding", many, config, at_least=_LEAST_IMAGES)
    start_afresh()


def sample_transformers(setup: Setup) -> Iterator[Figure]:
    """Measure `generate` of GPT2LMHeadModel with a static cache, and this project in the same batches."""
    start_afresh()
    prior = prepare(_prior(setup), _CONFIG)
    config, length = prior.config, prior.sequence.length
    with setup.device:
        model = peers.gpt2(_CLASSES, length, layers=config.n_layer, heads=config.n_head, width=config.n_embd)
    model.bfloat16()
    for batch in _batches(setup)[:2]:
        generate = partial(_generate, model, batch, setup.device)
        theirs_s = _median_s(partial(generate, length), warm=partial(generate, _WARM))
        own_s = _seconds(prior, batch, _CONFIG)
        yield Figure(f"transformers, batch {batch}: time per code", theirs_s / length * 1000, "ms")
        yield Figure(f"imagepriors, batch {batch}: time per code", own_s / length * 1000, "ms")
        yield Figure(f"batch {batch}: imagepriors over transformers", theirs_s / own_s, "×", at_least=1.0)


@torch.inference_mode()
def _generate(model: Any, batch: int, device: torch.device, length: int) -> Tensor:
    """Draw by transformers, without its compilation, which takes longer than all else here."""
    start = torch.randint(_CLASSES, (batch, 1), device=device)
    found: Tensor = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=length, min_new_tokens=length, do_sample=True,
        top_k=100, cache_implementation="static", disable_compile=True,
    )  # fmt: skip
    return found.cpu()


def _batches(setup: Setup) -> tuple[int, int, int]:
    return setup.pick((1, 64, 256), (2, 3, 4))


def _prior(setup: Setup, objective: str = "ordered") -> Prior:
    """Return GPT-2 medium over 16×16 codes of 1,024, or a tiny prior, with random weights in float32."""
    side, codes = setup.pick((16, 1024), (4, 64))
    layers, heads, width = setup.pick((24, 16, 1024), (1, 2, 32))
    classes = ConditionSpec(name="class", height=1, width=1, vocabulary=_CLASSES, fingerprint="")
    sequence = SequenceSpec(
        height=side, width=side, codebook_size=codes, order="row_major", fingerprint="benchmark",
        conditions=(classes,), objective=objective,  # type: ignore[arg-type]
    )  # fmt: skip
    position = "learned" if objective == "ordered" else "grid"
    config = ModelConfig(n_layer=layers, n_head=heads, n_embd=width, position=position)  # type: ignore[arg-type]
    with setup.device:
        return Prior(config, sequence).to(setup.device)


def _draw(prior: Prior, batch: int, config: SampleConfig, codes: int | None = None) -> Draw:
    """Return a function that draws a batch, or only its last codes."""
    length = prior.sequence.length
    known = torch.zeros(batch, 0 if codes is None else length - codes, dtype=torch.int64)
    return partial(
        sample_sequences, prior, batch, condition=torch.arange(batch) % _CLASSES,
        config=replace(config, batch_size=batch), given_NT=given_prefix(prior.sequence, known),
    )  # fmt: skip


def _seconds(prior: Prior, batch: int, config: SampleConfig) -> float:
    return _median_s(_draw(prior, batch, config), warm=_draw(prior, batch, config, _WARM))


def _median_s(draw: Draw, warm: Draw) -> float:
    warm()
    return harness.median_seconds(draw, warm=0, repeats=3)


def read_bytes(prior: Prior, rows: int) -> float:
    """Bytes that a code reads at least: the weights of matrix products, and the filled part of the cache on average."""
    linear = [module.weight for module in prior.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(weight.numel() for weight in linear)
    tokens = prior.sequence.condition_length + (prior.sequence.length - 1) / 2
    cache = 2 * prior.config.n_layer * rows * prior.config.n_embd * tokens
    return (weights + cache) * prior.code_embedding.weight.itemsize


def _figures(
    what: str,
    prior: Prior,
    rows: int,
    s: float,
    read: float,
    *,
    images: int | None = None,
    at_most: float | None = None,
) -> Iterator[Figure]:
    """Yield the figures of a batch that took so many seconds.

    Args:
        what: Name of the batch.
        prior: The prior.
        rows: Rows that enter it.
        s: Seconds of the batch.
        read: Bytes per second that the device reads.
        images: Pictures of the batch; None: one per row.
        at_most: Limit of the time over the time of reading.
    """
    code_s = s / prior.sequence.length
    yield Figure(f"{what}: time per code", code_s * 1000, "ms")
    yield Figure(what, (images or rows) / s, "images/s")
    over = code_s / (read_bytes(prior, rows) / read)
    yield Figure(f"{what}: time over that of reading weights and cache", over, "×", at_most=at_most)


def _with_pictures(
    setup: Setup, prior: Prior, what: str, batch: int, config: SampleConfig, at_least: float | None = None
) -> Figure:
    """Return the speed of drawing codes and decoding them to pictures in main memory."""
    tokenizer, classes = _tokenizer(setup), torch.arange(batch) % _CLASSES
    config = replace(config, batch_size=batch)

    def draw() -> Any:
        return tokenizer.decode(sample_codes(prior, batch, condition=classes, config=config).numpy())

    return Figure(what, batch / _median_s(draw, warm=draw), "images/s", at_least=at_least)


def _tokenizer(setup: Setup) -> Tokenizer:
    """Return the f16 tokenizer with 1,024 codes, with random weights."""
    small = VqganConfig(
        resolution=64, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(4,), z_channels=32,
        embed_dim=32, codebook_size=64,
    )  # fmt: skip
    config = setup.pick(VqganConfig(), small)
    with setup.device:
        model = VQGAN(config)
    return Tokenizer(config, model, "benchmark", setup.device, "bfloat16")


def _equal_codes(exact: Prior) -> Figure:
    """Return the share of codes that a replayed step draws as `sample_sequences` does, in float32.

    In bfloat16 attention with a mask rounds otherwise than without, and one other code changes all later ones, also in
    float32: one of the eight sequences may differ.
    """
    config = replace(_CONFIG, precision="float32", guidance=3.0)
    exact = prepare(exact, config)
    expected = _draw(exact, 4, config)()
    classes_B1 = torch.arange(4)[:, None]
    equal = [replayed(exact, classes_B1, config, parts)() == expected for parts in (1, _PARTS)]
    value = float(torch.stack(equal).double().mean())
    return Figure("replayed steps: codes equal to those of separate steps", value, "%", at_least=7 / 8)


def _replayed_figures(prior: Prior, batch: int, parts: int, read: float) -> Iterator[Figure]:
    """Yield the speed of a step that is recorded once for each part of the cache, without a compiler."""
    classes_B1 = torch.arange(batch)[:, None] % _CLASSES
    start = time.perf_counter()
    draw = replayed(prior, classes_B1, _CONFIG, parts)
    what = f"batch {batch}, replayed" + f", {parts} graphs" * (parts > 1)
    yield Figure(f"{what}: recording", time.perf_counter() - start, "s")
    yield from _figures(what, prior, batch, _median_s(draw, warm=draw), read)
