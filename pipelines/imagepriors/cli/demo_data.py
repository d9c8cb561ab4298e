"""`imagepriors demo-data`."""

from pathlib import Path

import tyro

from imagepriors.api.defaults import DEMO_DATA


def demo_data(
    out: tyro.conf.Positional[Path] = DEMO_DATA,
    *,
    n_train: int = 3000,
    n_val: int = 300,
    size: int = 64,
    seed: int = 0,
) -> str:
    """Generate the demo scenes: images, masks, depth, poses and classes.

    Each kind is in the layout of a real dataset.

    Args:
        out: Folder to write.
        n_train: Number of training scenes.
        n_val: Number of validation scenes.
        size: Side of the square pictures, in pixels.
        seed: Seed of the scenes.

    Example:
        imagepriors demo-data data/demo --n-train 3000
    """
    from imagepriors.demo.layouts import write_demo_data

    write_demo_data(out, n_train=n_train, n_val=n_val, size=size, seed=seed)
    return f"demo data in {out}"
