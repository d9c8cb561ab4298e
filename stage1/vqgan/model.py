"""The VQGAN (Esser, Rombach, Ommer 2021): CNN encoder, vector quantiser, CNN decoder.

Axes: B batch, C channels, H W pixels, h w grid cells, K codes, D code dimension.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import LossConfig, ModelConfig, ScalesFrom
from vqgan.config import Quantizer as QuantizerName
from vqgan.errors import InputError
from vqgan.lookup_free import FiniteScalarQuantizer, LookupFreeQuantizer
from vqgan.networks import NETWORKS
from vqgan.quantize import (
    GumbelQuantizer,
    IndexQuantizer,
    Quantizer,
    SimVQuantizer,
    VectorQuantizer,
    pooled_codes,
)


def scale_codes(quantize: Quantizer, z_BDhw: Tensor, sides: Sequence[int], scales_from: ScalesFrom) -> list[Tensor]:
    """Return the codes int64 [B, h, w] of a latent, then those of each coarser side S, [B, S, S].

    For the coarser scales of the multiscale prior (paper section 3), the quantised or the continuous latent is
    average-pooled with kernel = stride, and quantised with the same codebook.
    """
    height, width = z_BDhw.shape[2:]
    z_BDhw = z_BDhw.float()
    codes_Bhw = quantize.codes(z_BDhw)
    if scales_from == "quantised":
        return [codes_Bhw, *(pooled_codes(codes_Bhw, quantize, side) for side in sides)]
    pooled = [F.avg_pool2d(z_BDhw, (height // side, width // side)) for side in sides]
    return [codes_Bhw, *(quantize.codes(z) for z in pooled)]


class TokenizerModel(nn.Module):
    """Base class of the tokenizers' networks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Encode pictures [B, C, H, W], in [-1, 1] or one-hot, to codes int64 [B, h, w]."""
        return self.encode_scales(x_BCHW)[0]

    def encode_scales(
        self, x_BCHW: Tensor, sides: Sequence[int] = (), scales_from: ScalesFrom = "quantised"
    ) -> list[Tensor]:
        """Encode as `encode`, then to each coarser side S, [B, S, S]; see `scale_codes`."""
        raise NotImplementedError

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Decode codes int64 [B, h, w] to pictures [B, C, H, W]; for segmentation, to logits."""
        raise NotImplementedError


QUANTIZERS: dict[QuantizerName, Callable[[ModelConfig, LossConfig], Quantizer]] = {
    "vq": VectorQuantizer, "l2": VectorQuantizer, "simvq": SimVQuantizer, "ibq": IndexQuantizer,
    "fsq": FiniteScalarQuantizer, "lfq": LookupFreeQuantizer, "bsq": LookupFreeQuantizer,
    "gumbel": GumbelQuantizer, "palette": VectorQuantizer,
}  # fmt: skip
"""Quantiser of each `config.quantizer`."""


class VQGAN(TokenizerModel):
    """The autoencoder: encode to code indices, decode code indices."""

    def __init__(self, config: ModelConfig, loss: LossConfig | None = None) -> None:
        if config.kind:
            raise InputError(f"model.kind is {config.kind!r}: its package trains it; choose '' for a VQGAN")
        super().__init__(config)
        encoder, decoder = NETWORKS[config.network]
        self.encoder, self.decoder = encoder(config), decoder(config)
        self.quantize = QUANTIZERS[config.quantizer](config, loss or LossConfig())
        projection = nn.Conv2d if config.projected else nn.Identity
        self.quant_conv = projection(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = projection(config.embed_dim, config.z_channels, 1)

    def latent(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] (or one-hot) → continuous latent [B, D, h, w]."""
        return self.quant_conv(self.encoder(x_BCHW))  # type: ignore[no-any-return]

    def encode_scales(
        self, x_BCHW: Tensor, sides: Sequence[int] = (), scales_from: ScalesFrom = "quantised"
    ) -> list[Tensor]:
        """[B, C, H, W] → codes int64 [B, h, w], then those of each coarser side S [B, S, S]; see `scale_codes`."""
        return scale_codes(self.quantize, self.latent(x_BCHW), sides, scales_from)

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes int64 [B, h, w] → [B, C, H, W] (logits for segmentation)."""
        return self.decoder(self.post_quant_conv(self.quantize.lookup(codes_Bhw)))  # type: ignore[no-any-return]

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction [B, C, H, W], the quantisation loss and the latent [B, D, h, w]."""
        z_BDhw = self.latent(x_BCHW)
        q_BDhw, loss, _ = self.quantize(z_BDhw)
        return self.decoder(self.post_quant_conv(q_BDhw)), loss, z_BDhw


class Palette(TokenizerModel):
    """The paper's pixel baseline: the codebook is a dictionary of colours and there is no network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.quantize = VectorQuantizer(config, LossConfig())

    def encode_scales(
        self, x_BCHW: Tensor, sides: Sequence[int] = (), scales_from: ScalesFrom = "quantised"
    ) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] → indices of the nearest colours, int64 [B, H, W], and the coarser scales."""
        return scale_codes(self.quantize, x_BCHW, sides, scales_from)

    def decode(self, codes_BHW: Tensor) -> Tensor:
        """Codes int64 [B, H, W] → [B, 3, H, W]."""
        return self.quantize.lookup(codes_BHW)


def build_model(config: ModelConfig, loss: LossConfig | None = None) -> TokenizerModel:
    """Return the network that a config describes, with random weights."""
    return Palette(config) if config.quantizer == "palette" else VQGAN(config, loss)
