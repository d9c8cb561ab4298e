"""The VQGAN (Esser, Rombach, Ommer 2021): CNN encoder, vector quantiser, CNN decoder.

Axes: B batch, C channels, H W pixels, h w grid cells, K codes, D code dimension. Module names are those of the
published checkpoints.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import LossConfig, ModelConfig, Network, ScalesFrom
from vqgan.config import Quantizer as QuantizerName
from vqgan.cpu_kernels import GroupNorm
from vqgan.errors import InputError
from vqgan.lookup_free import FiniteScalarQuantizer, LookupFreeQuantizer
from vqgan.quantize import (
    GumbelQuantizer,
    IndexQuantizer,
    Quantizer,
    SimVQuantizer,
    VectorQuantizer,
    pooled_codes,
)


def norm(channels: int, groups: int = 0) -> GroupNorm:
    """Return a GroupNorm, eps 1e-6. By default it has 32 groups, or fewer so that a group has 4 or more channels.

    One channel per group would be instance normalisation, which removes the flat colours of an image.
    """
    return GroupNorm(groups or min(32, channels // 4), channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two 3×3 convolutions after norm and swish, with a residual path (1×1 if the number of channels changes)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int = 0) -> None:
        super().__init__()
        self.norm1 = norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.nin_shortcut(x)  # type: ignore[no-any-return]


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells of the feature map, with a residual path."""

    def __init__(self, channels: int, groups: int = 0) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        y = self.norm(x)
        q, k, v = (part(y).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve the resolution: pad right and bottom by one, 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """One resolution: residual blocks, each optionally followed by attention, then a change of resolution."""

    def __init__(
        self, channels_in: int, channels: int, blocks: int, attention: bool, resample: nn.Module | None, groups: int = 0
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(channels if i else channels_in, channels, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(channels, groups) for _ in range(blocks if attention else 0))
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif isinstance(resample, Upsample):
            self.upsample = resample
        self._resample = (
            [resample] if resample else []
        )  # in a list, so that it is registered only under its published name

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H', W']."""
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for resample in self._resample:
            x = resample(x)
        return x


class Mid(nn.Module):
    """The bottleneck: residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int = 0) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResBlock(channels, channels, groups),
            AttnBlock(channels, groups),
            ResBlock(channels, channels, groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C, h, w]."""
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class EncoderNetwork(nn.Module):
    """Base class of the encoders: [B, C, H, W] in [-1, 1] or one-hot → [B, z_channels, h, w]."""

    conv_in: nn.Conv2d
    """The first layer."""


class DecoderNetwork(nn.Module):
    """Base class of the decoders: [B, z_channels, h, w] → [B, C, H, W]."""

    conv_out: nn.Conv2d
    """The last layer, at which the adaptive weight of the adversarial loss is computed."""

    def body(self, z_BChw: Tensor) -> Tensor:
        """Return the input of the last layer."""
        raise NotImplementedError

    def forward(self, z_BChw: Tensor) -> Tensor:
        """[B, z_channels, h, w] → [B, C, H, W]."""
        return self.conv_out(self.body(z_BChw))  # type: ignore[no-any-return]


class Encoder(EncoderNetwork):
    """The network from pixels to the latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        last = len(config.ch_mult) - 1
        channels = config.ch
        self.conv_in = nn.Conv2d(config.channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            width = config.ch * mult
            attention = config.resolution >> level in config.attn_resolutions
            resample = Downsample(width) if level < last else None
            self.down.append(Level(channels, width, config.num_res_blocks, attention, resample, config.norm_groups))
            channels = width
        self.mid = Mid(channels, config.norm_groups)
        self.norm_out = norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, z_channels, h, w]."""
        h = self.conv_in(x_BCHW)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))  # type: ignore[no-any-return]


class Decoder(DecoderNetwork):
    """The network from the quantised latent to pixels: the encoder reversed, with one more block per level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Mid(channels, config.norm_groups)
        levels: list[Level] = []
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            width = config.ch * mult
            attention = config.resolution >> level in config.attn_resolutions
            resample = Upsample(width) if level else None
            levels.append(Level(channels, width, config.num_res_blocks + 1, attention, resample, config.norm_groups))
            channels = width
        self.up = nn.ModuleList(reversed(levels))  # published checkpoints count from the highest resolution
        self.norm_out = norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.channels, 3, padding=1)

    def body(self, z_BChw: Tensor) -> Tensor:
        """[B, z_channels, h, w] → features [B, ch, H, W] before the last layer."""
        h = self.mid(self.conv_in(z_BChw))
        for level in reversed(list(self.up)):
            h = level(h)
        return F.silu(self.norm_out(h))


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


_Network = tuple[Callable[[ModelConfig], EncoderNetwork], Callable[[ModelConfig], DecoderNetwork]]
NETWORKS: dict[Network, _Network] = {"vqgan": (Encoder, Decoder)}
"""Encoder and decoder of each `config.network`."""

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
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

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
