"""Drawing from a prior of any order: from any known codes, along any order, several codes per step.

A token of such a prior names the code that it predicts, so the last token that was read can be asked for several codes
at once. The known codes are read first. Each step then reads the codes of the step before and asks for the next ones
(:meth:`codeprior.model.Prior.ask`). So every code has exactly the probability that the trained network gives it after
the codes of all earlier steps, and a step of one code costs no more than in a single order.

Axes: B samples drawn together, R rows that enter the model (B, or 2 · B under guidance), T image codes, Q codes that
are asked for, K of them that are drawn in a step, V image codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from codeprior.attention import KVCache
from codeprior.config import PriorError, SequenceSpec
from codeprior.draw import draw, race_noise, sample_keys
from codeprior.given import UNKNOWN
from codeprior.guidance import guide, with_null
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig

Report = Callable[[Tensor, int], None]
"""Called after every step with the codes [B, T], -1 where none is known, and the number of codes just drawn."""
_RANDOM_ORDER, _CHOICE = -1, -2
"""Places in the streams of random numbers before those of the codes: of the order, and of the choices of each step."""


def drawn_in_own_order(sequence: SequenceSpec, config: SampleConfig, given_NT: Tensor) -> bool:
    """Return whether the codes are drawn one by one in the prior's own order, the known ones being its beginning.

    Raises:
        PriorError: The prior draws in one order only, or the config asks for what only its own order has.
    """
    if sequence.objective == "ordered":
        if config.steps or config.order not in ("auto", sequence.order):
            wish = f"steps = {config.steps}" if config.steps else f"order = {config.order!r}"
            raise PriorError(
                f"{wish}: this prior draws one code after the other in order {sequence.order!r}; train one with "
                "objective 'any_order' or 'masked'"
            )
        return True
    T, known = sequence.length, int((given_NT[:1] != UNKNOWN).sum())
    one_by_one = config.order == sequence.order and not 0 < config.steps < T - known
    own = one_by_one and sequence.objective == "any_order" and bool((given_NT[:, :known] != UNKNOWN).all())
    for name, value in (("compile", config.compile), ("drafts", config.drafts)):
        if value and not own:
            raise PriorError(
                f"{name} = {value}: only codes that a causal prior draws one by one in its own order have it; leave it "
                f"out, or use order = {sequence.order!r} and steps = 0 with a prior of objective 'any_order'"
            )
    return own


def codes_per_step(count: int, steps: int, schedule: str) -> Iterator[int]:
    """Yield how many of `count` codes each step draws, at least one; `steps` = 0: one each.

    With "cosine" a fraction cos(π/2 · s/steps) is unknown after step s (MaskGIT, arXiv 2202.04200, section 3.3).
    """
    steps, before = min(steps or count, count), 0
    for step in range(1, steps + 1):
        share = step / steps if schedule == "constant" else 1 - math.cos(math.pi / 2 * step / steps)
        # One code at least for this step, and for each of those that follow.
        after = max(before + 1, min(round(count * share), count - (steps - step)))
        yield after - before
        before = after


@torch.inference_mode()
def draw_in_any_order(
    prior: Prior, condition_BC: Tensor, given_BT: Tensor, config: SampleConfig, first: int, report: Report
) -> Tensor:
    """Return the codes [B, T] of samples first … first + B - 1, in the prior's order."""
    device, T = prior.device, prior.sequence.length
    keys_B = sample_keys(config.seed, first, len(given_BT)).to(device)
    codes_BT, condition_RC = given_BT.to(device, copy=True), with_null(condition_BC, config).to(device)
    order_BT = drawing_order(prior.sequence, config, codes_BT, keys_B)
    cache, rows = KVCache(prior, len(condition_RC)), (len(condition_RC) // len(given_BT), 1)
    read, known = 0, int((given_BT[0] != UNKNOWN).sum())
    for step, count in enumerate(codes_per_step(T - known, config.steps, config.schedule)):
        asked_BQ = order_BT[:, known : T if config.order == "confidence" else known + count]
        read_BR = order_BT[:, read:known]
        logits_RQV = prior.ask(cache, condition_RC, codes_BT.repeat(rows), read_BR.repeat(rows), asked_BQ.repeat(rows))
        logits_BQV = guide(logits_RQV, config, known / T)
        keys_N = keys_B.repeat_interleave(asked_BQ.shape[1])
        drawn_BQ = draw(logits_BQV.flatten(0, 1), config, keys_N, asked_BQ.flatten(), known / T).view_as(asked_BQ)
        if config.order == "confidence":
            sure_BQ = logits_BQV.log_softmax(dim=2).gather(2, drawn_BQ[..., None])[..., 0]
            gumbel_BQ = -race_noise(keys_B, torch.full_like(keys_B, _CHOICE - step), asked_BQ).log()
            sure_BQ = sure_BQ + config.choice_temperature * (1 - known / T) * gumbel_BQ
            choice_BQ = sure_BQ.argsort(dim=1, descending=True, stable=True)
            cache.keep(choice_BQ[:, 0].repeat(rows[0]))
            asked_BQ, drawn_BQ = asked_BQ.gather(1, choice_BQ), drawn_BQ.gather(1, choice_BQ)
            order_BT = torch.cat((order_BT[:, :known], asked_BQ), dim=1)
        codes_BT.scatter_(1, asked_BQ[:, :count], drawn_BQ[:, :count])
        read, known = known, known + count
        report(codes_BT, count)
    return codes_BT


def drawing_order(sequence: SequenceSpec, config: SampleConfig, codes_BT: Tensor, keys_B: Tensor) -> Tensor:
    """Return the indices of the codes in the order in which they are read or drawn, [B, T]; known codes come first."""
    B, T = codes_BT.shape
    name = config.order
    if name == "auto" or name == "random" or name == "confidence":
        indices_BT = torch.arange(T, device=codes_BT.device).expand(B, T)
        rank_BT = race_noise(keys_B, torch.full_like(keys_B, _RANDOM_ORDER), indices_BT).argsort(stable=True)
    else:
        rank_BT = torch.from_numpy(sequence.indices(name).argsort()).to(codes_BT.device).expand(B, T)
    return (rank_BT + T * (codes_BT == UNKNOWN)).argsort(dim=1)
