"""Other ways to compute the encoder, which are measured so that the fastest can be chosen.

On CUDA autocast casts the input of a GroupNorm to float32, its kernel copies channels-last memory to contiguous
memory, and what follows is in float32: at 256×256 the norms of the encoder move more bytes than its convolutions.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.cpu_kernels import GroupNorm
from vqgan.model import VQGAN
from vqgan.networks.vqgan import ResBlock


class LowNorm(GroupNorm):
    """PyTorch's GroupNorm in the type of its input, also under autocast."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        with torch.autocast(x_BCHW.device.type, enabled=False):
            weight, bias = self.weight.to(x_BCHW.dtype), self.bias.to(x_BCHW.dtype)
            return F.group_norm(x_BCHW, self.num_groups, weight, bias, self.eps)


class PlainNorm(GroupNorm):
    """GroupNorm of elementwise operations in the type and the memory layout of its input."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        batch, channels, height, width = x_BCHW.shape
        groups, each = self.num_groups, channels // self.num_groups
        with torch.autocast(x_BCHW.device.type, enabled=False):
            grouped = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, groups, each)
            var_BG, mean_BG = torch.var_mean(grouped, dim=(1, 3), correction=0)
            scale_BC = (var_BG.float() + self.eps).rsqrt().repeat_interleave(each, 1) * self.weight
            shift_BC = self.bias - mean_BG.float().repeat_interleave(each, 1) * scale_BC
            scale, shift = (part[..., None, None].to(x_BCHW.dtype) for part in (scale_BC, shift_BC))
            return torch.addcmul(shift, x_BCHW, scale)


def _norm_swish(x_BCHW: Tensor, norm: tuple[int, Tensor, Tensor, float]) -> Tensor:
    groups, weight, bias, eps = norm
    return F.silu(F.group_norm(x_BCHW.float(), groups, weight, bias, eps)).to(x_BCHW.dtype)


@functools.cache
def _compiled() -> Callable[[Tensor, tuple[int, Tensor, Tensor, float]], Tensor]:
    return torch.compile(_norm_swish)


class FusedBlock(ResBlock):
    """A residual block whose norms and swishes are compiled, and whose convolutions are not."""

    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut, [B, C_out, H, W]."""
        for norm, convolution in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            x = convolution(_compiled()(x, (norm.num_groups, norm.weight, norm.bias, norm.eps)))
        return x


def replaced(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    """Make the modules of one class those of another with the same parameters; return the model."""
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
    return model


class Variant(NamedTuple):
    """A way to compute the encoder in bfloat16."""

    norm: type[nn.Module] = GroupNorm
    layout: torch.memory_format = torch.channels_last
    benchmark: bool = False
    """Whether cuDNN measures its algorithms."""
    whole: bool = False
    """Whether the weights are bfloat16, without autocast."""
    block: type[nn.Module] = ResBlock


VARIANTS = {
    "as it is": Variant(),
    "cuDNN measures its algorithms": Variant(benchmark=True),
    "contiguous": Variant(layout=torch.contiguous_format),
    "GroupNorm in bfloat16": Variant(norm=LowNorm),
    "GroupNorm in bfloat16, contiguous": Variant(norm=LowNorm, layout=torch.contiguous_format),
    "GroupNorm of elementwise operations": Variant(norm=PlainNorm),
    "GroupNorm of elementwise operations, cuDNN measures": Variant(norm=PlainNorm, benchmark=True),
    "weights in bfloat16": Variant(whole=True),
}
"""Name → the way."""


def encoder(model: VQGAN, variant: Variant, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from pictures [B, C, H, W] on the device, in [-1, 1], to codes int64 [B, h, w]."""
    ours = copy.deepcopy(model)
    replaced(replaced(ours, GroupNorm, variant.norm), ResBlock, variant.block)
    if variant.whole:
        for part in (ours.encoder, ours.quant_conv):
            part.bfloat16()
    ours.to(device, memory_format=variant.layout)  # type: ignore[call-overload]
    dtype = torch.bfloat16 if variant.whole else torch.float32

    @torch.inference_mode()
    def encode(x_BCHW: Tensor) -> Tensor:
        cudnn = torch.backends.cudnn
        settings = {"deterministic": cudnn.deterministic, "allow_tf32": cudnn.allow_tf32}
        with (
            cudnn.flags(enabled=True, benchmark=variant.benchmark, **settings),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=not variant.whole),
        ):
            return ours.encode(x_BCHW.to(dtype, memory_format=variant.layout))

    return encode
