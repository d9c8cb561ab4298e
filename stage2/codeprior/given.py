"""Known codes, which samples complete: [N, T] codes in the prior's order, with -1 where a code is to be drawn.

Axes: N samples, T image codes of a sequence, P known codes at its beginning, H × W the code grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codeprior.config import PriorError, SequenceSpec
from codeshards.format import defined_orders, order

UNKNOWN = -1
"""A code that is to be drawn."""


def given_prefix(sequence: SequenceSpec, codes_NP: Tensor) -> Tensor:
    """Return [N, T] from the first P codes of every sequence.

    Raises:
        PriorError: There are more than T codes.
    """
    if codes_NP.ndim != 2 or codes_NP.shape[1] > sequence.length:
        raise PriorError(f"the first codes are {list(codes_NP.shape)}: expected [N, at most {sequence.length}]")
    rest = torch.full((len(codes_NP), sequence.length - codes_NP.shape[1]), UNKNOWN)
    return torch.cat((codes_NP.to("cpu", torch.int64), rest), dim=1)


def given_scales(sequence: SequenceSpec, grids: Sequence[Tensor]) -> Tensor:
    """Return [N, T] from the first scales [N, s, s] of a multiscale prior, coarsest first.

    Raises:
        PriorError: The prior has no such scales.
    """
    wanted = sequence.grids[: len(grids)]
    found = tuple(tuple(grid.shape[1:]) for grid in grids)
    if not grids or found != wanted or len(grids) > len(sequence.scales):
        raise PriorError(
            f"scales of {found} are given; this prior's are {sequence.grids[:-1] or 'none'}, coarsest first"
        )
    parts = [
        grid.flatten(1)[:, torch.from_numpy(sequence.permutation(*size).copy())]
        for grid, size in zip(grids, wanted, strict=True)
    ]
    return given_prefix(sequence, torch.cat(parts, dim=1))


def given_region(sequence: SequenceSpec, codes_NHW: Tensor, region_HW: Tensor) -> Tensor:
    """Return [N, T] from the codes in a region.

    Args:
        sequence: That of the prior.
        codes_NHW: Grids of codes; codes outside the region are ignored.
        region_HW: Bool, the known cells.

    Raises:
        PriorError: The shapes do not fit, or the prior has one order that does not begin with the region.
    """
    height, width = sequence.height, sequence.width
    if sequence.scales:
        raise PriorError("a multiscale prior draws the coarse scales first: give it scales, not a region")
    if region_HW.shape != (height, width) or codes_NHW.shape[1:] != (height, width):
        raise PriorError(
            f"region {list(region_HW.shape)} of codes {list(codes_NHW.shape)}: this prior's grid is {height}×{width}"
        )
    permutation = torch.from_numpy(sequence.permutation(height, width).copy())
    known_T = region_HW.flatten().bool()[permutation]
    check_known(sequence, known_T)
    return codes_NHW.flatten(1)[:, permutation].to("cpu", torch.int64).where(known_T, UNKNOWN)


def check_known(sequence: SequenceSpec, known_T: Tensor) -> None:
    """Refuse known codes, bool [T] in the prior's order, that the prior cannot complete.

    Raises:
        PriorError: The prior has one order, which does not begin with them.
    """
    count = int(known_T.sum())
    if sequence.objective != "ordered" or known_T[:count].all():
        return
    height, width = sequence.height, sequence.width
    names: list[str] = []
    if not sequence.scales:
        inside = np.empty_like(known_T.numpy())
        inside[sequence.permutation(height, width)] = known_T.numpy()
        names = [name for name in defined_orders(height, width) if inside[order(name, height, width)[:count]].all()]
    raise PriorError(
        f"these {count} known codes are not what order {sequence.order!r} begins with, so this prior cannot complete "
        f"them; orders that begin with them: {', '.join(names) or 'none'}. A prior of objective 'any_order' or "
        "'masked' completes any"
    )


def checked_given(sequence: SequenceSpec, n: int, given_NT: Tensor | None) -> Tensor:
    """Return known codes as int64 [n, T] on the CPU; without any, all are unknown.

    Raises:
        PriorError: The shape or a code is wrong, nothing is left to draw, samples differ in the number of known codes,
            or the prior cannot complete them.
    """
    T = sequence.length
    if given_NT is None:
        return torch.full((n, T), UNKNOWN)
    if given_NT.shape != (n, T) or given_NT.is_floating_point():
        raise PriorError(f"given codes are {given_NT.dtype} {list(given_NT.shape)}: expected integers [{n}, {T}]")
    given_NT = given_NT.to("cpu", torch.int64)
    low, high = (int(given_NT.min()), int(given_NT.max())) if n else (UNKNOWN, UNKNOWN)
    if not UNKNOWN <= low <= high < sequence.codebook_size:
        raise PriorError(
            f"given codes are {low} … {high}: the codebook has 0 … {sequence.codebook_size - 1}, and {UNKNOWN} is "
            "a code to draw"
        )
    known_NT = given_NT != UNKNOWN
    counts = known_NT.sum(dim=1)
    if n and int(counts.min()) != int(counts.max()):
        raise PriorError(
            f"{int(counts.min())} to {int(counts.max())} codes of each sample are given: draw samples together that "
            "have equally many"
        )
    if n and int(counts[0]) >= T:
        raise PriorError(f"all {T} codes of each sample are given: leave some to draw")
    for known_T in torch.unique(known_NT, dim=0):
        check_known(sequence, known_T)
    return given_NT
