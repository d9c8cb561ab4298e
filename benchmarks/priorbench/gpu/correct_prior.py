"""Attention, and training steps of the prior, on the device: compared with float64.

Axes: B batch, S tokens, P places of a cache, H heads, E channels per head.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codeprior.attention import KVCache, attend_math, attend_sdpa, attend_xformers, check_attention
from codeprior.augment import augment
from codeprior.config import ConditionSpec, ModelConfig, PriorError, SequenceSpec, TrainConfig
from codeprior.data import Batch
from codeprior.masked import make_prior
from codeprior.model import Prior
from codeprior.optim import make_optimizer
from codeprior.trainer import SequenceLoss, train_step
from priorbench.gpu.check import Figure, Setup, SkipCheckError
from runkit.devices import Autocast, make_autocast

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
_ATTENTION: dict[Autocast, tuple[float, float]] = {"float32": (5e-5, 1e-4), "bfloat16": (0.01, 0.02)}
"""Largest distance of outputs and of gradients. Sums of 512 products in float32 are about 1e-6 from float64, in TF32,
which is not float32, 4e-4; roundings to bfloat16 (2**-9) give about 3e-3."""
_STEPS: dict[Autocast, tuple[float, float]] = {"float32": (1e-5, 1e-4), "bfloat16": (2e-3, 0.05)}
"""Largest distance of losses and of gradients. CPUs that sum in another order are within 1e-7 and 2e-6, those that
round to bfloat16 within 2e-4 and 0.02."""
_PARTS = ("losses", "gradients")


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return ‖found - expected‖ / ‖expected‖ over all elements of lists of tensors of equal shapes, on any devices."""
    difference = total = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        one, other = one.detach().cpu().double(), other.detach().cpu().double()
        difference += float((one - other).square().sum())
        total += float(other.square().sum())
    return math.sqrt(difference / total)


def attention(setup: Setup) -> Iterator[Figure]:
    """Compare attention by sdpa with plain products in float64."""
    widths, lengths = setup.pick((20, 32, 64, 128), (20, 32)), setup.pick((257, 512), (17, 32))
    yield from _compared(setup, "sdpa", attend_sdpa, widths, lengths, (False, True))
    for precision, (limit, _) in _ATTENTION.items():
        found = max(_one_query(setup, precision, width) for width in widths)
        yield Figure(f"sdpa, {precision}, one query of a static cache: outputs", found, at_most=limit)


def attention_xformers(setup: Setup) -> Iterator[Figure]:
    """Compare attention by xformers with plain products in float64."""
    widths, lengths = (32, 64, 128), (257, 512)  # xformers has no kernels for widths that are no multiples of 8
    for precision, width in itertools.product(_ATTENTION, widths):
        try:
            check_attention(ModelConfig(n_head=1, n_embd=width, attention="xformers"), setup.device, precision)
        except PriorError as error:
            raise SkipCheckError(str(error)) from error
    yield from _compared(setup, "xformers", attend_xformers, widths, lengths, (False,))


def _compared(
    setup: Setup, name: str, attend: Attend, widths: tuple[int, ...], lengths: tuple[int, ...], masked: tuple[bool, ...]
) -> Iterator[Figure]:
    """Yield the largest distances over all widths and lengths."""
    for precision, limits in _ATTENTION.items():
        for is_masked in masked:
            found = [_distances(setup, attend, precision, S, E, is_masked) for S in lengths for E in widths]
            kind = "masked" if is_masked else "causal"
            for part, values, limit in zip(("outputs", "gradients"), zip(*found, strict=True), limits, strict=True):
                yield Figure(f"{name}, {precision}, {kind}: {part}", max(values), at_most=limit)


def _distances(setup: Setup, attend: Attend, precision: Autocast, S: int, E: int, masked: bool) -> tuple[float, float]:
    """Return the distances of outputs and gradients for random inputs, which are the same in float64."""
    shape, dtype = (4, 2, setup.pick(4, 2), S, E), getattr(torch, precision)
    *inputs, grad_BHSE = torch.randn(shape, device=setup.device).to(dtype)
    seen_SS = (torch.rand(S, S, device=setup.device) < 0.5) | torch.eye(S, dtype=torch.bool, device=setup.device)
    results = []
    for function, kind in ((attend, dtype), (attend_math, torch.float64)):
        q_BHSE, k_BHSE, v_BHSE = leaves = [x_BHSE.detach().to(kind).requires_grad_() for x_BHSE in inputs]
        out_BHSE = function(q_BHSE, k_BHSE, v_BHSE, seen_SS if masked else None)
        results.append((out_BHSE, torch.autograd.grad(out_BHSE, leaves, grad_BHSE.to(kind))))
    (out, gradients), (exact_out, exact_gradients) = results
    return distance([out], [exact_out]), distance(gradients, exact_gradients)


@torch.inference_mode()
def _one_query(setup: Setup, precision: Autocast, width: int) -> float:
    """Return the distance of the output for a token after a beginning in a static cache."""
    dtype, side = getattr(torch, precision), setup.pick(16, 4)
    sequence = SequenceSpec(height=side, width=side, codebook_size=2, order="row_major", fingerprint="check")
    prior = Prior(ModelConfig(n_layer=1, n_head=2, n_embd=2 * width), sequence).to(setup.device, dtype)
    cache, before = KVCache(prior, 2, static=True), side * side // 2
    shape = (3, 2, 2, before + 1, width)
    q_BHSE, k_BHSE, v_BHSE = torch.randn(shape, device=setup.device).to(dtype)
    cache.extend(0, k_BHSE[:, :, :before], v_BHSE[:, :, :before])
    cache.length = before
    cache.place_1.fill_(before)
    found = attend_sdpa(q_BHSE[:, :, -1:], *cache.extend(0, k_BHSE[:, :, -1:], v_BHSE[:, :, -1:]))
    return distance([found], [attend_math(q_BHSE[:, :, -1:].double(), k_BHSE.double(), v_BHSE.double())])


