"""Base classes of the encoders and decoders.

Axes: B batch, C channels, H W pixels, h w grid cells.
"""

from torch import Tensor, nn

from vqgan.cpu_kernels import GroupNorm


def norm(channels: int, groups: int = 0) -> GroupNorm:
    """Return a GroupNorm, eps 1e-6. By default it has 32 groups, or fewer so that a group has 4 or more channels.

    One channel per group would be instance normalisation, which removes the flat colours of an image.
    """
    return GroupNorm(groups or min(32, channels // 4), channels, eps=1e-6)


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
