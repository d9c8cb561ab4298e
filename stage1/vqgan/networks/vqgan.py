"""The networks of the VQGAN (Esser, Rombach, Ommer 2021). Module names are those of the published checkpoints.

Axes: B batch, C channels, H W pixels, h w grid cells.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import ModelConfig
from vqgan.networks.base import DecoderNetwork, EncoderNetwork, norm
from vqgan.networks.haar import haar, inverse_haar


class ResBlock(nn.Module):
    """Two 3×3 convolutions after norm and swish, with a residual path (1×1 if the number of channels changes)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=bias)

    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut, [B, C_out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H, W]."""
        return self.residual(x) + self.nin_shortcut(x)  # type: ignore[no-any-return]


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


class Encoder(EncoderNetwork):
    """The network from pixels to the latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, channels, side = config.patch, config.ch, config.resolution // config.patch
        self.conv_in = nn.Conv2d(config.channels * config.patch**2, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            width = config.ch * mult
            halves = level < config.n_halvings
            attention, resample = side in config.attn_resolutions, Downsample(width) if halves else None
            self.down.append(Level(channels, width, config.num_res_blocks, attention, resample, config.norm_groups))
            channels, side = width, side // 2 if halves else side
        self.mid = Mid(channels, config.norm_groups)
        self.norm_out = norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, z_channels, h, w]."""
        h = self.conv_in(haar(x_BCHW, self.patch))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))  # type: ignore[no-any-return]


class Decoder(DecoderNetwork):
    """The network from the quantised latent to pixels: the encoder reversed, with one more block per level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch, channels, side = config.patch, config.ch * config.ch_mult[-1], config.resolution // config.factor
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Mid(channels, config.norm_groups)
        levels: list[Level] = []
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            width = config.ch * mult
            doubles = level >= len(config.ch_mult) - config.n_halvings
            attention, resample = side in config.attn_resolutions, Upsample(width) if doubles else None
            levels.append(Level(channels, width, config.num_res_blocks + 1, attention, resample, config.norm_groups))
            channels, side = width, side * 2 if doubles else side
        self.up = nn.ModuleList(reversed(levels))  # published checkpoints count from the highest resolution
        self.norm_out = norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.channels * config.patch**2, 3, padding=1)

    def body(self, z_BChw: Tensor) -> Tensor:
        """[B, z_channels, h, w] → features [B, ch, H, W] before the last layer."""
        h = self.mid(self.conv_in(z_BChw))
        for level in reversed(list(self.up)):
            h = level(h)
        return F.silu(self.norm_out(h))

    def forward(self, z_BChw: Tensor) -> Tensor:
        """[B, z_channels, h, w] → [B, C, H, W]."""
        return inverse_haar(super().forward(z_BChw), self.patch)
