"""A masked prior: every image code is predicted at once from those that are known (MaskGIT, arXiv 2202.04200).

Its attention is bidirectional, so that a forward pass reads the whole sequence, in which an embedding of its own stands
for every hidden code. In training each sequence hides a fraction cos(π/2 · u) of its codes, u uniform in 0 … 1, and the
loss is that of the hidden codes. It is drawn from as a prior of any order, but without a cache.

Axes: B batch, C condition tokens, T image codes, Q codes that are asked for, S = C + T tokens, D channels, V codebook.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codeprior.attention import KVCache
from codeprior.config import ModelConfig, PriorError, SequenceSpec
from codeprior.draw import race_noise
from codeprior.given import UNKNOWN
from codeprior.model import Prior

_MEAN_HIDDEN = 2 / math.pi
"""Mean of cos(π/2 · u), the fraction of codes that training hides."""
_COUNT, _ORDER = -1, -2
"""Places in the streams of random numbers of the bound: of the number of hidden codes, and of which they are."""


def make_prior(config: ModelConfig, sequence: SequenceSpec) -> Prior:
    """Return a prior of the sequence's objective with initial weights."""
    return (MaskedPrior if sequence.objective == "masked" else Prior)(config, sequence)


class MaskedPrior(Prior):
    """p(hidden image codes | condition, known image codes), all at once and independent of each other."""

    def __init__(self, config: ModelConfig, sequence: SequenceSpec) -> None:
        super().__init__(config, sequence)
        self.mask_embedding = nn.Embedding(1, config.n_embd)
        nn.init.normal_(self.mask_embedding.weight, std=0.02)
        self.max_tokens = 0  # a cache holds nothing

    def forward(
        self,
        condition_BC: Tensor,
        codes_BT: Tensor,
        positions_BT: Tensor | None = None,
        *,
        targets_BT: Tensor | None = None,
    ) -> Tensor:
        """Return logits [B, T, V] for every code, or the loss [B, T] of each; hidden codes are -1.

        Raises:
            PriorError: Positions are given: it reads no order.
        """
        if positions_BT is not None:
            raise PriorError("positions: a masked prior reads all codes at once, so its loss depends on no order")
        return self._predict(self._read(condition_BC, codes_BT), targets_BT)

    def nll(
        self,
        condition_BC: Tensor,
        codes_BT: Tensor,
        *,
        inputs_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the hidden codes, float32 [B, T] in nats and zero for the others.

        Its mean over a training batch estimates that per hidden code. Without inputs its mean over a sequence
        estimates an upper bound of the negative log-likelihood per code: that of codes drawn one by one in a random
        order. Codes that :func:`bound_mask` chooses are then hidden, their number uniform in 1 … T.

        Args:
            condition_BC: As for :class:`Prior`.
            codes_BT: The targets.
            inputs_BT: The targets with -1 for hidden codes.
            positions_BT: None: a token knows its cell.
        """
        if inputs_BT is not None:
            hidden_BT = inputs_BT == UNKNOWN
            return self._losses(condition_BC, inputs_BT, codes_BT, positions_BT) * hidden_BT / _MEAN_HIDDEN
        hidden_BT = bound_mask(codes_BT)
        loss_BT = self._losses(condition_BC, codes_BT.masked_fill(hidden_BT, UNKNOWN), codes_BT, positions_BT)
        return loss_BT * hidden_BT / hidden_BT.float().mean(dim=1, keepdim=True)

    def ask(self, cache: KVCache, condition_BC: Tensor, codes_BT: Tensor, read_BR: Tensor, asked_BQ: Tensor) -> Tensor:
        """Predict Q codes from all that are known, and read nothing into the cache; arguments as for :class:`Prior`."""
        x_BTD = self._read(condition_BC, codes_BT)
        return self._logits(x_BTD.gather(1, asked_BQ[..., None].expand(-1, -1, x_BTD.shape[2])))

    def _read(self, condition_BC: Tensor, codes_BT: Tensor) -> Tensor:
        C, S = condition_BC.shape[1], condition_BC.shape[1] + codes_BT.shape[1]
        places_S = torch.arange(S, device=codes_BT.device)
        known_BTD = self._embed_codes(codes_BT.clamp(min=0), places_S[C:])
        image_BTD = torch.where((codes_BT == UNKNOWN)[..., None], self.mask_embedding.weight, known_BTD)
        x_BSD = torch.cat((self._embed_condition(condition_BC), image_BTD), dim=1)
        everything_SS = torch.ones(S, S, dtype=torch.bool, device=codes_BT.device)
        return self._run_blocks(x_BSD, places_S, places_S[: S - C], None, everything_SS)[:, C:]


def training_mask(count_bits_B1: NDArray[np.uint64], order_bits_BT: NDArray[np.uint64]) -> Tensor:
    """Return which codes training hides, bool [B, T], from random bits: how many by the first, which by the others."""
    T, u_B1 = order_bits_BT.shape[1], count_bits_B1 * 2.0**-64
    count_B1 = np.ceil(np.cos(np.pi / 2 * u_B1) * T).clip(1, T)
    return torch.from_numpy(order_bits_BT.argsort(axis=1, kind="stable").argsort(axis=1) < count_B1)


def bound_mask(codes_BT: Tensor) -> Tensor:
    """Return which codes the bound hides, bool [B, T]: a function of each sequence, as its batches must not matter."""
    T = codes_BT.shape[1]
    factors_T = torch.full((T,), 0x5851F42D4C957F2D, device=codes_BT.device).cumprod(0)  # odd, so none vanishes
    keys_B = ((codes_BT + 1) * factors_T).sum(dim=1)
    u_B1 = (-race_noise(keys_B, torch.full_like(keys_B, _COUNT), torch.zeros_like(keys_B)[:, None])).exp()
    indices_BT = torch.arange(T, device=codes_BT.device).expand_as(codes_BT)
    order_BT = race_noise(keys_B, torch.full_like(keys_B, _ORDER), indices_BT).argsort(dim=1, stable=True)
    return order_BT.argsort(dim=1) <= (u_B1 * T).long().clamp(max=T - 1)
