"""Sampling of grids larger than the training grid by a sliding window (Esser et al. 2021).

Axes: B samples drawn together, R rows that enter the model, C condition tokens, T codes of a window, H × W the
training grid, h × w the larger one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codeprior.config import PriorError, SequenceSpec
from codeprior.draw import draw, sample_keys
from codeprior.guidance import guide, with_null
from codeprior.model import Prior
from codeprior.sample import Condition, condition_tokens, conditions_by_name, new_cache, next_codes, prepare
from codeprior.sample_config import SampleConfig
from runkit.progress import tqdm


def sample_larger(
    prior: Prior,
    n: int,
    height: int,
    width: int,
    *,
    condition: Condition | None = None,
    config: SampleConfig | None = None,
) -> Tensor:
    """Draw n grids of codes larger than those the prior was trained on, row by row.

    Every code is predicted inside a window of the size of the training grid. The code is as near to the centre of the
    window as the borders allow.

    Args:
        prior: The prior, of order row_major and without scales.
        n: Number of samples.
        height: Rows of the larger grid.
        width: Columns of the larger grid.
        condition: As for :func:`codeprior.sample.sample_codes`. Codes of images are grids [n, …, …] that are larger in
            the same proportion; every window uses its part of them.
        config: How to draw.

    Returns:
        int64 [n, height, width] on the CPU.

    Raises:
        PriorError: The prior or the config has another order, the grid is smaller, or the condition does not fit.
    """
    config, sequence = config or SampleConfig(), prior.sequence
    if sequence.objective == "masked":
        raise PriorError("larger grids require a prior that reads one code after the other; this one is masked")
    if sequence.order != "row_major" or sequence.scales:
        raise PriorError(
            f"larger grids require a prior of order row_major without scales; this one has order {sequence.order!r}"
            + (f" and scales {sequence.scales}" if sequence.scales else "")
        )
    for name, value in (("steps", config.steps), ("drafts", config.drafts)):
        if value:
            raise PriorError(f"{name} = {value}: larger grids are drawn code by code; use 0")
    if config.order not in ("auto", "row_major"):
        raise PriorError(f"order = {config.order!r}: larger grids are drawn in order row_major; use 'auto'")
    if height < sequence.height or width < sequence.width:
        raise PriorError(f"{height}×{width} codes: use at least the training grid, {sequence.height}×{sequence.width}")
    prior = prepare(prior, config)
    windows = _Conditions(sequence, n, height, width, condition)
    batches = [
        _draw_batch(prior, windows, range(start, min(n, start + config.batch_size)), height, width, config)
        for start in range(0, n, config.batch_size)
    ]
    return torch.cat(batches) if batches else torch.empty((0, height, width), dtype=torch.int64)


class _Conditions:
    """The condition tokens of each window."""

    def __init__(self, sequence: SequenceSpec, n: int, height: int, width: int, condition: Condition | None) -> None:
        self.sequence, self.n = sequence, n
        self.given = conditions_by_name(sequence, condition)
        for part in sequence.conditions:
            wanted = [n, part.height * height // sequence.height, part.width * width // sequence.width]
            found = list(self.given[part.name].shape)
            if part.name != "class" and found != wanted:
                raise PriorError(f"condition {part.name!r} is {found}: this grid of codes requires {wanted}")
        self.at(0, 0)  # refuse a condition that does not fit before anything is drawn

    def at(self, top: int, left: int) -> Tensor:
        """Return the tokens [n, C] for the window whose first cell is (top, left)."""
        seen = dict(self.given)
        for part in self.sequence.conditions:
            if part.name != "class":
                row, column = top * part.height // self.sequence.height, left * part.width // self.sequence.width
                seen[part.name] = seen[part.name][:, row : row + part.height, column : column + part.width]
        return condition_tokens(self.sequence, self.n, seen or None)


@torch.inference_mode()
def _draw_batch(
    prior: Prior, windows: _Conditions, samples: range, height: int, width: int, config: SampleConfig
) -> Tensor:
    H, W, B = prior.sequence.height, prior.sequence.width, len(samples)
    keys_B = sample_keys(config.seed, samples.start, B).to(prior.device)
    codes_Bhw = torch.zeros((B, height, width), dtype=torch.int64, device=prior.device)
    cache, before = None, None
    for t in tqdm(range(height * width), desc="sample", unit="code", disable=None):
        row, column = divmod(t, width)
        top = min(max(row - H // 2, 0), height - H)
        left = min(max(column - W // 2, 0), width - W)
        local = (row - top) * W + column - left
        t_1 = torch.full((1,), t, device=prior.device)
        progress = t_1 / (height * width)
        if cache is not None and before == (top, left, local - 1):  # same window: the cache is valid
            codes_B = codes_Bhw.flatten(1)[:, t - 1]
            codes_Bhw[:, row, column] = next_codes(prior, cache, codes_B, config, keys_B, t_1, progress)
        else:
            condition_BC = windows.at(top, left)[samples.start : samples.stop]
            condition_RC = with_null(condition_BC, config).to(prior.device)
            cache = cache or new_cache(prior, len(condition_RC), config)
            cache.length = 0
            codes_BT = codes_Bhw[:, top : top + H, left : left + W].flatten(1)[:, :local]
            logits_RV = prior.prefill(condition_RC, cache, codes_BT.repeat(len(condition_RC) // B, 1))
            codes_Bhw[:, row, column] = draw(guide(logits_RV, config, progress), config, keys_B, t_1, progress)
        before = (top, left, local)
    return codes_Bhw.cpu()
