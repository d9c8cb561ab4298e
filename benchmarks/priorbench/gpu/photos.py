"""Write synthetic photos: `python -m priorbench.gpu.photos FOLDER SIZE`. Imports no torch.

They are rendered scenes with grain, JPEG files of 500×375 pixels and about 80 kB; those of ImageNet have 110 kB.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from imagepriors.demo.scenes import CLASS_NAMES, render_scene
from runkit.machine import usable_cores

COUNTS = {"full": 20_480, "tiny": 24}
"""Number of photos for each size."""
_SCENES = 256
"""Number of scenes that are rendered; photos of one scene differ by their grain."""
_WIDTH, _HEIGHT = 500, 375


@functools.cache
def _scene(index: int) -> tuple[npt.NDArray[np.float32], str]:
    scene = render_scene(0, index, 250)
    smooth = Image.fromarray(scene.image).resize((_WIDTH, _HEIGHT), box=(0, 31, 250, 218.5))
    return np.asarray(smooth, dtype=np.float32), CLASS_NAMES[scene.label]


@functools.cache
def _grain() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 9, (2 * _HEIGHT, 2 * _WIDTH, 1)).astype(np.float32)


def write_photo(index: int, folder: Path) -> None:
    """Write photo number `index` into the folder of its class."""
    # Without grain a file is a fifth of a photo's, and is decoded faster.
    pixels, label = _scene(index % _SCENES)
    top, left = np.random.default_rng(index).integers(0, (_HEIGHT, _WIDTH))
    grainy = pixels + _grain()[top : top + _HEIGHT, left : left + _WIDTH]
    path = folder / label / f"{index:06d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8)).save(path, quality=92)


def main(folder: str, size: str) -> None:
    """Write the photos of a size on all cores, those of a scene by one process."""
    count = COUNTS[size]
    order = sorted(range(count), key=lambda index: index % _SCENES)
    work = functools.partial(write_photo, folder=Path(folder))
    with multiprocessing.get_context("spawn").Pool(min(usable_cores(), count)) as pool:
        pool.map(work, order, chunksize=-(-count // _SCENES))


if __name__ == "__main__":
    main(*sys.argv[1:])
