"""The loss of a large codebook without its logits: the head and the cross-entropy, one part of the codebook at a time.

Axes: N tokens, D channels, V entries of the codebook, K entries of a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from codeprior.cpu_kernels import linear

LARGE_CODEBOOK = 1 << 16
"""Largest codebook whose logits are computed at once, which takes less time."""
CHUNK = 1 << 14
"""Entries of a part: the logits in memory are those of a codebook of this size."""


def head_nll(x_ND: Tensor, weight_VD: Tensor, codes_N: Tensor) -> Tensor:
    """Return the negative log-likelihood of codes, float32 [N], under the logits x · weightᵀ.

    Under autocast the products have its precision, as those of a linear layer; sums are in float32.

    Args:
        x_ND: Outputs of the last norm.
        weight_VD: Weights of the head.
        codes_N: The targets, int64.
    """
    kind = x_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_ND.dtype
    nll_N: Tensor = _HeadNLL.apply(x_ND.to(dtype), weight_VD, codes_N)
    return nll_N


class _HeadNLL(torch.autograd.Function):
    """The loss and its gradients; the backward pass computes the logits again.

    The codebook is divided and not the tokens, so that each row of the weight's gradient is computed once, in place.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, codes_N: Tensor) -> Tensor:
        total_N = torch.full(codes_N.shape, -torch.inf, device=x_ND.device)
        chosen_N = torch.zeros(codes_N.shape, device=x_ND.device)
        for first, weight_KD in _chunks(weight_VD):
            logits_NK = linear(x_ND, weight_KD.to(x_ND.dtype)).float()
            total_N = torch.logaddexp(total_N, logits_NK.logsumexp(1))
            here_N, local_N = _local(codes_N, first, len(weight_KD))
            chosen_N = torch.where(here_N, logits_NK.gather(1, local_N[:, None])[:, 0], chosen_N)
        ctx.save_for_backward(x_ND, weight_VD, codes_N, total_N)
        return total_N - chosen_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x_ND, weight_VD, codes_N, total_N = ctx.saved_tensors
        (grad_N,) = gradients
        grad_x_ND = torch.zeros_like(x_ND, dtype=torch.float32)
        grad_weight_VD = torch.empty_like(weight_VD)
        for first, weight_KD in _chunks(weight_VD):
            rows_KD = weight_KD.to(x_ND.dtype)
            grad_NK = (linear(x_ND, rows_KD).float() - total_N[:, None]).exp_()
            here_N, local_N = _local(codes_N, first, len(weight_KD))
            grad_NK.scatter_add_(1, local_N[:, None], -here_N.to(grad_NK.dtype)[:, None])
            grad_NK = grad_NK.mul_(grad_N[:, None]).to(x_ND.dtype)
            grad_x_ND += linear(grad_NK, rows_KD.t())
            grad_weight_VD[first : first + len(weight_KD)] = linear(grad_NK.t(), x_ND.t())
        return grad_x_ND.to(x_ND.dtype), grad_weight_VD, None


def _chunks(weight_VD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the first entry of each part, and its rows."""
    for first in range(0, len(weight_VD), CHUNK):
        yield first, weight_VD[first : first + CHUNK]


def _local(codes_N: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Return which codes are in a part, and their index in it (0 for the others)."""
    local_N = codes_N - first
    here_N = (local_N >= 0) & (local_N < size)
    return here_N, local_N.where(here_N, 0)
