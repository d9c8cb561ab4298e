"""Linear layers for CPUs, computed by oneDNN where MKL is slow.

torch multiplies float32 matrices by MKL, which is slow on some AMD CPUs. A Zen 5 core reaches 105 GFLOP/s with MKL and
220 with oneDNN, forward and backward; the narrow products of sampling (4 rows) take 2.8 times as long with MKL. Two
Zen 4 cores reach 155 to 190 and 200 to 215. Sums have another order, so results differ in the last digits.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _amd_with_mkl() -> bool:
    """Return whether torch uses MKL on an AMD CPU, by its name, so that no run depends on a measurement."""
    cpu = Path("/proc/cpuinfo")
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return both and cpu.is_file() and "AuthenticAMD" in cpu.read_text()


_Model = TypeVar("_Model", bound=nn.Module)
_BY_ONEDNN = _amd_with_mkl()  # a constant for compiled code


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., D] times the transpose of weight [K, D], plus bias [K], by oneDNN."""
    if torch.compiler.is_compiling():
        return torch.ops.codeprior.onednn_linear(x, weight, bias)  # type: ignore[no-any-return]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


# The compiler requires constant weights for oneDNN, which training does not have, so the product is opaque to it.
_LIBRARY = torch.library.Library("codeprior", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("onednn_linear", _product, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("onednn_linear", lambda x, weight, _: x.new_empty(*x.shape[:-1], len(weight)), "Meta")  # type: ignore[no-untyped-call]


class _OneDNNLinear(torch.autograd.Function):
    """The product and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = gradients
        rows_NK, rows_ND = grad.flatten(0, -2), x.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(rows_NK.t(), rows_ND.t()) if needs_weight else None,
            rows_NK.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., D], weight [K, D], bias [K] → [..., K]."""
    if weight.is_mkldnn:
        return _product(x, weight, bias)
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or not _BY_ONEDNN or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _product(x, weight, bias)
    out: Tensor = _OneDNNLinear.apply(x, weight, bias)
    return out


class Linear(nn.Linear):
    """`torch.nn.Linear` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., D] → [..., K]."""
        return linear(input, self.weight, self.bias)


def with_packed_weights(model: _Model) -> _Model:
    """Return a copy for inference whose linear layers hold their weights in oneDNN's layout, if oneDNN multiplies them.

    Otherwise oneDNN rearranges the weights in each product, which takes as long as a product of few rows. All other
    tensors are shared with the model, which is returned itself if nothing is to be packed.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    if not layers or not _packable(layers[0].weight):
        return model
    packed = copy_sharing_tensors(model)
    for layer in packed.modules():
        if isinstance(layer, Linear):
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            del layer.weight
            layer.register_buffer("weight", weight, persistent=False)
    return packed


def copy_sharing_tensors(model: _Model) -> _Model:
    """Return a copy of a model with the same tensors, of which some can then be replaced."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


_ROWS = 4
"""Rows of the products for which the layout is chosen; it suits 1 to 64, and products of many take no longer."""


def _packable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.is_mkldnn:
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bfloat16 or (weight.dtype == torch.float32 and _BY_ONEDNN)
