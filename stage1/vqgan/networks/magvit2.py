"""The networks of Open-MAGVIT2 (Luo et al. 2024), under their published names.

There is no attention, and before each resolution of the decoder the statistics of the code vectors scale and shift
the features.

Axes: B batch, C channels, H W pixels, h w grid cells.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import ModelConfig
from vqgan.networks.base import DecoderNetwork, EncoderNetwork, norm
from vqgan.networks.vqgan import ResBlock


class AdaptiveNorm(nn.Module):
    """GroupNorm whose scale and shift are linear maps of the deviation and mean of the code vectors of a picture."""

    def __init__(self, z_channels: int, channels: int, groups: int = 0) -> None:
        super().__init__()
        self.groups = norm(channels, groups).num_groups
        self.gamma, self.beta = nn.Linear(z_channels, channels), nn.Linear(z_channels, channels)

    def forward(self, x: Tensor, z_BChw: Tensor) -> Tensor:
        """[B, C, H, W], [B, z_channels, h, w] → [B, C, H, W]."""
        cells = z_BChw.flatten(2)
        scale, shift = self.gamma((cells.var(2) + 1e-6).sqrt()), self.beta(cells.mean(2))
        return scale[:, :, None, None] * F.group_norm(x, self.groups, eps=1e-6) + shift[:, :, None, None]  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Double the resolution: a 3×3 convolution to four times the channels, one part for each pixel of a 2×2 square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W]."""
        # Published channels are counted pixel by pixel, those of pixel_shuffle channel by channel.
        return F.pixel_shuffle(self.conv1(x).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


class Level(nn.Module):
    """One resolution: residual blocks, then a change of resolution."""

    def __init__(self, channels_in: int, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.block = _blocks(channels_in, channels, config)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H', W']."""
        for block in self.block:
            x = block(x)
        resample = self.downsample or self.upsample
        return resample(x) if resample else x


def _blocks(channels_in: int, channels: int, config: ModelConfig) -> nn.ModuleList:
    return nn.ModuleList(
        ResBlock(channels if i else channels_in, channels, config.norm_groups, bias=False)
        for i in range(config.num_res_blocks)
    )


class Encoder(EncoderNetwork):
    """The network from pixels to the latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.ch
        self.conv_in = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for i, mult in enumerate(config.ch_mult):
            level = Level(width, config.ch * mult, config)
            width = config.ch * mult
            if i < len(config.ch_mult) - 1:
                level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(level)
        self.mid_block = _blocks(width, width, config)
        self.norm_out = norm(width, config.norm_groups)
        self.conv_out = nn.Conv2d(width, config.z_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, z_channels, h, w]."""
        h = self.conv_in(x_BCHW)
        for block in (*self.down, *self.mid_block):
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class Decoder(DecoderNetwork):
    """The network from the quantised latent to pixels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        before = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], config)
        self.adaptive = nn.ModuleList(AdaptiveNorm(config.z_channels, width, config.norm_groups) for width in before)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(before[i], width, config)
            level.upsample = Upsample(width) if i else None
            self.up.append(level)
        self.norm_out = norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], config.channels, 3, padding=1)

    def body(self, z_BChw: Tensor) -> Tensor:
        """[B, z_channels, h, w] → features [B, ch, H, W] before the last layer."""
        h = self.conv_in(z_BChw)
        for block in self.mid_block:
            h = block(h)
        for adapt, level in reversed(list(zip(self.adaptive, self.up, strict=True))):
            h = level(adapt(h, z_BChw))
        return F.silu(self.norm_out(h))
