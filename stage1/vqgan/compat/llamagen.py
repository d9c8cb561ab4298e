"""Tokenizers of LlamaGen (Sun et al. 2024): VQ-16 and VQ-8, codes of 8 dimensions on the unit sphere.

The network is that of CompVis under other names, with attention at the lowest resolution.
"""

from vqgan.compat.released import Released, Weights, count, network_sizes, renamed, size, without
from vqgan.config import LossConfig, ModelConfig

MARK = r"encoder\.conv_blocks\.\d+\.res\."
"""Pattern of a name by which a checkpoint is recognised."""
_DROPPED = ("quantize.codebook_used",)
"""The last codes that were used, which LlamaGen reports in training."""
_RULES = (
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"\.res\.", ".block."),
)


def convert(released: Weights) -> Released:
    """Return the tokenizer of a LlamaGen checkpoint.

    Raises:
        InputError: A tensor is missing, or the sizes are no ModelConfig.
    """
    kept, dropped = without(released, _DROPPED)
    # The decoder's levels are counted from the lowest resolution, here from the highest.
    last = count(kept, r"decoder\.conv_blocks\.(\d+)\.") - 1
    levels = [(rf"^decoder\.conv_blocks\.{i}\.", f"decoder.up.{last - i}.") for i in range(last + 1)]
    weights = renamed(kept, (*levels, *_RULES))
    codebook_size, embed_dim = (size(weights, "quantize.embedding.weight", axis) for axis in (0, 1))
    config = ModelConfig(**network_sizes(weights), quantizer="l2", codebook_size=codebook_size, embed_dim=embed_dim)
    return Released(config, weights, dropped, LossConfig(perceptual="lpips-vgg"))