@dataclass(frozen=True)
class _Case:
    """Options that have code of their own."""

    model: dict[str, Any] = field(default_factory=dict)
    sequence: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


_CONDITIONS = (
    ConditionSpec(name="class", height=1, width=1, vocabulary=10, fingerprint=""),
    ConditionSpec(name="segmentation", height=4, width=4, vocabulary=32, fingerprint="check"),
)
_CASES = {
    "grid positions": _Case(),
    "learned positions, head tied": _Case({"position": "learned", "tie_head": True}),
    "rotary positions, SwiGLU, RMS norm, queries normalised": _Case(
        {"position": "rotary", "mlp": "swiglu", "norm": "rmsnorm", "qk_norm": True}
    ),
    "target positions, permuted, tanh GELU": _Case(
        {"position": "learned", "target_positions": True, "mlp": "gelu_tanh", "qk_norm": True},
        train={"random_order": True},
    ),
    "scales and two conditions": _Case(
        sequence={"scales": (1, 2), "conditions": _CONDITIONS},
        train={"condition": "class+segmentation", "cond_dropout": 0.5, "pkeep": 0.8},
    ),
    "large codebook": _Case(sequence={"codebook_size": 70_000}),
    "any order": _Case(sequence={"objective": "any_order"}, train={"objective": "any_order"}),
    "masked": _Case(sequence={"objective": "masked"}, train={"objective": "masked"}),
    "Muon": _Case(train={"optimizer": "muon"}),
}
"""What is trained. The codebook is above LARGE_CODEBOOK, so that its loss is computed in parts."""


def prior_losses(setup: Setup) -> Iterator[Figure]:
    """Compare losses and updates with the CPU in float32, and gradients with float64, for all options with own code."""
    cpu, in_bfloat16 = torch.device("cpu"), []
    for name, case in _CASES.items():
        example = _example(setup, case)
        losses, gradients = _losses(example, cpu, "float32"), _gradients(example, cpu, "float32", torch.float64)
        for precision, limits in _STEPS.items():
            away = (
                distance([_losses(example, setup.device, precision)], [losses]),
                distance(_gradients(example, setup.device, precision), gradients),
            )
            if precision == "bfloat16":
                in_bfloat16.append(away)
                continue
            for part, found, limit in zip(_PARTS, away, limits, strict=True):
                yield Figure(f"{name}, float32: {part}", found, at_most=limit)
    for part, values, limit in zip(_PARTS, zip(*in_bfloat16, strict=True), _STEPS["bfloat16"], strict=True):
        yield Figure(f"all of these, bfloat16: {part}", max(values), at_most=limit)


class _Example(NamedTuple):
    """A prior with a batch to train it on, on the CPU."""

    prior: Prior
    config: TrainConfig
    batch: Batch


def _example(setup: Setup, case: _Case) -> _Example:
    """Return a case with random weights and codes."""
    side = setup.pick(8, 4)
    sizes = setup.pick({"n_layer": 2, "n_head": 4, "n_embd": 128}, {"n_layer": 1, "n_head": 2, "n_embd": 32})
    grid: dict[str, Any] = {"height": side, "width": side, "codebook_size": 512, "order": "zcurve"}
    sequence = SequenceSpec(**{**grid, "fingerprint": "check", **case.sequence})
    model = ModelConfig(**{**sizes, **case.model})
    config = TrainConfig(model=model, batch_size=4, learning_rate=1e-3, steps=10, **case.train)
    prior = make_prior(model, sequence)
    for parameter in prior.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)  # so that attention matters more than at the start of training
    conditions = [torch.randint(part.vocabulary, (4, part.length)) for part in sequence.conditions]
    batch = Batch(
        condition_BC=torch.cat(conditions, dim=1) if conditions else torch.zeros(4, 1, dtype=torch.int64),
        codes_BT=torch.randint(sequence.codebook_size, (4, sequence.length)),
    )
    return _Example(prior, config, augment(batch, config, sequence, step=0, mine=slice(0, 4)))


def _gradients(
    example: _Example, device: torch.device, precision: Autocast, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return the gradients of all weights, which have type `dtype`."""
    prior = copy.deepcopy(example.prior).to(device, dtype)
    with make_autocast(device, precision):
        loss = SequenceLoss(prior)(**example.batch.to(device).tensors())
    return [*torch.autograd.grad(loss, [*prior.parameters()], materialize_grads=True)]


def _losses(example: _Example, device: torch.device, precision: Autocast) -> Tensor:
    """Return the losses before, between and after three updates as the trainer does them."""
    prior, config, batch = copy.deepcopy(example.prior).to(device), example.config, example.batch.to(device)
    loss, optimizer, autocast = (
        SequenceLoss(prior),
        make_optimizer(prior, config, precision),
        make_autocast(device, precision),
    )
    options: dict[str, Any] = {"learning_rate": config.learning_rate, "grad_clip": config.grad_clip}
    losses = [train_step(loss, optimizer, [batch], **options, autocast=autocast)[0] for _ in range(3)]
    with torch.no_grad(), autocast:
        return torch.stack([*losses, loss(**batch.tensors())])
