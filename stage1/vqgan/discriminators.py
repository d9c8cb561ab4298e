"""Discriminators of the adversarial loss: PatchGAN, that of StyleGAN2, and heads on the features of DINO.

Axes: B batch, C channels, H W pixels, S tokens of a vision transformer, E its width.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from runkit.weights import load_weights
from vqgan.compat.released import renamed
from vqgan.config import Discriminator, LossConfig, TrainConfig
from vqgan.cpu_kernels import GroupNorm
from vqgan.errors import InputError
from vqgan.losses import as_rgb

_WIDEST = 8
"""Largest factor of the channels of the first layer."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_discriminator(config: TrainConfig) -> nn.Module:
    """Return the discriminator of a run, which maps pictures [B, C, H, W] to logits of any shape.

    Raises:
        InputError: Its pictures are too small or of another size than it requires, or its trunk cannot be read.
    """
    make: dict[Discriminator, Callable[[int, int, LossConfig], nn.Module]] = {
        "patch": _make_patch, "stylegan": _make_stylegan, "dino": _make_dino,
    }  # fmt: skip
    kind: Discriminator = config.loss.discriminator if config.loss.disc_weight else "patch"  # checkpoints hold one
    is_used = config.loss.disc_weight > 0 and config.loss.disc_start < config.steps
    side = config.crop or config.model.resolution
    if kind == "patch" and is_used:
        _check_patches(side, config.loss.disc_layers)
    return make[kind](config.model.channels, side, config.loss)


def _check_patches(side: int, layers: int) -> None:
    if side < 3 * 2**layers:
        raise InputError(
            f"loss.disc_layers is {layers}: too many for pictures of {side} pixels, its last layer sees "
            f"{side} / 2^{layers} of them and requires 3 or more"
        )


def _make_patch(channels: int, _: int, loss: LossConfig) -> nn.Module:
    return PatchDiscriminator(channels, loss.disc_ch, loss.disc_layers)


def _make_stylegan(channels: int, side: int, loss: LossConfig) -> nn.Module:
    levels = max(0, side.bit_length() - 3)
    if side != 4 * 2**levels or levels < 1:
        raise InputError(
            f"loss.discriminator is 'stylegan', which requires a side of 8, 16, 32, 64 … pixels: {side} is none. "
            "Choose another crop or resolution, or 'patch'"
        )
    return StyleGanDiscriminator(channels, loss.disc_ch, levels)


def _make_dino(_: int, __: int, loss: LossConfig) -> nn.Module:
    return DinoDiscriminator(load_dino(Path(loss.disc_trunk)))


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017), one logit per overlapping patch."""

    def __init__(self, channels_in: int, channels: int, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels_in, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            # GroupNorm instead of BatchNorm: it has no running statistics that would differ between ranks.
            parts += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False),
                GroupNorm(8, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.net = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → logits [B, 1, h, w]."""
        return self.net(x_BCHW)  # type: ignore[no-any-return]


