"""Drafts: a copy of the prior with 8-bit weights draws a few codes ahead, and the prior checks them all at once.

On a CPU the time of a code of a single sample is that of reading the weights. The copy reads a quarter of the bytes,
and one check reads the weights once for several codes. Both draw with the same random numbers (:mod:`codeprior.draw`),
so they differ only where an 8-bit weight decides the race. A code is kept if the prior itself draws it after the codes
before it, so the codes are those without drafts, up to the rounding of products of another shape. This is speculative
decoding (Leviathan et al., arXiv 2211.17192) with common random numbers in place of its test of acceptance.

Axes: B samples drawn together, R rows that enter the model, T image codes, K drafts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codeprior.attention import KVCache
from codeprior.config import PriorError
from codeprior.cpu_kernels import Linear, copy_sharing_tensors
from codeprior.model import Prior
from codeprior.sample_config import SampleConfig

DRAFTS = 4
"""Drafts of one check by default."""
_LARGE = 1 << 24
"""Weights of a prior from which on a CPU's caches do not hold them."""
_LANES = 16
"""Divides the sides of the matrices that torch's 8-bit product multiplies by; with others it ends the process."""
DrawOne = Callable[[Tensor, int], Tensor]
"""Draws code t, [B], from its logits [R, V] before guidance."""


def drafts_per_check(prior: Prior, rows: int, config: SampleConfig) -> int:
    """Return how many codes are drafted; 0: none.

    Raises:
        PriorError: The config asks for drafts that this device, precision, width or compiled code does not have.
    """
    possible = prior.device.type == "cpu" and config.precision == "float32" and not config.compile
    possible = possible and prior.config.n_embd % _LANES == 0
    if config.drafts is None:
        # Packed weights are buffers.
        weights = sum(tensor.numel() for tensor in (*prior.parameters(), *prior.buffers()))
        return DRAFTS if possible and rows == 1 and weights >= _LARGE else 0
    if config.drafts and not possible:
        raise PriorError(
            f"drafts = {config.drafts}: only float32 on a CPU, not compiled, with a width that is a multiple of "
            f"{_LANES}, has drafts; use 0"
        )
    return config.drafts


class _EightBitLinear(nn.Module):
    """A linear layer with 8-bit weights and a scale for each output, multiplied in bfloat16."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        weight_KD = layer.weight.detach().to_dense()  # it may be packed
        scale_K1 = weight_KD.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.weight_KD = (weight_KD / scale_K1).round_().to(torch.int8)
        self.scale_K, self.bias = scale_K1[:, 0].bfloat16(), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., K]."""
        rows_ND = x.flatten(0, -2).bfloat16()
        out_NK = torch._weight_int8pack_mm(rows_ND, self.weight_KD, self.scale_K) + self.bias
        return out_NK.view(*x.shape[:-1], -1)


def with_eight_bits(prior: Prior) -> Prior:
    """Return a copy whose blocks have 8-bit weights; it shares all else, and reads and fills caches of the prior."""
    drafter = copy_sharing_tensors(prior)
    for parent in [*drafter.blocks.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, Linear):
                setattr(parent, name, _EightBitLinear(layer))
    return drafter


def drafted_codes(
    prior: Prior, drafter: Prior, cache: KVCache, codes_BT: Tensor, t: int, count: int, draw_one: DrawOne
) -> Tensor:
    """Read code t - 1 and `count` drafts after it; return those codes t, t + 1 … that are certain.

    Args:
        prior: The prior.
        drafter: Its copy by :func:`with_eight_bits`.
        cache: What the prior read before; afterwards it also holds all but the last of the returned codes.
        codes_BT: The codes before t.
        t: Index of the first code to draw.
        count: Number of drafts; t + count < T.
        draw_one: Draws a code from logits.

    Returns:
        int64 [B, n] codes, 1 ≤ n ≤ count + 1.
    """
    read, repeats = cache.length, cache.batch // len(codes_BT)
    codes = [codes_BT[:, t - 1]]
    for place in range(t, t + count):
        codes.append(draw_one(drafter.decode(codes[-1].repeat(repeats), cache), place))
    cache.length = read  # the prior's keys and values replace those of the drafts
    drafts_BK = torch.stack(codes, dim=1)
    logits_RKV = prior.decode_several(drafts_BK.repeat(repeats, 1), cache)
    found_BK = torch.stack([draw_one(logits_RKV[:, k], t + k) for k in range(count + 1)], dim=1)
    # A code is certain if all drafts before it are right, in every sample.
    right = int((found_BK[:, :-1] == drafts_BK[:, 1:]).all(dim=0).cumprod(dim=0).sum())
    cache.length = read + 1 + right
    return found_BK[:, : right + 1]
