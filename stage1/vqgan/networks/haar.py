"""The Haar wavelet transform by which Cosmos (NVIDIA 2024) makes squares of pixels the channels of cells.

Each round halves the sides. From each 2×2 square of a channel it makes four: the mean, then a quarter of the
differences between rows, between columns and between diagonals.

Axes: B batch, C channels, H W pixels, P side of a square.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def haar(x_BCHW: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, C·P², H/P, W/P]; P is a power of two."""
    for _ in range(patch.bit_length() - 1):
        squares = F.pixel_unshuffle(x_BCHW, 2).unflatten(1, (-1, 4))  # type: ignore[no-untyped-call]
        x_BCHW = _sums(squares, dim=2).flatten(1, 2) / 4
    return x_BCHW


def inverse_haar(x_BChw: Tensor, patch: int) -> Tensor:
    """[B, C·P², h, w] → [B, C, h·P, w·P]."""
    for _ in range(patch.bit_length() - 1):
        bands = x_BChw.unflatten(1, (4, -1))  # type: ignore[no-untyped-call]
        x_BChw = F.pixel_shuffle(_sums(bands, dim=1).transpose(1, 2).flatten(1, 2), 2)
    return x_BChw


def _sums(parts: Tensor, dim: int) -> Tensor:
    """Replace four parts along an axis by the sums with the signs of the Haar transform, on a new axis 1."""
    a, b, c, d = parts.unbind(dim)
    return torch.stack((a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d), dim=1)
