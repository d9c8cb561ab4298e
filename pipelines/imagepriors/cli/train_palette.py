"""`imagepriors train-palette`."""

from pathlib import Path

from imagepriors.api.defaults import DEMO_DATA
from imagepriors.cli.common import shown
from vqgan.config import Geometry


def train_palette(
    *,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    out: Path | None = None,
    colours: int = 512,
    resolution: int = 32,
    geometry: Geometry | None = None,
    images: int = 2_000,
    seed: int = 0,
) -> str:
    """Fit a palette tokenizer: one code per pixel (the paper's pixel baseline).

    Args:
        dataset: Layout of the data, as for train-vqgan.
        data: Folder or URL of the dataset.
        out: Folder to write; default: runs/NAME/palette, where NAME is the name of the data's folder.
        colours: Colours of the dictionary.
        resolution: Side of the pictures, in pixels and in codes.
        geometry: How pictures that are not square become square; default: as suits the dataset (deepfashion: pad).
        images: Maximum number of pictures to take pixels from.
        seed: Seed of the draw and of k-means.

    Example:
        imagepriors train-palette --data data/photos --colours 256
    """
    import imagepriors as ip

    fitted = ip.train_palette(
        data,
        out=out,
        dataset=dataset,
        colours=colours,
        resolution=resolution,
        geometry=geometry,
        images=images,
        seed=seed,
    )
    return f"palette in {shown(fitted.folder)}"
