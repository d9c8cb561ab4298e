"""Quantisers with fixed code vectors: each channel of the latent is rounded to a digit, and a code is their number.

The first channel is the lowest digit. Nothing is stored and no code is searched, so that codebooks can be large.

Axes: B batch, h w grid cells, N = B·h·w latent vectors, K codes, D channels of the latent, the digits of a code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.config import LossConfig, ModelConfig
from vqgan.quantize import Quantizer, entropy_term, rows

_GROUP = 10
"""Most bits whose 2^bits joint values the entropy term considers together, which bounds its memory."""


class _DigitQuantizer(Quantizer):
    """Codes as numbers of D digits, of which digit d has `levels[d]` values."""

    def __init__(self, levels: tuple[int, ...], loss: LossConfig) -> None:
        super().__init__()
        self.levels, self.loss = levels, loss

    def _number(self, digits_ND: Tensor) -> Tensor:
        """Return the code of each row of digits, int64 [N]."""
        return sum(digits_ND[:, d].long() * math.prod(self.levels[:d]) for d in range(len(self.levels)))  # type: ignore[return-value]

    def _digits(self, codes: Tensor) -> Tensor:
        """Return the digits of codes, int64 [..., D]."""
        parts = [codes // math.prod(self.levels[:d]) % self.levels[d] for d in range(len(self.levels))]
        return torch.stack(parts, dim=-1)

    def _vectors(self, digits: Tensor) -> Tensor:
        """Return the code vectors of digits, float32 [..., D]."""
        raise NotImplementedError

    def codebook(self) -> Tensor:
        """Return the code vectors that are decoded, float32 [K, D], on the CPU."""
        return self.codebook_on(torch.device("cpu"))

    def codebook_on(self, device: torch.device) -> Tensor:
        """Return the same, computed on a device."""
        return self._vectors(self._digits(torch.arange(math.prod(self.levels), device=device)))

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Return code vectors, float32 [B, D, h, w]."""
        return self._vectors(self._digits(codes_Bhw)).permute(0, 3, 1, 2)


class FiniteScalarQuantizer(_DigitQuantizer):
    """FSQ (Mentzer et al. 2023): each channel is bounded by a tanh and rounded to one of its levels.

    Code vectors are in [-1, 1]. There is no loss, because nothing but the encoder is trained.
    """

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__(config.levels, loss)

    def _bounded(self, z_ND: Tensor) -> Tensor:
        """Return latents whose rounded values are the digits, counted from the middle level."""
        levels_D = self._levels(z_ND)
        half_D = (levels_D - 1) * (1 + 1e-3) / 2
        offset_D = torch.where(levels_D % 2 == 0, 0.5, 0.0)  # an even number of levels has no level in the middle
        return (z_ND + (offset_D / half_D).atanh()).tanh() * half_D - offset_D

    def _levels(self, like: Tensor) -> Tensor:
        # Each is a kernel on a GPU, where the CPU would wait for the copy of a tensor of them.
        return torch.stack([like.new_full((), level) for level in self.levels])

    def _middle(self, like: Tensor) -> Tensor:
        return self._levels(like) // 2

    def _vectors(self, digits: Tensor) -> Tensor:
        middle_D = self._middle(digits)
        return (digits - middle_D).float() / middle_D

    def codes(self, z_BDhw: Tensor) -> Tensor:
        """Return the code of each latent vector, int64 [B, h, w]."""
        batch, _, height, width = z_BDhw.shape
        z_ND = self._bounded(rows(z_BDhw)).round()
        return self._number(z_ND + self._middle(z_ND)).view(batch, height, width)

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; return vectors [B, D, h, w] with a gradient to z, a loss of zero, and the codes [B, h, w]."""
        codes_Bhw = self.codes(z_BDhw.detach())
        batch, dim, height, width = z_BDhw.shape
        z_ND = rows(z_BDhw)
        bounded_ND = self._bounded(z_ND) / self._middle(z_ND)
        bounded_BDhw = bounded_ND.view(batch, height, width, dim).permute(0, 3, 1, 2)
        q_BDhw = bounded_BDhw + (self.lookup(codes_Bhw) - bounded_BDhw).detach()
        # Zero, but a function of the latent: the trainer differentiates every term of the loss.
        return q_BDhw, 0.0 * bounded_ND.mean(), codes_Bhw


class LookupFreeQuantizer(_DigitQuantizer):
    """LFQ (Yu et al. 2023, MAGVIT-v2) and BSQ (Zhao et al. 2024): a bit per channel, the sign of the latent.

    Code vectors are ±1; those of BSQ are scaled to the unit sphere, on which its latents are too.
    """

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__((2,) * config.embed_dim, loss)
        self.spherical = config.quantizer == "bsq"

    def _vectors(self, digits: Tensor) -> Tensor:
        return (2.0 * digits - 1.0) * (len(self.levels) ** -0.5 if self.spherical else 1.0)

    def codes(self, z_BDhw: Tensor) -> Tensor:
        """Return the code of each latent vector, int64 [B, h, w]."""
        batch, _, height, width = z_BDhw.shape
        return self._number(rows(z_BDhw) > 0).view(batch, height, width)

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; return vectors [B, D, h, w] with a gradient to z, the loss, and the codes [B, h, w].

        The loss is β times the commitment term, and the entropy term, which keeps all bits in use.
        """
        z_BDhw = F.normalize(z_BDhw.float(), dim=1) if self.spherical else z_BDhw.float()
        codes_Bhw = self.codes(z_BDhw.detach())
        q_BDhw = self.lookup(codes_Bhw)
        loss = self.loss.beta * F.mse_loss(z_BDhw, q_BDhw)
        if self.loss.entropy_weight:
            loss = loss + self.loss.entropy_weight * self._entropy(rows(z_BDhw))
        return z_BDhw + (q_BDhw - z_BDhw).detach(), loss, codes_Bhw

    def _entropy(self, z_ND: Tensor) -> Tensor:
        """Return the entropy term, summed over groups of channels, as if these were independent of one another."""
        groups = -(-len(self.levels) // _GROUP)
        scale = len(self.levels) ** -0.5 if self.spherical else 1.0
        terms = []
        for part_Nd in z_ND.tensor_split(groups, dim=1):
            bits = torch.arange(2 ** part_Nd.shape[1], device=z_ND.device)
            vectors_Kd = torch.stack([bits >> d & 1 for d in range(part_Nd.shape[1])], dim=1) * 2.0 - 1.0
            with torch.autocast(z_ND.device.type, enabled=False):
                affinity_NK = 2 * scale * part_Nd @ vectors_Kd.T  # minus the squared distance, up to a constant
                terms.append(entropy_term(affinity_NK / self.loss.entropy_temperature))
        return torch.stack(terms).sum()
