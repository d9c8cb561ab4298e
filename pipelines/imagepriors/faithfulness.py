"""Does a picture follow its condition? A small network, taught on decoded training codes, reads the condition back.

It needs the shards and their tokenizers only, and is taught on what decoders make of real codes, so that it is used to
their blur. A score says little by itself: beside it stand the score of decoded validation codes (what a perfect prior
would reach) and that of the same samples against other samples' conditions (what following nothing would reach).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from codeprior.optim import resolve_device
from vqgan.config import ModelConfig
from vqgan.metrics import TokenizerMetrics
from vqgan.modalities import reconstruction_loss, to_input, to_pictures
from vqgan.trainer import training_layout

Pictures = npt.NDArray[Any]
MEASURES = {
    "class": "accuracy",
    "segmentation": "mIoU",
    "depth": "correlation",
    "pose": "IoU of limbs",
}
_BATCH = 32
_LEARNING_RATE = 2e-3
_LIMB = 64
"""A pixel with a channel above this belongs to a drawn limb."""


class ReadingNet(nn.Module):
    """A U-Net with `levels` halvings; for classes only its lowest level counts."""

    def __init__(self, channels: int, *, dense: bool, width: int = 16, levels: int = 4) -> None:
        super().__init__()
        widths = [min(width * 2**level, 8 * width) for level in range(levels + 1)]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.dense = dense
        self.head = nn.Conv2d(width, channels, 1) if dense else nn.Linear(widths[-1], channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, channels, H, W], or [B, channels] for classes."""
        skips = [self.stem(x_BCHW)]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips.pop()
        if not self.dense:
            classes: Tensor = self.head(x.mean((2, 3)))
            return classes
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat((F.interpolate(x, size=skip.shape[2:]), skip), dim=1))
        planes: Tensor = self.head(x)
        return planes


def _block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1), nn.GroupNorm(8, n_out), nn.SiLU(),
        nn.Conv2d(n_out, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.SiLU(),
    )  # fmt: skip


class Reader:
    """Reads one kind of condition from RGB pictures; see :meth:`teach`."""

    def __init__(self, name: str, n: int, net: ReadingNet) -> None:
        self.name, self.n = name, n
        self._device = resolve_device("auto")
        self._net = net.to(self._device)
        # The tokenizers' own conventions for each kind of condition picture.
        modality: Any = "rgb" if name == "class" else name
        self._modality = ModelConfig(modality=modality, n_labels=n if name == "segmentation" else 0)

    @classmethod
    def teach(
        cls, name: str, pictures: Pictures, conditions: Pictures, *, n: int = 0, steps: int = 500, seed: int = 0
    ) -> "Reader":
        """Train a reader.

        Args:
            name: class, segmentation, depth or pose.
            pictures: uint8 [N, H, W, 3].
            conditions: Class ids [N], or condition pictures [N, H, W(, 3)] as tokenizers decode them.
            n: Classes, or labels of a mask.
            steps: Batches of 32 pictures.
            seed: Decides first weights and batches.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            channels = {"class": n, "segmentation": n, "depth": 1, "pose": 3}[name]
            reader = cls(name, n, ReadingNet(channels, dense=name != "class"))
        optimizer = torch.optim.AdamW(reader._net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        rng = np.random.default_rng(seed)
        for _ in tqdm(range(steps), desc=f"reader of {name}", disable=None):
            rows = rng.integers(0, len(pictures), _BATCH)
            loss = reader._loss(reader._net(reader._planes(pictures[rows])), conditions[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return reader

    def _loss(self, output: Tensor, conditions: Pictures) -> Tensor:
        if self.name == "class":
            return F.cross_entropy(output, torch.from_numpy(conditions.astype(np.int64)).to(self._device))
        if self.name == "pose":  # limbs are one pixel in fifty: a black picture would be a good guess
            target = to_input(list(conditions), self._modality, self._device)
            limbs = (target.amax(1, keepdim=True) > _LIMB / 127.5 - 1).float()
            # The square root lies between too thin limbs, unweighted, and too thick ones, fully balanced.
            weight = 1 + limbs * (1 / limbs.mean().clamp(min=1e-3)).sqrt()
            return (weight * (output - target).abs()).sum() / (weight.sum() * output.shape[1])
        target = to_input(list(conditions), self._modality, self._device)
        return reconstruction_loss(output, target, self._modality)

    def _planes(self, pictures: Pictures) -> Tensor:
        x_BCHW = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x_BCHW.contiguous(memory_format=training_layout(x_BCHW.device))

    @torch.inference_mode()
    def read(self, pictures: Pictures) -> Pictures:
        """What the pictures seem to show: class ids [N], or condition pictures as tokenizers give them."""
        batches = (pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH))
        outputs = (self._net(self._planes(batch)).cpu() for batch in batches)
        if self.name == "class":
            return np.concatenate([output.argmax(1).numpy() for output in outputs])
        return np.concatenate([to_pictures(output, self._modality) for output in outputs])

    def scores(self, parts: Iterable[tuple[Pictures, Sequence[Pictures]]]) -> list[float]:
        """How far pictures show each of several conditions, given part by part; read once for all of them."""
        found: list[Agreement] = []
        for pictures, conditions in parts:
            seen = self.read(pictures)
            found = found or [Agreement(self.name, self.n) for _ in conditions]
            for agreement, of_one in zip(found, conditions, strict=True):
                agreement.add(seen, of_one)
        return [agreement.value() for agreement in found]


class Agreement:
    """How far what was read agrees with conditions: accuracy, mIoU, mean correlation or IoU of limbs."""

    def __init__(self, name: str, n: int = 0) -> None:
        self._name, self._agreed, self._total = name, 0.0, 0.0
        self._masks = TokenizerMetrics("segmentation", 1, n) if name == "segmentation" else None

    def add(self, found: Pictures, conditions: Pictures) -> None:
        """Count a part."""
        if self._masks is not None:
            self._masks.add(found, conditions, np.zeros(1, np.int64))
        elif self._name == "class":
            self._agreed += float((found == conditions).sum())
            self._total += len(found)
        elif self._name == "pose":
            seen, drawn = (pictures.max(-1) > _LIMB for pictures in (found, conditions))
            self._agreed += float((seen & drawn).sum())
            self._total += float((seen | drawn).sum())
        else:
            self._agreed += float(_correlations(found, conditions).sum())
            self._total += len(found)

    def value(self) -> float:
        """Over all parts."""
        return self._masks.result()["val_miou"] if self._masks is not None else self._agreed / max(1.0, self._total)


def _correlations(a_NHW: Pictures, b_NHW: Pictures) -> npt.NDArray[Any]:
    """Pearson's correlation [N] over the pixels of each pair."""
    a, b = (x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(1, keepdims=True) for x in (a_NHW, b_NHW))
    norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.asarray((a * b).sum(1) / np.maximum(norms, 1e-12))


def derangement(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """A random cycle: a permutation of range(n) that leaves nothing in its place (n > 1)."""
    cycle = np.random.default_rng(seed).permutation(n)
    result = np.empty(n, np.int64)
    result[cycle] = np.roll(cycle, 1)
    return result
