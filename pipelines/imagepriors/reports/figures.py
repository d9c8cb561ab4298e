"""Picture grids, colour maps of labels and depth, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeshards.format import ShardError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]


def colorize(pictures: npt.NDArray[Any]) -> Pixels:
    """Convert any decoded modality to RGB [N, H, W, 3]: labels have fixed colours (0 is black), depth a colour map."""
    if pictures.ndim == 4:
        return pictures
    import matplotlib as mpl  # takes a second, and most pictures are RGB

    if pictures.dtype == np.uint8:
        palette = np.concatenate([np.zeros((1, 3)), *(mpl.colormaps["tab20"](np.arange(20))[:, :3] for _ in range(13))])
        return np.asarray((palette[:256] * 255).astype(np.uint8)[pictures])
    levels = (pictures.clip(0, 1) * 255).astype(np.uint8)
    return np.asarray((mpl.colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8)[levels])


def picture_grid(pictures: npt.NDArray[Any], columns: int, *, scale: int = 2, pad: int = 2) -> Image.Image:
    """Lay pictures [N, H, W, (3)] out row by row, enlarged `scale` times without smoothing.

    Raises:
        ShardError: there are no pictures.
    """
    if len(pictures) == 0:
        raise ShardError("a grid needs at least one picture, found none")
    tiles = colorize(pictures).repeat(scale, 1).repeat(scale, 2)
    n, height, width, _ = tiles.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + pad) + pad, (i % columns) * (width + pad) + pad
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas)


def _figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str, *, xlabel: str = "step"
) -> Figure:
    """Plot named (steps, values) lines."""
    figure = _figure(6, 3.4)
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 12 else None, markersize=3)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def bars_figure(groups: Mapping[str, Mapping[str, float]], ylabel: str, *, log: bool = False) -> Figure:
    """Plot groups of labelled bars; bars of one name have one colour."""
    figure = _figure(max(4.0, 1.6 * len(groups)), 3.4)
    axes = figure.subplots()
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [place for place, bars in enumerate(groups.values()) if name in bars]
        heights = [bars[name] for bars in groups.values() if name in bars]
        at = np.array(places) + (index - (len(names) - 1) / 2) * width
        axes.bar_label(axes.bar(at, heights, width, label=name), fmt="%.3g", fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set(ylabel=ylabel, yscale="log" if log else "linear")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)
    return figure


def png_bytes(picture: Figure | Image.Image) -> bytes:
    """Encode a figure or image as PNG."""
    buffer = BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "PNG")
    else:
        picture.savefig(buffer, dpi=110)
    return buffer.getvalue()


def entropy_figure(entropies_HW: Mapping[str, npt.NDArray[Any]]) -> Figure:
    """Plot a heat map per kind of code: bits of entropy at each position of its grid."""
    figure = _figure(3.6 * len(entropies_HW), 3.2)
    for axes, (name, entropy_HW) in zip(
        np.atleast_1d(figure.subplots(1, len(entropies_HW))), entropies_HW.items(), strict=True
    ):
        image = axes.imshow(entropy_HW, cmap="viridis")
        figure.colorbar(image, ax=axes, label="bits")
        axes.set(title=name, xticks=[], yticks=[])
    return figure


def labels_figure(counts: Mapping[str, int]) -> Figure:
    """Plot the rows of each label in the order of the mapping; more than 30 labels are not named."""
    figure = _figure(6, 3.0)
    axes = figure.subplots()
    axes.bar(np.arange(len(counts)), list(counts.values()), width=0.9, color="tab:blue")
    if len(counts) <= 30:
        axes.set_xticks(np.arange(len(counts)), list(counts), rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="rows", title=f"{len(counts)} labels")
    return figure
