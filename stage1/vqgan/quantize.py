"""Vector quantisers: plain VQ, L2-normalised codes, an EMA codebook for either, and the released Gumbel models'.

Axes: B batch, h w grid cells, N = B·h·w latent vectors, K codes, D code dimension.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import LossConfig, ModelConfig

_DISTANCES = 2**26
"""Distances computed at once, so that large codebooks and batches do not need gigabytes."""


def rows(z_BDhw: Tensor) -> Tensor:
    """[B, D, h, w] → one latent vector a row, float32 [N, D]."""
    return z_BDhw.float().permute(0, 2, 3, 1).flatten(0, 2)


def _nearest(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index of the code nearest to each vector, int64 [N]."""
    # ‖z‖² is the same for every code and, on the sphere, scaling z changes no order: both are left out.
    norm_K = codebook_KD.square().sum(1)
    chunks = torch.split(z_ND, max(1, _DISTANCES // len(codebook_KD)))
    return torch.cat([torch.addmm(norm_K, chunk_ND, codebook_KD.T, alpha=-2).argmin(1) for chunk_ND in chunks])


def pooled_codes(codes_Bhw: Tensor, codebook_KD: Tensor, side: int) -> Tensor:
    """Codes int64 [B, S, S] of a coarser grid: the code vectors of each block, averaged and quantised again.

    A function of the codes and the codebook alone, on every device: in float64 rounding decides between no two codes.
    """
    codebook_KD = codebook_KD.double()
    batch, height, width = codes_Bhw.shape
    q_BDhw = F.embedding(codes_Bhw, codebook_KD).permute(0, 3, 1, 2)
    pooled_BDSS = F.avg_pool2d(q_BDhw, (height // side, width // side))
    return _nearest(pooled_BDSS.permute(0, 2, 3, 1).flatten(0, 2), codebook_KD).view(batch, side, side)


def _sum_over_ranks(*tensors: Tensor) -> None:
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


class VectorQuantizer(nn.Module):
    """Nearest-code quantiser with a straight-through gradient (van den Oord et al. 2017), always in float32.

    bfloat16 distances change most codes, so autocast is switched off inside. With `quantizer = "l2"` latents and codes
    are compared and decoded on the unit sphere (Yu et al. 2021, ViT-VQGAN). With `codebook_decay` the codes follow
    the mean of their latents (VQ-VAE paper, appendix A.1) instead of a gradient.
    """

    used_K: Tensor
    counts_K: Tensor
    sums_KD: Tensor

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        size, dim = config.codebook_size, config.embed_dim
        self.normalize = config.quantizer == "l2"
        self.loss = loss
        self.embedding = nn.Embedding(size, dim)
        if self.normalize:
            nn.init.normal_(self.embedding.weight)
        else:
            nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)
        # Training state: saved with the trainer's, not with the model.
        self.register_buffer("used_K", torch.zeros(size, dtype=torch.bool), persistent=False)
        self.register_buffer("counts_K", torch.zeros(size), persistent=False)
        self.register_buffer("sums_KD", torch.zeros(size, dim), persistent=False)
        self._noted: tuple[Tensor, Tensor] | None = None
        self.embedding.weight.requires_grad_(not loss.codebook_decay)

    def codebook(self) -> Tensor:
        """Code vectors as they are compared and decoded, float32 [K, D]."""
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=1) if self.normalize else weight

    def codes(self, z_BDhw: Tensor) -> Tensor:
        """Index of the nearest code, int64 [B, h, w]."""
        batch, _, height, width = z_BDhw.shape
        with torch.autocast(z_BDhw.device.type, enabled=False):
            return _nearest(rows(z_BDhw), self.codebook()).view(batch, height, width)

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Code vectors, float32 [B, D, h, w]."""
        return F.embedding(codes_Bhw, self.codebook()).permute(0, 3, 1, 2)

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise: (vectors [B, D, h, w] with gradient to z, loss, codes [B, h, w]).

        β stands on the commitment term (VQ-VAE paper, equation 3) unless `swap_beta` is set.
        """
        z_BDhw = F.normalize(z_BDhw.float(), dim=1) if self.normalize else z_BDhw.float()
        codes_Bhw = self.codes(z_BDhw.detach())
        q_BDhw = self.lookup(codes_Bhw)
        commitment, codebook = F.mse_loss(z_BDhw, q_BDhw.detach()), F.mse_loss(q_BDhw, z_BDhw.detach())
        if self.loss.codebook_decay:
            loss = self.loss.beta * commitment
        elif self.loss.swap_beta:
            loss = commitment + self.loss.beta * codebook
        else:
            loss = codebook + self.loss.beta * commitment
        if self.training:
            self._note(rows(z_BDhw.detach()), codes_Bhw.flatten())
        return z_BDhw + (q_BDhw - z_BDhw).detach(), loss, codes_Bhw

    @torch.no_grad()
    def _note(self, z_ND: Tensor, codes_N: Tensor) -> None:
        """Note which codes are used and, with `codebook_decay`, by which latents."""
        if not self.loss.codebook_decay:
            self.used_K[codes_N] = True
            return
        count_K, sum_KD = self._noted or (torch.zeros_like(self.counts_K), torch.zeros_like(self.sums_KD))
        count_K.index_add_(0, codes_N, torch.ones_like(codes_N, dtype=torch.float32))
        sum_KD.index_add_(0, codes_N, z_ND)
        self._noted = count_K, sum_KD

    @torch.no_grad()
    def update_ema(self) -> None:
        """With `codebook_decay`, move the codes to the moving mean of a step's latents, all its parts together."""
        if self._noted is None:
            return
        decay, (count_K, sum_KD), self._noted = self.loss.codebook_decay, self._noted, None
        _sum_over_ranks(count_K, sum_KD)
        self.used_K |= count_K > 0
        self.counts_K.mul_(decay).add_(count_K, alpha=1 - decay)
        self.sums_KD.mul_(decay).add_(sum_KD, alpha=1 - decay)
        # A code that lost nearly all of its weight stays where it is: its mean would be numerical noise.
        counts_K1 = self.counts_K.unsqueeze(1)
        moved_KD = torch.where(counts_K1 > 1e-3, self.sums_KD / counts_K1.clamp_min(1e-3), self.embedding.weight)
        self.embedding.weight.copy_(moved_KD)

    @torch.no_grad()
    def restart_unused(self, z_BDhw: Tensor) -> int:
        """Move every code unused since the last call to a random latent, the same on all ranks; returns how many."""
        used_K = self.used_K.float()
        _sum_over_ranks(used_K)
        dead = (used_K == 0).nonzero().squeeze(1)
        z_ND = rows(F.normalize(z_BDhw.float(), dim=1) if self.normalize else z_BDhw)
        # On the CPU's generator whatever the device, so that a resumed run draws the same rows.
        drawn = z_ND[torch.randint(len(z_ND), (len(dead),)).to(z_ND.device)]
        if dist.is_initialized():
            dist.broadcast(drawn, 0)
        self.embedding.weight[dead] = drawn
        self.counts_K[dead] = 1.0
        self.sums_KD[dead] = drawn
        self.used_K.zero_()
        return len(dead)


class GumbelQuantizer(nn.Module):
    """The released Gumbel models' quantiser, for encoding and decoding: the code is the argmax, never a draw."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.embed_dim, config.codebook_size, 1)
        self.embed = nn.Embedding(config.codebook_size, config.embed_dim)

    def codebook(self) -> Tensor:
        """Code vectors as they are decoded, float32 [K, D]."""
        return self.embed.weight.float()

    def codes(self, z_BDhw: Tensor) -> Tensor:
        """Index of the largest logit, int64 [B, h, w]."""
        with torch.autocast(z_BDhw.device.type, enabled=False):
            return self.proj(z_BDhw.float()).argmax(1)  # type: ignore[no-any-return]

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Code vectors, float32 [B, D, h, w]."""
        return F.embedding(codes_Bhw, self.codebook()).permute(0, 3, 1, 2)
