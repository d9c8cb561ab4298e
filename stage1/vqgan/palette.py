"""The palette tokenizer: k-means over the pixels of small images (the pixel baseline of the paper, after iGPT)."""

from pathlib import Path

import numpy as np
import torch

from runkit.progress import tqdm
from vqgan.checkpoint import check_model_folder, publish_model
from vqgan.config import Geometry, ModelConfig
from vqgan.data import Split
from vqgan.errors import InputError
from vqgan.model import Palette

_COMMAND = "train-palette"
_PIXELS = 200_000
"""Number of pixels for k-means; more do not change the colours visibly."""


def fit_palette(
    split: Split,
    out: Path,
    *,
    colours: int = 512,
    resolution: int = 32,
    geometry: Geometry = "crop",
    images: int = 2_000,
    seed: int = 0,
) -> Path:
    """Fit a dictionary of RGB colours and write it as a tokenizer with one code per pixel.

    Args:
        split: Training pictures.
        out: Folder to write.
        colours: Size of the dictionary.
        resolution: Side of the pictures, in pixels and in codes.
        geometry: How a picture that is not square becomes one.
        images: Largest number of pictures from which pixels are drawn.
        seed: Seed of the draw and of k-means.

    Raises:
        InputError: A number is out of range, ten pictures in a row cannot be read, there are fewer distinct pixels than
            colours, or `out` holds a model that this function has not written.
    """
    from scipy.cluster.vq import kmeans2

    for name, value, least in (("images", images, 1), ("seed", seed, 0)):
        if not least <= value < 2**63:
            raise InputError(f"{name} is {value}: choose {least} or more, within 64 bits")
    config = ModelConfig(
        quantizer="palette", resolution=resolution, geometry=geometry, ch_mult=(1,), attn_resolutions=(), z_channels=3,
        embed_dim=3, codebook_size=colours,
    )  # fmt: skip
    check_model_folder(out, _COMMAND)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(split))[:images]
    pixels_N3 = np.concatenate(
        [
            split.read_good(int(index), resolution, geometry=geometry).image.reshape(-1, 3)
            for index in tqdm(chosen, desc="train-palette", unit="image", disable=None)
        ]
    )
    pixels_N3 = pixels_N3[rng.permutation(len(pixels_N3))[:_PIXELS]]
    if len(np.unique(pixels_N3, axis=0)) < colours:
        raise InputError(f"the pictures have fewer than {colours} different colours: choose fewer colours")
    centres_K3, _ = kmeans2(pixels_N3.astype(np.float64) / 127.5 - 1, colours, minit="++", rng=rng, iter=20)
    # Sorted by brightness, so that equal inputs give equal files and similar codes have similar brightness.
    centres_K3 = centres_K3[np.argsort(centres_K3 @ [0.299, 0.587, 0.114], kind="stable")]
    model = Palette(config)
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(torch.from_numpy(centres_K3))
    publish_model(out, config, model, _COMMAND)
    return out
