"""Whether figures compare with published ones."""

from imagepriors.evaluate.networks import PUBLISHED

SAMPLES = 50_000
"""Number of samples, and of ImageNet's validation pictures, that published figures are over."""
SIDE = 256
"""Side of the pictures in pixels."""


def comparison_notes(features: str, weights_sha256: str, count: int, size: tuple[int, ...], *others: str) -> list[str]:
    """Why figures do not compare with published ones for ImageNet at 256×256; empty if nothing is known against it.

    Args:
        features: The network that judges; "none" if there is no figure of one.
        weights_sha256: sha256 of its weights.
        count: Number of pictures that are judged.
        size: Their height and width.
        others: Further differences.
    """
    if features == "none":
        return []
    differences = list(others)
    if features != "inception":
        differences.append(f"the network is {features}, not Inception")
    elif not weights_sha256.startswith(PUBLISHED):
        differences.append("the Inception weights are not the published ones")
    if count != SAMPLES:
        differences.append(f"{count:,} pictures, not {SAMPLES:,}: a Fréchet distance is larger over fewer")
    if size != (SIDE, SIDE):
        differences.append(f"{size[1]}×{size[0]} pixels, not {SIDE}×{SIDE}")
    return [f"does not compare with published figures: {'; '.join(differences)}"] if differences else []