class StyleGanDiscriminator(nn.Module):
    """The residual discriminator of StyleGAN2 (Karras et al. 2020), one logit per picture.

    Weights have the usual initialisation and learning rate, not equalised ones.
    """

    def __init__(self, channels_in: int, channels: int, levels: int) -> None:
        super().__init__()
        widths = [channels * min(2**level, _WIDEST) for level in range(levels + 1)]
        self.first = nn.Conv2d(channels_in, widths[0], 1)
        self.blocks = nn.ModuleList(_Halve(widths[i], widths[i + 1]) for i in range(levels))
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden, self.logit = nn.Linear(16 * widths[-1], widths[-1]), nn.Linear(widths[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → logits [B, 1]."""
        h = F.leaky_relu(self.first(x_BCHW), 0.2)
        for block in self.blocks:
            h = block(h)
        h = torch.cat((h, _spread_of_batch(h)), dim=1)
        h = F.leaky_relu(self.last(h), 0.2)
        return self.logit(F.leaky_relu(self.hidden(h.flatten(1)), 0.2))  # type: ignore[no-any-return]


class _Halve(nn.Module):
    """A residual block that halves the resolution after a blur."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H/2, W/2]."""
        h = F.leaky_relu(self.conv1(x), 0.2)
        h = F.leaky_relu(self.conv2(_blurred_half(h)), 0.2)
        return (h + self.skip(_blurred_half(x))) / math.sqrt(2)  # type: ignore[no-any-return]


def _blurred_half(x: Tensor) -> Tensor:
    """Return every second pixel after a convolution with the kernel 1 3 3 1 along each axis."""
    # Computed, because on a GPU the CPU would wait for the copy of a constant.
    line = (2 - (torch.arange(4, dtype=x.dtype, device=x.device) - 1.5).abs()) / 4
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _spread_of_batch(x_BCHW: Tensor) -> Tensor:
    """Return the mean standard deviation over groups of up to four pictures as one more channel, [B, 1, H, W]."""
    batch, _, height, width = x_BCHW.shape
    group = math.gcd(batch, 4)
    grouped = x_BCHW.float().reshape(group, batch // group, -1)
    spread_B = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean(1).repeat(group)
    return spread_B.view(batch, 1, 1, 1).expand(batch, 1, height, width).to(x_BCHW.dtype)


class DinoDiscriminator(nn.Module):
    """Heads on frozen features of DINO at four depths (Sauer et al. 2023, StyleGAN-T), a logit per token and head.

    The trunk is no part of the state, because it never changes.
    """

    DEPTHS = (2, 5, 8, 11)
    """Blocks whose output a head sees."""
    mean_311: Tensor
    std_311: Tensor

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self._trunk = [trunk.eval().requires_grad_(False)]  # in a list, so that it is not registered
        width: int = trunk.hidden_dim  # type: ignore[assignment]
        self.heads = nn.ModuleList(_TokenHead(width) for _ in self.DEPTHS)
        for name, values in (("mean_311", _IMAGENET_MEAN), ("std_311", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pictures [B, 3 or 1, H, W] in [-1, 1] → logits [B, 4, S]."""
        trunk: Any = self._trunk[0].to(x_BCHW.device)
        size = trunk.image_size
        x = F.interpolate(as_rgb(x_BCHW), (size, size), mode="bilinear", antialias=True, align_corners=False)
        features = dino_features(trunk, ((x + 1) / 2 - self.mean_311) / self.std_311, self.DEPTHS)
        return torch.cat([head(h_BSE) for head, h_BSE in zip(self.heads, features, strict=True)], dim=1)


class _TokenHead(nn.Module):
    """Spectrally normalised convolutions along the tokens, with a residual path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = spectral_norm(nn.Conv1d(width, width, 1))
        self.wide = spectral_norm(nn.Conv1d(width, width, 9, padding=4, padding_mode="circular"))
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.logit = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, h_BSE: Tensor) -> Tensor:
        """Tokens [B, S, E] → logits [B, 1, S]."""
        h = F.leaky_relu(self.norm1(self.point(h_BSE.transpose(1, 2))), 0.2)
        h = (h + F.leaky_relu(self.norm2(self.wide(h)), 0.2)) / math.sqrt(2)
        return self.logit(h)  # type: ignore[no-any-return]


def dino_features(trunk: Any, x_BCHW: Tensor, depths: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield the picture's tokens [B, S, E] after some blocks of a vision transformer, the class token added to each."""
    h_BSE = trunk._process_input(x_BCHW)
    h_BSE = torch.cat((trunk.class_token.expand(len(h_BSE), -1, -1), h_BSE), dim=1) + trunk.encoder.pos_embedding
    for depth, layer in enumerate(trunk.encoder.layers):
        h_BSE = layer(h_BSE)
        if depth in depths:
            yield h_BSE[:, 1:] + h_BSE[:, :1]


_DINO_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)
"""Names of DINO's published weights → those of torchvision's vision transformer."""


def load_dino(path: Path) -> nn.Module:
    """Return DINO's ViT-S/16 (Caron et al. 2021) from its published file of weights.

    Raises:
        InputError: The file is missing, damaged or another network's.
    """
    from torchvision.models import VisionTransformer

    weights = renamed(load_weights(path, InputError), _DINO_NAMES)
    trunk: nn.Module = VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )  # fmt: skip
    trunk.heads = nn.Identity()
    try:
        trunk.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"loss.disc_trunk: {path} does not hold DINO's ViT-S/16: {reason}") from error
    return trunk
