"""A small network that predicts the condition of a picture: its class, mask, depth or pose."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runkit.devices import pick_device
from runkit.progress import tqdm
from vqgan.config import ModelConfig
from vqgan.cpu_kernels import training_layout
from vqgan.modalities import reconstruction_loss, to_input, to_pictures

Pictures = npt.NDArray[Any]
BATCH_SIZE = 8
"""Pictures per training step: for the same time, many small steps give a better network than few large ones."""
LIMB = 64
"""A pixel with a channel above this value belongs to a drawn limb."""
_LEARNING_RATE = 4e-3
_PREDICT_BATCH = 32


class ConditionNet(nn.Module):
    """A U-Net with `levels` halvings and a head per condition; the class head is on the lowest level.

    Args:
        channels: Condition → channels of its head.
        width: Channels at full size.
        levels: Halvings.
    """

    def __init__(self, channels: Mapping[str, int], *, width: int = 16, levels: int = 4) -> None:
        super().__init__()
        widths = [min(width * 2**level, 8 * width) for level in range(levels + 1)]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise(widths))
        dense = {name: nn.Conv2d(width, n, 1) for name, n in channels.items() if name != "class"}
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True)) if dense else []
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ups)
        self.up = nn.ModuleList(_block(b, b) for _, b in ups)
        classes = {name: nn.Linear(widths[-1], n) for name, n in channels.items() if name == "class"}
        self.heads = nn.ModuleDict({**dense, **classes})

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Condition → [B, channels, H, W], or [B, channels] for classes."""
        skips = [self.stem(x_BCHW)]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = lowest = skips.pop()
        for narrow, block in zip(self.narrow, self.up, strict=True):
            skip = skips.pop()  # added, not concatenated: half the arithmetic at the same accuracy
            x = block(F.interpolate(narrow(x), size=skip.shape[2:]) + skip)
        return {name: head(lowest.mean((2, 3)) if name == "class" else x) for name, head in self.heads.items()}


def _block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1), nn.GroupNorm(8, n_out), nn.SiLU(),
        nn.Conv2d(n_out, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.SiLU(),
    )  # fmt: skip


class ConditionPredictor:
    """Predicts conditions from RGB pictures; build it with :meth:`fit`."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._device = pick_device("auto")
        channels = {"depth": 1, "pose": 3}
        self._net = ConditionNet({name: channels.get(name, n) for name, n in sizes.items()}).to(self._device)
        # Targets are encoded as tokenizers encode each kind of condition picture.
        self._modalities = {
            name: ModelConfig(modality=name, n_labels=n if name == "segmentation" else 0)  # type: ignore[arg-type]
            for name, n in sizes.items()
            if name != "class"
        }

    @classmethod
    def fit(
        cls,
        pictures: Pictures,
        conditions: Mapping[str, Pictures],
        sizes: Mapping[str, int],
        *,
        steps: int = 2000,
        seed: int = 0,
    ) -> "ConditionPredictor":
        """Train a predictor.

        Args:
            pictures: uint8 [N, H, W, 3].
            conditions: Class, segmentation, depth and pose, or some of them: class ids [N], or condition pictures
                [N, H, W(, 3)] as tokenizers decode them.
            sizes: Number of classes, or of labels of a mask, by the same names; ignored for depth and pose.
            steps: Batches of `BATCH_SIZE` pictures.
            seed: Seed of the initial weights and the batches.
        """
        with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
            torch.default_generator.manual_seed(seed)
            predictor = cls(sizes)
        optimizer = torch.optim.AdamW(predictor._net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        rng = np.random.default_rng(seed)
        for _ in tqdm(range(steps), desc=f"predictor of {', '.join(conditions)}", disable=None):
            rows = rng.integers(0, len(pictures), BATCH_SIZE)
            outputs = predictor._net(predictor._planes(pictures[rows]))
            losses = [predictor._loss(name, outputs[name], targets[rows]) for name, targets in conditions.items()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return predictor

    def _loss(self, name: str, output: Tensor, conditions: Pictures) -> Tensor:
        if name == "class":
            return F.cross_entropy(output, torch.from_numpy(conditions.astype(np.int64)).to(self._device))
        target = to_input(list(conditions), self._modalities[name], self._device)
        if name == "pose":  # limbs are one pixel in fifty, so an unweighted loss favours a black picture
            limbs = (target.amax(1, keepdim=True) > LIMB / 127.5 - 1).float()
            # Unweighted limbs are predicted too thin, and fully balanced ones too thick: take the square root.
            weight = 1 + limbs * (1 / limbs.mean().clamp(min=1e-3)).sqrt()
            return (weight * (output - target).abs()).sum() / (weight.sum() * output.shape[1])
        return reconstruction_loss(output, target, self._modalities[name])

    def _planes(self, pictures: Pictures) -> Tensor:
        x_BCHW = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x_BCHW.contiguous(memory_format=training_layout(x_BCHW.device))

    @torch.inference_mode()
    def predict(self, name: str, pictures: Pictures) -> Pictures:
        """Class ids [N], or condition pictures in the tokenizers' format."""
        batches = (pictures[start : start + _PREDICT_BATCH] for start in range(0, len(pictures), _PREDICT_BATCH))
        outputs = (self._net(self._planes(batch))[name].cpu() for batch in batches)
        if name == "class":
            return np.concatenate([output.argmax(1).numpy() for output in outputs])
        return np.concatenate([to_pictures(output, self._modalities[name]) for output in outputs])
