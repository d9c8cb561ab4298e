"""What makes training fast on CPUs: a GroupNorm for bfloat16, the memory layout, and the choice of the precision."""

import functools
import time
from typing import Any

import torch
from torch import Tensor, nn

from runkit.devices import Autocast, Precision, pick_precision
from vqgan.errors import InputError


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with the same parameters and forward pass, and the same gradients up to rounding.

    The backward pass of PyTorch's own is six times slower in bfloat16 on the CPU. At 128 channels and 256×256 pixels it
    takes longer than a 3×3 convolution (24 ms and 18 ms).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        slow = x_BCHW.device.type == "cpu" and x_BCHW.dtype == torch.bfloat16 and x_BCHW.requires_grad
        if slow and not torch.compiler.is_compiling():
            return _GroupNorm.apply(x_BCHW, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-any-return]
        return super().forward(x_BCHW)


class _GroupNorm(torch.autograd.Function):
    """The gradients as matrix products and fused elementwise passes over channels-last memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        b, c, height, width = x.shape
        y, _, rstd = torch.native_group_norm(x, weight, bias, b, c, height * width, groups, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.groups, ctx.eps = groups, eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, rstd = ctx.saved_tensors
        b, c, height, width = x.shape
        # Normalised again, because sums of products with x itself would cancel if its mean is large.
        normal, *_ = torch.native_group_norm(x, None, None, b, c, height * width, ctx.groups, ctx.eps)
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_weight_BC, of_bias_BC = _sum_pixels(grad * normal), _sum_pixels(grad)

        def group_mean(per_channel_BC: Tensor) -> Tensor:
            means: Tensor = (per_channel_BC * weight.float()).view(b, ctx.groups, -1).mean(2) / (height * width)
            return means.repeat_interleave(c // ctx.groups, 1)

        scale_BC = rstd.float().view(b, -1).repeat_interleave(c // ctx.groups, 1)
        by_grad, by_normal, constant = (
            part.to(x.dtype)[..., None, None]
            for part in (
                scale_BC * weight.float(),
                -scale_BC * group_mean(of_weight_BC),
                -scale_BC * group_mean(of_bias_BC),
            )
        )
        of_x = torch.addcmul(torch.addcmul(constant, normal, by_normal), grad, by_grad)
        return of_x, of_weight_BC.sum(0).to(weight.dtype), of_bias_BC.sum(0).to(weight.dtype), None, None


def _sum_pixels(x_BCHW: Tensor) -> Tensor:
    """Return the sums over H and W as float32 [B, C], by a matrix product, which accumulates in float32."""
    flat = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
    ones = torch.ones(len(flat), 1, flat.shape[1], dtype=flat.dtype, device=flat.device)
    sums: Tensor = torch.matmul(ones, flat).squeeze(1).float()
    return sums


def training_layout(device: torch.device) -> torch.memory_format:
    """Return the memory layout of images and kernels: channels last, except on CPUs with AVX2 but without AVX-512.

    There oneDNN's gradient of a kernel takes three to four times as long in channels last (128 channels, 256×256: 996
    and 237 ms on two cores); the forward pass and the gradient of the input take the same time in both.
    """
    avx2 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if avx2 else torch.channels_last


def resolve_precision(name: Precision, device: torch.device) -> Autocast:
    """Return the precision that a config's `precision` means on this device."""
    return pick_precision(name, device, _convolutions_per_s, InputError)


@functools.cache
def _convolutions_per_s(precision: Autocast) -> float:
    dtype = getattr(torch, precision)
    x_BCHW = torch.ones(1, 128, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.ones(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    times_s = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.conv2d(x_BCHW, kernel, padding=1)
        times_s.append(time.perf_counter() - start)
    return 1 / min(times_s)
