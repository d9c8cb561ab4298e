"""Muon (Jordan et al. 2024): momentum whose update of each matrix is orthogonalised, beside AdamW for all else."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from runkit.devices import Autocast

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, Muon's published ones: singular values converge to about 1, within 30%, in five steps."""
_ITERATIONS = 5
_MOMENTUM = 0.95
_ADAM_RMS = 0.2
"""Root mean square of an update of AdamW, which those of matrices are scaled to (Liu et al. 2025, arXiv 2502.16982)."""
_MOST_ELEMENTS = 2**26
"""Elements of the matrices that are orthogonalised together, which bounds the memory."""


def orthogonalize(matrices_NRC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Replace the singular values of matrices [N, R, C] by values near 1, by Newton–Schulz iterations.

    Args:
        matrices_NRC: The matrices; one of zeros stays zero.
        dtype: Type of the products; bfloat16 suffices.
    """
    a, b, c = _COEFFICIENTS
    is_wide = matrices_NRC.shape[1] <= matrices_NRC.shape[2]
    x = (matrices_NRC if is_wide else matrices_NRC.mT).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if is_wide else x.mT).to(matrices_NRC.dtype)


def moments_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """Return the names of the tensors of its own shape that Adam, AdamW or Muon keeps of each parameter."""
    return {
        parameter: ("momentum",) if group.get("orthogonal") else ("exp_avg", "exp_avg_sq")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


class Muon(torch.optim.AdamW):
    """AdamW, except for groups with ``orthogonal=True``, whose parameters follow Muon.

    These are matrices, or convolution kernels, which count as matrices [out, in · height · width]. One learning rate
    serves both, because the updates have the same root mean square. First and last layers and embeddings belong to
    AdamW. As torch's fused kernels do, it divides gradients by `grad_scale` and changes nothing where `found_inf` is 1.

    Args:
        groups: Parameter groups as of AdamW.
        precision: Type of the orthogonalisation's matrix products, "float32" or "bfloat16".
        options: Options of AdamW for all groups; of these, lr and weight_decay apply to orthogonal groups too.
    """

    def __init__(self, groups: list[dict[str, Any]], *, precision: Autocast, **options: Any) -> None:
        self._dtype: torch.dtype = getattr(torch, precision)
        super().__init__([{"orthogonal": False, **group} for group in groups], fused=True, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._step_orthogonal(group)

    def _step_orthogonal(self, group: dict[str, Any]) -> None:
        same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same_shape[parameter.shape].append(parameter)
        for shape, parameters in same_shape.items():
            at_once = max(1, _MOST_ELEMENTS // shape.numel())
            for start in range(0, len(parameters), at_once):
                self._update(parameters[start : start + at_once], group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        scale, bad = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        rate = group["lr"] if bad is None else group["lr"] * (1 - bad)
        stacked = torch.stack([self._direction(p, scale).flatten(1) for p in parameters])
        directions = orthogonalize(stacked, self._dtype)
        size = _ADAM_RMS * math.sqrt(max(directions.shape[1:]))
        if bad is not None:
            directions = directions.nan_to_num()
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"])
            parameter.sub_(rate * size * direction.view(parameter.shape))

    def _direction(self, parameter: Tensor, scale: Tensor | None) -> Tensor:
        """Update the momentum of a parameter; return the direction before orthogonalisation (Nesterov's)."""
        assert parameter.grad is not None
        gradient = parameter.grad if scale is None else parameter.grad / scale
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW expects it where a state is loaded
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum"], _MOMENTUM)
