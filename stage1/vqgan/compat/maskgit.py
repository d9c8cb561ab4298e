"""MaskGIT's VQGAN in its PyTorch form, which open-muse, RAR and TiTok use (maskgit-vqgan-imagenet-f16-256.bin)."""

from vqgan.compat.released import Released, Weights, network_sizes, size
from vqgan.config import ModelConfig

MARK = r"decoder\.up\.\d+\.upsample_conv\."
"""Pattern of a name by which a checkpoint is recognised."""


def convert(released: Weights) -> Released:
    """Return the tokenizer of a checkpoint; the decoder's pixels become those in [-1, 1].

    Raises:
        InputError: A tensor is missing, or the sizes are no ModelConfig.
    """
    codebook_size, embed_dim = (size(released, "quantize.embedding.weight", axis) for axis in (0, 1))
    config = ModelConfig(
        **network_sizes(released),
        network="maskgit",
        codebook_size=codebook_size,
        embed_dim=embed_dim,
    )
    weight, bias = "decoder.conv_out.weight", "decoder.conv_out.bias"
    size(released, bias)
    pixels = {weight: released[weight] * 2, bias: released[bias] * 2 - 1} if weight in released else {}
    return Released(config, {**released, **pixels})
