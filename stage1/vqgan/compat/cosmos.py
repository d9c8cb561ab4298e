"""Discrete image tokenizers of Cosmos (NVIDIA 2024), DI8x8 and DI16x16: autoencoder.jit, a TorchScript archive.

The network is that of CompVis between a Haar wavelet transform and its inverse; the codes are those of FSQ.
"""

import math

import torch

from vqgan.compat.released import Released, Weights, network_sizes, size, without
from vqgan.config import ModelConfig
from vqgan.errors import InputError

MARK = r"encoder\.patcher\.|decoder\.unpatcher\."
"""Pattern of a name by which an archive is recognised."""
_BUFFERS = ("encoder.patcher.", "decoder.unpatcher.", "quantizer.", "inv_quant.")
"""Prefixes of the constants that an archive has beside the weights."""
_PATCH = 4


def convert(released: Weights) -> Released:
    """Return the tokenizer of an archive.

    Raises:
        InputError: A tensor is missing, the sizes are no ModelConfig, or the quantiser or transform is another one.
    """
    weights, dropped = without(released, _BUFFERS)
    for name in ("encoder.conv_in.weight", "decoder.conv_in.weight"):
        if name not in weights:
            raise InputError(f"{name} is missing: pass autoencoder.jit, which has the encoder and the decoder")
    channels = size(weights, "encoder.conv_in.weight", 1)
    if channels % _PATCH**2:
        raise InputError(f"encoder.conv_in.weight has {channels} inputs, no multiple of {_PATCH**2}")
    _check_haar(released)
    size(released, "quantizer._levels")
    levels = tuple(int(level) for level in released["quantizer._levels"].flatten())
    config = ModelConfig(
        **network_sizes(weights, _PATCH),
        quantizer="fsq",
        levels=levels,
        embed_dim=len(levels),
        codebook_size=math.prod(levels),
    )
    return Released(config, weights, dropped)


def _check_haar(released: Weights) -> None:
    """Make sure that the transform is Haar's: the archive names none, but has its coefficients."""
    name = "encoder.patcher.wavelets"
    size(released, name)
    found = released[name].float().flatten()
    if found.shape != (2,) or not torch.allclose(found, torch.tensor(2**-0.5), atol=1e-2):
        raise InputError(f"{name} is {found.tolist()[:4]}, not that of the Haar transform, {2**-0.5:.4f} twice")
