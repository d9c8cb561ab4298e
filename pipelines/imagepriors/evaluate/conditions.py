"""Does a picture follow its condition? A small network, taught on decoded training codes, reads conditions back.

It needs the shards and their tokenizers only, and is taught on what decoders make of real codes, so that it is used to
their blur. A score says little by itself: beside it stand the score of decoded validation codes (what a perfect prior
would reach) and that of the same samples against other samples' conditions (what following nothing would reach).
"""

from collections.abc import Iterable, Mapping, Sequence
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
from vqgan.metrics import TokenizerMetrics
from vqgan.modalities import reconstruction_loss, to_input, to_pictures

Pictures = npt.NDArray[Any]
MEASURES = {
    "class": "accuracy",
    "segmentation": "mIoU",
    "depth": "correlation",
    "pose": "IoU of limbs",
}
TAUGHT = 8
"""Pictures of a step of teaching: within the same time many small steps teach more than few large ones."""
_LEARNING_RATE = 4e-3
_READ = 32
_LIMB = 64
"""A pixel with a channel above this belongs to a drawn limb."""


class ReadingNet(nn.Module):
    """A U-Net with `levels` halvings and a head for each condition: that of classes stands on its lowest level.

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
            skip = skips.pop()  # added, not appended: half the arithmetic, and it reads as well
            x = block(F.interpolate(narrow(x), size=skip.shape[2:]) + skip)
        return {name: head(lowest.mean((2, 3)) if name == "class" else x) for name, head in self.heads.items()}


def _block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1), nn.GroupNorm(8, n_out), nn.SiLU(),
        nn.Conv2d(n_out, n_out, 3, padding=1), nn.GroupNorm(8, n_out), nn.SiLU(),
    )  # fmt: skip


class Reader:
    """Reads conditions from RGB pictures; see :meth:`teach`."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._device = pick_device("auto")
        channels = {"depth": 1, "pose": 3}
        self._net = ReadingNet({name: channels.get(name, n) for name, n in sizes.items()}).to(self._device)
        # The tokenizers' own conventions for each kind of condition picture.
        self._modalities = {
            name: ModelConfig(modality=name, n_labels=n if name == "segmentation" else 0)  # type: ignore[arg-type]
            for name, n in sizes.items()
            if name != "class"
        }

    @classmethod
    def teach(
        cls,
        pictures: Pictures,
        conditions: Mapping[str, Pictures],
        sizes: Mapping[str, int],
        *,
        steps: int = 2000,
        seed: int = 0,
    ) -> "Reader":
        """Train a reader.

        Args:
            pictures: uint8 [N, H, W, 3].
            conditions: Of class, segmentation, depth and pose those that it shall read: class ids [N], or condition
                pictures [N, H, W(, 3)] as tokenizers decode them.
            sizes: By the same names: classes, or labels of a mask; of depth and pose any number.
            steps: Batches of `TAUGHT` pictures.
            seed: Decides first weights and batches.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reader = cls(sizes)
        optimizer = torch.optim.AdamW(reader._net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        rng = np.random.default_rng(seed)
        for _ in tqdm(range(steps), desc=f"reader of {', '.join(conditions)}", disable=None):
            rows = rng.integers(0, len(pictures), TAUGHT)
            found = reader._net(reader._planes(pictures[rows]))
            loss = torch.stack([reader._loss(name, found[name], of_all[rows]) for name, of_all in conditions.items()])
            optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return reader

    def _loss(self, name: str, output: Tensor, conditions: Pictures) -> Tensor:
        if name == "class":
            return F.cross_entropy(output, torch.from_numpy(conditions.astype(np.int64)).to(self._device))
        target = to_input(list(conditions), self._modalities[name], self._device)
        if name == "pose":  # limbs are one pixel in fifty: a black picture would be a good guess
            limbs = (target.amax(1, keepdim=True) > _LIMB / 127.5 - 1).float()
            # The square root lies between too thin limbs, unweighted, and too thick ones, fully balanced.
            weight = 1 + limbs * (1 / limbs.mean().clamp(min=1e-3)).sqrt()
            return (weight * (output - target).abs()).sum() / (weight.sum() * output.shape[1])
        return reconstruction_loss(output, target, self._modalities[name])

    def _planes(self, pictures: Pictures) -> Tensor:
        x_BCHW = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x_BCHW.contiguous(memory_format=training_layout(x_BCHW.device))

    @torch.inference_mode()
    def read(self, name: str, pictures: Pictures) -> Pictures:
        """What the pictures seem to show: class ids [N], or condition pictures as tokenizers give them."""
        batches = (pictures[start : start + _READ] for start in range(0, len(pictures), _READ))
        outputs = (self._net(self._planes(batch))[name].cpu() for batch in batches)
        if name == "class":
            return np.concatenate([output.argmax(1).numpy() for output in outputs])
        return np.concatenate([to_pictures(output, self._modalities[name]) for output in outputs])

    def scores(self, name: str, parts: Iterable[tuple[Pictures, Sequence[Pictures]]]) -> list[float]:
        """How far pictures show each of several conditions of one kind, part by part; read once for all of them."""
        found: list[Agreement] = []
        for pictures, conditions in parts:
            seen = self.read(name, pictures)
            found = found or [Agreement(name, self._sizes[name]) for _ in conditions]
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
