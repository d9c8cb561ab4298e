"""Quantisers with a codebook of vectors: plain VQ, L2-normalised codes, an EMA codebook for either, SimVQ, IBQ, Gumbel.

:mod:`vqgan.lookup_free` has those whose code vectors are fixed.

Axes: B batch, h w grid cells, N = B·h·w latent vectors, K codes, D code dimension.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import LossConfig, ModelConfig

_DISTANCES = 2**26
"""Number of distances that are computed at once, which bounds the memory of large codebooks and batches."""


def rows(z_BDhw: Tensor) -> Tensor:
    """[B, D, h, w] → latent vectors as rows, float32 [N, D]."""
    return z_BDhw.float().permute(0, 2, 3, 1).flatten(0, 2)


def _nearest(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Return the index of the code nearest to each vector, int64 [N]."""
    # ‖z‖² is the same for every code, and on the sphere scaling z does not change the nearest code: both are omitted.
    return _lowest(z_ND, codebook_KD, codebook_KD.square().sum(1))


def _lowest(z_ND: Tensor, codebook_KD: Tensor, offset_K: Tensor) -> Tensor:
    """Return the index k of the lowest offset_k − 2 z·code_k of each vector, int64 [N]."""
    chunks = torch.split(z_ND, max(1, _DISTANCES // len(codebook_KD)))
    return torch.cat([torch.addmm(offset_K, chunk_ND, codebook_KD.T, alpha=-2).argmin(1) for chunk_ND in chunks])


def pooled_codes(codes_Bhw: Tensor, quantize: "Quantizer", side: int) -> Tensor:
    """Return the codes int64 [B, S, S] of a coarser grid: the code vectors of each block, averaged and quantised.

    The result is a function of the codes and the codebook on every device, because float64 makes rounding irrelevant.
    """
    codebook_KD = quantize.codebook_on(codes_Bhw.device).double()
    batch, height, width = codes_Bhw.shape
    q_BDhw = F.embedding(codes_Bhw, codebook_KD).permute(0, 3, 1, 2)
    pooled_BDSS = F.avg_pool2d(q_BDhw, (height // side, width // side))
    return quantize.match(pooled_BDSS.permute(0, 2, 3, 1).flatten(0, 2), codebook_KD).view(batch, side, side)


def rotated(z_BDhw: Tensor, q_BDhw: Tensor) -> Tensor:
    """Return the code vectors q, with the gradient to z of the rotation and scaling that takes each z to its q.

    Fifty et al. 2024, "Restructuring vector quantization with the rotation trick", equation 2: the rotation is a
    constant in the backward pass.
    """
    with torch.no_grad():
        unit_z, unit_q = F.normalize(z_BDhw, dim=1), F.normalize(q_BDhw, dim=1)
        between = F.normalize(unit_z + unit_q, dim=1)
        scale = q_BDhw.norm(dim=1, keepdim=True) / z_BDhw.norm(dim=1, keepdim=True).clamp_min(1e-6)
    along, across = ((z_BDhw * unit).sum(1, keepdim=True) for unit in (between, unit_z))
    turned = scale * (z_BDhw - 2 * along * between + 2 * across * unit_q)
    with_gradient: Tensor = q_BDhw.detach() + (turned - turned.detach())
    return with_gradient


def entropy_term(logits_NK: Tensor) -> Tensor:
    """Return the mean entropy of the distributions over codes less the entropy of their mean, in nats.

    It is low where each latent vector prefers one code, and all of them together use all codes (MAGVIT-v2, Yu et al.
    2023, equation 5).
    """
    log_p_NK = logits_NK.log_softmax(1)
    p_NK = log_p_NK.exp()
    mean_K = p_NK.mean(0)
    term: Tensor = (mean_K * mean_K.clamp_min(1e-12).log()).sum() - (p_NK * log_p_NK).sum(1).mean()
    return term


def _sum_over_ranks(*tensors: Tensor) -> None:
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


class Quantizer(nn.Module):
    """Base class of the quantisers: latents to codes and back, always in float32.

    `forward`, which only trainable quantisers have, returns vectors [B, D, h, w] with a gradient to z, the loss, and
    the codes [B, h, w].
    """

    def codebook(self) -> Tensor:
        """Return the code vectors that are decoded, float32 [K, D]."""
        raise NotImplementedError

    def codebook_on(self, device: torch.device) -> Tensor:
        """Return the same on a device."""
        return self.codebook().to(device)

    def match(self, z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Return the code of each vector, int64 [N]: the nearest. The codebook has the type of the vectors."""
        return _nearest(z_ND, codebook_KD)

    def distances(self, z_D: Tensor, codebook_KD: Tensor) -> Tensor:
        """Return what `match` minimises, from one vector to each code, float32 [K]: the squared Euclidean distance."""
        parts = torch.split(codebook_KD, max(1, _DISTANCES // len(z_D)))
        return torch.cat([(part_KD - z_D).square().sum(1) for part_KD in parts])

    def codes(self, z_BDhw: Tensor) -> Tensor:
        """Return the code of each latent vector, int64 [B, h, w]."""
        batch, _, height, width = z_BDhw.shape
        with torch.autocast(z_BDhw.device.type, enabled=False):
            return self.match(rows(z_BDhw), self.codebook()).view(batch, height, width)

    def update_ema(self) -> None:
        """Update the moving averages of a codebook that has them, over all parts of a step."""

    def lookup(self, codes_Bhw: Tensor) -> Tensor:
        """Return code vectors, float32 [B, D, h, w]."""
        return F.embedding(codes_Bhw, self.codebook()).permute(0, 3, 1, 2)


class VectorQuantizer(Quantizer):
    """Nearest-code quantiser with a straight-through gradient (van den Oord et al. 2017), always in float32.

    Distances in bfloat16 would change most codes, so autocast is disabled inside. With `quantizer = "l2"` latents and
    codes are compared and decoded on the unit sphere (Yu et al. 2021, ViT-VQGAN). With `codebook_decay` the codes are
    moving averages of their latents (VQ-VAE paper, appendix A.1) and get no gradient.
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
        # Training state, which is saved with that of the trainer and not with the model.
        self.register_buffer("used_K", torch.zeros(size, dtype=torch.bool), persistent=False)
        self.register_buffer("counts_K", torch.zeros(size), persistent=False)
        self.register_buffer("sums_KD", torch.zeros(size, dim), persistent=False)
        self._recorded: tuple[Tensor, Tensor] | None = None
        self.embedding.weight.requires_grad_(not loss.codebook_decay)

    def codebook(self) -> Tensor:
        """Return the code vectors that are compared and decoded, float32 [K, D]."""
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=1) if self.normalize else weight

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; return vectors [B, D, h, w] with a gradient to z, the loss, and the codes [B, h, w].

        β weights the commitment term (VQ-VAE paper, equation 3) unless `swap_beta` is set.
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
        if self.loss.entropy_weight:
            loss = loss + self.loss.entropy_weight * entropy_term(self._logits(z_BDhw))
        if self.training:
            self._record_usage(rows(z_BDhw.detach()), codes_Bhw.flatten())
        if self.loss.quantizer_gradient == "rotation":
            return rotated(z_BDhw, q_BDhw), loss, codes_Bhw
        return z_BDhw + (q_BDhw - z_BDhw).detach(), loss, codes_Bhw

    def _logits(self, z_BDhw: Tensor) -> Tensor:
        """Return the negative squared distances to all codes over the temperature, up to a constant, [N, K]."""
        codebook_KD = self.codebook()
        with torch.autocast(z_BDhw.device.type, enabled=False):
            affinity_NK = torch.addmm(codebook_KD.square().sum(1), rows(z_BDhw), codebook_KD.T, beta=-1, alpha=2)
            return affinity_NK / self.loss.entropy_temperature

    @torch.no_grad()
    def _record_usage(self, z_ND: Tensor, codes_N: Tensor) -> None:
        """Record which codes are used and, with `codebook_decay`, the sums of their latents."""
        if not self.loss.codebook_decay:
            self.used_K[codes_N] = True
            return
        count_K, sum_KD = self._recorded or (torch.zeros_like(self.counts_K), torch.zeros_like(self.sums_KD))
        count_K.index_add_(0, codes_N, torch.ones_like(codes_N, dtype=torch.float32))
        sum_KD.index_add_(0, codes_N, z_ND)
        self._recorded = count_K, sum_KD

    @torch.no_grad()
    def update_ema(self) -> None:
        """With `codebook_decay`, update the moving average of the latents."""
        if self._recorded is None:
            return
        decay, (count_K, sum_KD), self._recorded = self.loss.codebook_decay, self._recorded, None
        _sum_over_ranks(count_K, sum_KD)
        self.used_K |= count_K > 0
        self.counts_K.mul_(decay).add_(count_K, alpha=1 - decay)
        self.sums_KD.mul_(decay).add_(sum_KD, alpha=1 - decay)
        # A code that has lost nearly all of its weight is kept, because its mean would be numerical noise.
        counts_K1 = self.counts_K.unsqueeze(1)
        moved_KD = torch.where(counts_K1 > 1e-3, self.sums_KD / counts_K1.clamp_min(1e-3), self.embedding.weight)
        self.embedding.weight.copy_(moved_KD)

    @torch.no_grad()
    def restart_unused(self, z_BDhw: Tensor) -> int:
        """Move codes unused since the last call to random latents, the same on all ranks; return their number."""
        used_K = self.used_K.float()
        _sum_over_ranks(used_K)
        dead = (used_K == 0).nonzero().squeeze(1)
        z_ND = rows(F.normalize(z_BDhw.float(), dim=1) if self.normalize else z_BDhw)
        # Always by the generator of the CPU, so that a resumed run draws the same rows.
        drawn = z_ND[torch.randint(len(z_ND), (len(dead),)).to(z_ND.device)]
        if dist.is_initialized():
            dist.broadcast(drawn, 0)
        self.embedding.weight[dead] = drawn
        self.counts_K[dead] = 1.0
        self.sums_KD[dead] = drawn
        self.used_K.zero_()
        return len(dead)


class SimVQuantizer(VectorQuantizer):
    """Plain VQ whose codebook is a trained linear map of fixed random vectors (Zhu et al. 2024, SimVQ).

    Every step moves all codes, so that none is left behind.
    """

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__(config, loss)
        nn.init.normal_(self.embedding.weight, std=config.embed_dim**-0.5)
        self.embedding.weight.requires_grad_(False)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim, bias=False)

    def codebook(self) -> Tensor:
        """Return the code vectors that are compared and decoded, float32 [K, D]."""
        with torch.autocast(self.proj.weight.device.type, enabled=False):
            return F.linear(self.embedding.weight.float(), self.proj.weight.float())


class IndexQuantizer(Quantizer):
    """Index backpropagation (Shi et al. 2024, IBQ): the code of the largest dot product, with a gradient to all codes.

    The one-hot choice has the gradient of the softmax over all codes. The memory is that of B·h·w × K scores.
    """

    def __init__(self, config: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        self.loss = loss
        self.embedding = nn.Embedding(config.codebook_size, config.embed_dim)

    def codebook(self) -> Tensor:
        """Return the code vectors that are compared and decoded, float32 [K, D]."""
        return self.embedding.weight.float()

    def match(self, z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Return the code with the largest dot product with each vector, int64 [N]."""
        return _lowest(z_ND, codebook_KD, codebook_KD.new_zeros(len(codebook_KD)))

    def distances(self, z_D: Tensor, codebook_KD: Tensor) -> Tensor:
        """Return the negative dot product of one vector with each code, float32 [K]."""
        return -(codebook_KD @ z_D)

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; return vectors [B, D, h, w] with a gradient to z and the codebook, the loss, and the codes."""
        z_BDhw = z_BDhw.float()
        batch, dim, height, width = z_BDhw.shape
        with torch.autocast(z_BDhw.device.type, enabled=False):
            codebook_KD, z_ND = self.codebook(), rows(z_BDhw)
            scores_NK = z_ND @ codebook_KD.T
            codes_N = scores_NK.detach().argmax(1)
            soft_NK = scores_NK.softmax(1)
            hard_ND = F.embedding(codes_N, codebook_KD)
            # (one-hot − constant softmax + softmax) · codebook, without the one-hot matrix.
            q_ND = hard_ND + (soft_NK - soft_NK.detach()) @ codebook_KD
        commitment, codebook = F.mse_loss(z_ND, hard_ND.detach()), F.mse_loss(hard_ND, z_ND.detach())
        loss = F.mse_loss(q_ND, z_ND) + commitment + self.loss.beta * codebook
        if self.loss.entropy_weight:
            loss = loss + self.loss.entropy_weight * entropy_term(scores_NK / self.loss.entropy_temperature)
        q_BDhw = q_ND.view(batch, height, width, dim).permute(0, 3, 1, 2)
        return q_BDhw, loss, codes_N.view(batch, height, width)


class GumbelQuantizer(Quantizer):
    """The quantiser of the released Gumbel models, for encoding and decoding; the code is the argmax, not a sample."""

    def __init__(self, config: ModelConfig, _: LossConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.embed_dim, config.codebook_size, 1)
        self.embed = nn.Embedding(config.codebook_size, config.embed_dim)

    def codebook(self) -> Tensor:
        """Return the code vectors that are decoded, float32 [K, D]."""
        return self.embed.weight.float()

    def codes(self, z_BDhw: Tensor) -> Tensor:
        """Return the index of the largest logit, int64 [B, h, w]."""
        with torch.autocast(z_BDhw.device.type, enabled=False):
            return self.proj(z_BDhw.float()).argmax(1)  # type: ignore[no-any-return]
