"""Tokenizers of SEED-Voken: IBQ (Shi et al. 2024) and Open-MAGVIT2 (Luo et al. 2024), of Lightning checkpoints.

As in their published evaluation, the moving averages of the weights are used where a file has them.
"""

from torch import Tensor

from vqgan.compat.compvis import DROPPED
from vqgan.compat.released import Released, Weights, network_sizes, size, without
from vqgan.config import LossConfig, ModelConfig
from vqgan.errors import InputError

MAGVIT2_MARK = r"decoder\.adaptive\.\d+\."
"""Pattern of a name by which an Open-MAGVIT2 checkpoint is recognised."""
EMA = "model_ema."
"""Prefix of the moving averages, whose names have no dots."""


def convert_ibq(released: Weights) -> Released:
    """Return the tokenizer of an IBQ checkpoint, whose networks are those of CompVis.

    Raises:
        InputError: A tensor is missing, or the sizes are no ModelConfig.
    """
    weights, dropped = _averaged(released)
    codebook_size, embed_dim = (size(weights, "quantize.embedding.weight", axis) for axis in (0, 1))
    config = ModelConfig(**network_sizes(weights), quantizer="ibq", codebook_size=codebook_size, embed_dim=embed_dim)
    return Released(config, weights, dropped, LossConfig(perceptual="lpips-vgg", entropy_weight=0.05))


def convert_magvit2(released: Weights) -> Released:
    """Return the tokenizer of an Open-MAGVIT2 checkpoint; its grids have 16×16 codes.

    Raises:
        InputError: A tensor is missing, or the sizes are no ModelConfig.
    """
    weights, dropped = _averaged(released)
    bits = size(weights, "encoder.conv_out.weight")
    sizes = network_sizes(weights)
    config = ModelConfig(
        **{**sizes, "resolution": 16 << (len(sizes["ch_mult"]) - 1)},
        network="magvit2",
        quantizer="lfq",
        codebook_size=2**bits,
        embed_dim=bits,
    )
    return Released(config, weights, dropped, LossConfig(perceptual="lpips-vgg", entropy_weight=0.1))


def _averaged(released: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """Return the moving averages under the names of the weights, or the weights if there are none; and the rest."""
    averages = {name.removeprefix(EMA): value for name, value in released.items() if name.startswith(EMA)}
    kept, _ = without(released, (*DROPPED, EMA))
    if averages:
        lost = [name for name in kept if name.replace(".", "") not in averages]
        if lost:
            raise InputError(f"{EMA}{lost[0].replace('.', '')} is missing, the moving average of {lost[0]}")
        kept = {name: averages[name.replace(".", "")] for name in kept}
    used = {EMA + name.replace(".", "") for name in kept} if averages else kept.keys()
    return kept, sorted(released.keys() - used)
