"""Differences between RGB, segmentation, depth and pose: model input, reconstruction loss, decoded image.

Axes: B batch, C channels, H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.config import ModelConfig
from vqgan.errors import InputError


def to_input(pictures: Sequence[npt.NDArray[Any]], config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Stack pictures into the model's input, float32 [B, C, H, W] on `device` (default: the CPU).

    Images are converted on the GPU, after an asynchronous copy from pinned memory of at most a quarter of the bytes.

    RGB and pose: x / 127.5 - 1. Depth, which is in [0, 1]: 2x - 1. Segmentation: one-hot planes.

    Raises:
        InputError: A label is not below `n_labels`, or depth is not in [0, 1].
    """
    stack = torch.from_numpy(np.stack(pictures))
    if config.modality == "segmentation":
        highest = int(stack.max())
        if highest >= config.n_labels:
            raise InputError(
                f"mask label {highest} with n_labels = {config.n_labels}: choose a model whose n_labels is above it"
            )
        stack = _move(stack, device)
        return F.one_hot(stack.long(), config.n_labels).permute(0, 3, 1, 2).float()
    if config.modality == "depth":
        low, high = (float(value) for value in stack.aminmax())
        if not (low >= 0 and high <= 1):
            raise InputError(f"depth goes from {low:g} to {high:g}: scale each map to 0 … 1, as the readers do")
        return _move(stack, device).float().mul(2).sub_(1).unsqueeze(1)
    stack = _move(stack, device)
    return stack.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _move(stack: Tensor, device: torch.device | None) -> Tensor:
    if device is None or device.type == "cpu":
        return stack
    return stack.pin_memory().to(device, non_blocking=True)


def reconstruction_loss(
    output_BCHW: Tensor, target_BCHW: Tensor, config: ModelConfig, l2_weight: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy for segmentation, else mean absolute + `l2_weight` · mean squared error."""
    if config.modality == "segmentation":
        return F.cross_entropy(output_BCHW.float(), target_BCHW.argmax(1))
    loss = F.l1_loss(output_BCHW.float(), target_BCHW)
    return loss + l2_weight * F.mse_loss(output_BCHW.float(), target_BCHW) if l2_weight else loss


def to_pictures(output_BCHW: Tensor, config: ModelConfig) -> npt.NDArray[Any]:
    """Return images uint8 [B, H, W, 3], label maps uint8 [B, H, W] or depth float32 [B, H, W] in [0, 1]."""
    if config.modality == "segmentation":
        return output_BCHW.argmax(1).to(torch.uint8).cpu().numpy()
    unit = output_BCHW.float().add(1).div(2).clamp(0, 1)
    if config.modality == "depth":
        return unit.squeeze(1).cpu().numpy()
    return unit.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
