"""Draw the pipeline at work: a scene, its codes, the five orders, the reconstruction, and samples beside their masks.

Usage, after `make quickstart`: python examples/pipeline_figure.py runs/demo data/demo docs/pipeline.jpg
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import imagepriors as ip
from codeshards.format import order

SCENE = 3
"""Number of the validation scene in the first row."""
MASKS = (3, 70, 150, 262)
"""Numbers of the validation scenes whose masks the samples follow."""
PER_MASK = 3
TOP = ["picture", "64 codes", "row_major", "spiral_out", "zcurve", "subsample", "alternate", "decoded"]


def draw(run: Path, data: Path) -> Figure:
    """The figure of a run of the quickstart."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(3, 8)
    tokenizer = ip.load_tokenizer(run / "tokenizer")
    picture = ip.open_dataset(data)["val"].read_whole(SCENE)
    codes_HW = tokenizer.encode(picture)
    draw_top(axes[0], picture, codes_HW, tokenizer.decode(codes_HW))
    prior = ip.load_prior(run / "prior-row_major-segmentation")
    masks = ip.load_tokenizer(run / "shards/tokenizer-segmentation")
    (batch,) = ip.open_shards(run / "shards").batches("val", ["cond_segmentation"])
    for index, scene in enumerate(MASKS):
        mask_HW = batch["cond_segmentation"][scene].reshape(codes_HW.shape)
        samples = prior.sample(PER_MASK, condition=mask_HW.reshape(1, -1).repeat(PER_MASK, 0), seed=index)
        row = axes[1 + index // 2, index % 2 * 4 :][:4]
        for place, (image, title) in zip(
            row, [(masks.decode(mask_HW), "mask"), *((s, "") for s in samples)], strict=True
        ):
            place.imshow(image)
            place.set_title(title if index < 2 else "", fontsize=9)
        row[1].set_title("samples" if index < 2 else "", fontsize=9)
    for place in axes.flat:
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    return figure


def draw_top(axes: np.ndarray, picture: object, codes_HW: np.ndarray, decoded: object) -> None:
    """A picture, its codes, the orders in which a prior may write them, and what they decode to."""
    height, width = codes_HW.shape
    for place, title in zip(axes, TOP, strict=True):
        place.set_title(title, fontsize=9)
    axes[0].imshow(picture)
    axes[1].imshow(codes_HW, cmap="viridis")
    for r, c in np.ndindex(height, width):
        axes[1].text(c, r, str(codes_HW[r, c]), ha="center", va="center", fontsize=5, color="white")
    for place, name in zip(axes[2:7], TOP[2:7], strict=True):
        sequence = order(name, height, width)
        position = np.argsort(sequence).reshape(height, width)
        place.imshow(position, cmap="viridis")
        place.plot(sequence % width, sequence // width, color="white", linewidth=0.8)
    axes[7].imshow(decoded)


if __name__ == "__main__":
    run, data, out = map(Path, sys.argv[1:])
    draw(run, data).savefig(out, dpi=120, pil_kwargs={"quality": 88})
