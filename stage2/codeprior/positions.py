"""Embeddings of where tokens are on the picture, shared by the condition's grids and the image's.

Axes: B batch, S tokens, N the last tokens, which predict image codes, P places of a sequence, T image codes,
D channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codeprior.config import SequenceSpec

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [..., S, E/2] of the angles by which queries and keys are rotated."""


def rotate(x_BHSE: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (channel e, channel e + E/2) of queries or keys (RoPE, arXiv 2104.09864)."""
    cos, sin = rotation
    a, b = x_BHSE.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BHSE.dtype)


def rotation_at(places: Tensor, width: int) -> Rotation:
    """Return RoPE's angles at places [S] or [B, S] for heads of `width` channels, in float32."""
    exponents = torch.arange(0, width, 2, device=places.device) / width
    angles = places[..., None] * torch.pow(10_000.0, -exponents)
    angles = angles[:, None] if places.ndim == 2 else angles  # an axis for the heads
    return angles.cos(), angles.sin()


class GridEmbedding(nn.Module):
    """Row and column of each token's cell, and of the cell that it predicts.

    A condition token and an image code at the same part of the picture have the same row and column, so that the prior
    need not learn which place of the condition belongs to which place of the image. Cells of coarser grids are mapped
    to the full grid by their centres. Tokens without a cell (a class, the constant first token) share an extra row and
    column.
    """

    row_P: Tensor
    column_P: Tensor
    row_T: Tensor
    column_T: Tensor

    def __init__(self, sequence: SequenceSpec, width: int) -> None:
        super().__init__()
        grids = [(part.height, part.width) for part in sequence.conditions] or [(1, 1)]
        names = [part.name for part in sequence.conditions] or ["class"]
        nowhere = np.array([[sequence.height], [sequence.width]])
        before = [
            nowhere if name == "class" else _cells(sequence, np.arange(height * width), height, width)
            for name, (height, width) in zip(names, grids, strict=True)
        ]
        image = [_cells(sequence, sequence.permutation(*grid), *grid) for grid in sequence.grids]
        row_P, column_P = torch.from_numpy(np.concatenate([*before, *image], axis=1))
        C = sequence.condition_length
        for name, cells in (("row_P", row_P), ("column_P", column_P), ("row_T", row_P[C:]), ("column_T", column_P[C:])):
            self.register_buffer(name, cells.contiguous(), persistent=False)
        self.row, self.column = nn.Embedding(sequence.height + 1, width), nn.Embedding(sequence.width + 1, width)
        self.next_row, self.next_column = nn.Embedding(sequence.height, width), nn.Embedding(sequence.width, width)

    def forward(self, places_S: Tensor, targets_N: Tensor) -> Tensor:
        """Embeddings of tokens at `places_S` of a sequence, of which the last predict image codes `targets_N`.

        Args:
            places_S: int64 [S] or [B, S], 0 … P - 1.
            targets_N: int64 [N] or [B, N], 0 … T - 1; N ≤ S.

        Returns:
            [S, D] or [B, S, D].
        """
        x_SD: Tensor = self.row(self.row_P[places_S]) + self.column(self.column_P[places_S])
        next_ND = self.next_row(self.row_T[targets_N]) + self.next_column(self.column_T[targets_N])
        silent = x_SD.shape[-2] - next_ND.shape[-2]
        return torch.cat((x_SD[..., :silent, :], x_SD[..., silent:, :] + next_ND), dim=-2)


def _cells(sequence: SequenceSpec, raster: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """[2, cells]: rows and columns of the full grid at the centres of a grid's cells, numbered row by row."""
    rows, columns = np.divmod(raster, width)
    centre = np.stack(((rows + 0.5) * sequence.height / height, (columns + 0.5) * sequence.width / width))
    return centre.astype(np.int64)
