"""The networks of MaskGIT's VQGAN (Chang et al. 2022), under the names of its PyTorch form in open-muse and RAR.

There is no attention, convolutions have no bias, and features are halved by averages.

Axes: B batch, C channels, H W pixels, h w grid cells.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.config import ModelConfig
from vqgan.networks import vqgan
from vqgan.networks.base import DecoderNetwork, EncoderNetwork, norm


class ResBlock(vqgan.ResBlock):
    """A residual block without biases, whose shortcut between widths is, as published, of the last convolution."""

    def __init__(self, channels_in: int, channels_out: int, groups: int = 0) -> None:
        super().__init__(channels_in, channels_out, groups, bias=False)
        self.widens = channels_in != channels_out
        if self.widens:
            self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C_out, H, W]."""
        h = self.residual(x)
        return h + (self.nin_shortcut(h) if self.widens else x)


class Level(nn.Module):
    """One resolution: residual blocks and, if it `doubles`, a convolution of the enlarged features."""

    def __init__(self, channels_in: int, channels: int, config: ModelConfig, doubles: bool = False) -> None:
        super().__init__()
        widths = [channels_in, *[channels] * config.num_res_blocks]
        self.block = nn.ModuleList(
            ResBlock(before, after, config.norm_groups) for before, after in itertools.pairwise(widths)
        )
        self.doubles = doubles
        if doubles:
            self.upsample_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H, W] or [B, C, 2H, 2W]."""
        for block in self.block:
            x = block(x)
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.doubles else x


def _mid(channels: int, config: ModelConfig) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(channels, channels, config.norm_groups) for _ in range(config.num_res_blocks))


class Encoder(EncoderNetwork):
    """The network from pixels to the latent, which sees pixels in [0, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.ch] + [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.channels, config.ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList(Level(before, after, config) for before, after in itertools.pairwise(widths))
        self.mid = _mid(widths[-1], config)
        self.norm_out = norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] → [B, z_channels, h, w]."""
        h = self.conv_in((x_BCHW + 1) / 2)
        for i, level in enumerate(self.down):
            h = level(F.avg_pool2d(h, 2) if i else h)
        for block in self.mid:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class Decoder(DecoderNetwork):
    """The network from the quantised latent to pixels in [-1, 1]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _mid(widths[-1], config)
        self.up = nn.ModuleList(
            Level(before, after, config, doubles=i > 0)
            for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], config.channels, 3, padding=1)

    def body(self, z_BChw: Tensor) -> Tensor:
        """[B, z_channels, h, w] → features [B, ch, H, W] before the last layer."""
        h = self.conv_in(z_BChw)
        for block in (*self.mid, *reversed(list(self.up))):
            h = block(h)
        return F.silu(self.norm_out(h))
