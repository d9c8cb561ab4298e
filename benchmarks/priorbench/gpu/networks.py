"""The tokenizers and the photos of the checks of stage 1."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from priorbench.gpu import photos
from priorbench.gpu.check import Setup
from priorbench.train_vqgan import random_weights
from runkit.devices import Autocast
from vqgan.config import ModelConfig
from vqgan.data import Item, Split
from vqgan.data.sources import File
from vqgan.model import VQGAN, TokenizerModel
from vqgan.tokenizer import Tokenizer

Array = npt.NDArray[Any]
TINY = ModelConfig(
    resolution=32, ch=16, ch_mult=(1, 2), norm_groups=4, num_res_blocks=1, attn_resolutions=(), z_channels=16,
    embed_dim=16, codebook_size=64,
)  # fmt: skip
"""For rehearsals; of 32 pixels, because the discriminator requires 24."""
_COMPILED = dataclasses.replace(TINY, ch_mult=(1,), halvings=1)
"""For rehearsals of compiled code: each layer takes seconds."""


def config(setup: Setup, compiled: bool = False) -> ModelConfig:
    """Return the architecture that is checked: f16/1024 at 256×256 in full size."""
    return setup.pick(ModelConfig(), _COMPILED if compiled else TINY)


def name(setup: Setup) -> str:
    """Return its name in a table."""
    return setup.pick("f16/1024", "a tiny network")


def network(setup: Setup, compiled: bool = False) -> VQGAN:
    """Return it on the CPU, with random weights and a codebook of latents."""
    return random_weights(config(setup, compiled))


def tokenizer(
    model: TokenizerModel, device: torch.device, precision: Autocast = "float32", compiled: bool = False
) -> Tokenizer:
    """Return a tokenizer of a copy of a network."""
    return Tokenizer(model.config, copy.deepcopy(model), "", device, precision, compiled)


def split(setup: Setup, count: int) -> Split:
    """Return `count` samples, which are a few photos under many keys."""
    folder, distinct = setup.work / "vqgan-photos", min(count, setup.pick(16, 4))
    if len(list(folder.rglob("*.jpg"))) < distinct:
        for index in range(distinct):
            photos.write_photo(index, folder)
    paths = sorted(folder.rglob("*.jpg"))
    return Split([Item(key=f"{index:06d}", image=File(str(paths[index % len(paths)]))) for index in range(count)])


def pictures(setup: Setup, count: int) -> list[Array]:
    """Return `count` photos at the resolution of the network."""
    size, distinct = config(setup).resolution, min(count, setup.pick(16, 4))
    found = [split(setup, distinct).read(index, size).image for index in range(distinct)]
    return [found[index % distinct] for index in range(count)]


def encoder_flops(config: ModelConfig, *, matching: bool = True) -> float:
    """Return the floating-point operations of encoding one RGB picture; nothing is computed.

    Args:
        config: The architecture.
        matching: Whether to count the distances between latents and codes, less than a thousandth for f16/1024.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        VQGAN(config).eval().latent(torch.empty(1, 3, config.resolution, config.resolution))
    height, width = config.grid
    distances = 2 * height * width * config.codebook_size * config.embed_dim
    return float(counter.get_total_flops() + matching * distances)


def share(found: Array, expected: Array) -> float:
    """Return the share of equal codes."""
    return float(np.mean(found == expected))


@contextlib.contextmanager
def own_arithmetic(tf32: bool | None = None) -> Iterator[None]:
    """Restore the settings of torch that a block changes; `tf32` sets whether products and convolutions use TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    threads, before = torch.get_num_threads(), matmul.allow_tf32
    kept = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    allowed = cudnn.allow_tf32 if tf32 is None else tf32
    try:
        with cudnn.flags(enabled=True, allow_tf32=allowed, **kept):
            matmul.allow_tf32 = before if tf32 is None else tf32
            yield
    finally:
        matmul.allow_tf32 = before
        torch.set_num_threads(threads)
