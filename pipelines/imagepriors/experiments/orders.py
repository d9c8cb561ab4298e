"""The orders (the paper's Fig. 2): priors that differ in nothing but the order of the codes.

Same shards, same first weights, same batches, same budget, for every seed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from codeprior.checkpoint import load_summary
from codeshards.format import ORDER_NAMES, order
from imagepriors.decode import draw_samples
from imagepriors.experiments.lab import Lab, val_curve
from imagepriors.figures import picture_grid

_SAMPLES = 8


def run(lab: Lab) -> None:
    """Train, compare, draw."""
    shards = lab.shards()
    folders = train_orders(lab, shards)
    grid = lab.decoder(shards).config.grid
    curves = {name: np.stack([val_curve(folder)[1] for folder in found]) for name, found in folders.items()}
    steps = val_curve(folders["row_major"][0])[0]
    finals = {name: nll_RS[:, -1] for name, nll_RS in curves.items()}
    ranking = sorted(finals, key=lambda name: float(finals[name].mean()))
    results = {
        "ranking": ranking,
        "paper": "row_major best; subsample and spiral_out worst",
        "val_nll_nats": {name: {"mean": float(nll.mean()), "seeds": nll.tolist()} for name, nll in finals.items()},
        "steps": int(steps[-1]),
    }
    maps = {name: position_map(found, name, grid) for name, found in folders.items()}
    drawn = [
        draw_samples(folders[name][0], shards, _SAMPLES, config=lab.sampling(batch_size=_SAMPLES)).pictures
        for name in ORDER_NAMES
    ]
    pictures: dict[str, Figure | Image.Image] = {
        "curves": curves_figure(steps, curves),
        "positions": maps_figure(maps),
        "samples": picture_grid(np.concatenate(drawn), _SAMPLES, scale=max(1, 64 // drawn[0].shape[1])),
    }
    lab.save("Orders", describe(finals, ranking), results, pictures)


def train_orders(lab: Lab, shards: Path) -> dict[str, list[Path]]:
    """Order → run folders, one a seed. Other experiments use them too."""
    configs = {
        f"{name}-seed{seed}": lab.prior(order=name, seed=seed)
        for seed in range(lab.config.seeds)
        for name in ORDER_NAMES
    }
    home = Lab(lab.config, lab.run, lab.data, "orders")
    folders = home.train(configs, shards)
    return {name: [folders[f"{name}-seed{seed}"] for seed in range(lab.config.seeds)] for name in ORDER_NAMES}


def position_map(folders: list[Path], name: str, grid: int) -> npt.NDArray[np.float64]:
    """Mean loss of every cell of the grid, [H, W] in nats."""
    losses = [(load_summary(folder) or {})["val_nll_nats_by_position"] for folder in folders]
    cells = np.empty(grid * grid)
    cells[order(name, grid, grid)] = np.mean(losses, axis=0)
    return cells.reshape(grid, grid)


def describe(finals: dict[str, Any], ranking: list[str]) -> str:
    """The ranking in words, and whether the spread over seeds leaves it standing."""
    rows = ", ".join(f"{name} {finals[name].mean():.4f} ± {finals[name].std(ddof=0):.4f}" for name in ranking)
    best, worst = ranking[0], ranking[-2:]
    same = (
        "as in the paper"
        if best == "row_major"
        else f"in the paper row_major is, here it ranks {ranking.index('row_major') + 1}"
    )
    bad = (
        "as in the paper" if set(worst) == {"subsample", "spiral_out"} else "in the paper subsample and spiral_out are"
    )
    return (
        f"Validation loss in nats per code at the end, mean ± spread over seeds: {rows}. "
        f"Best is {best} ({same}); the last two are {' and '.join(worst)} ({bad})."
    )


def curves_figure(steps: Any, curves: dict[str, Any]) -> Figure:
    """Mean loss over steps with the range over seeds; beside it the last third, enlarged."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, start in zip(figure.subplots(1, 2), (0, 2 * len(steps) // 3), strict=True):
        for name, nll_RS in curves.items():
            x, y = steps[start:], nll_RS[:, start:]
            axes.plot(x, y.mean(0), label=name)
            axes.fill_between(x, y.min(0), y.max(0), alpha=0.2)
        axes.set(xlabel="step", ylabel="validation NLL, nats per code")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def maps_figure(maps: dict[str, Any]) -> Figure:
    """One panel an order, the same colours in all."""
    figure = Figure(figsize=(3 * len(maps) + 1, 3.2), layout="constrained")
    low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
    image = None
    for axes, (name, cells) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        image = axes.imshow(cells, vmin=low, vmax=high, cmap="magma")
        axes.set(title=f"{name}: {cells.mean():.3f}", xticks=[], yticks=[])
    figure.colorbar(image, ax=figure.axes, label="nats")  # type: ignore[arg-type]
    return figure
