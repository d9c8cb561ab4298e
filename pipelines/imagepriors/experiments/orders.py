"""The orders (the paper's Fig. 2): priors that differ only in the order of the codes.

For each seed, all orders have the same shards, initial weights, batches and number of steps.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from codeprior.checkpoint import load_summary
from codeshards.format import ORDER_NAMES, OrderName, order
from imagepriors.decode.draw import draw_samples
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.paired import Difference, Values, difference, intervals_figure, listed
from imagepriors.experiments.workspace import PriorRuns, Workspace
from imagepriors.reports.charts import curve
from imagepriors.reports.figures import picture_grid

_SAMPLES = 8
_PAPER = [
    *(("row_major", name) for name in ORDER_NAMES if name != "row_major"),
    *itertools.product(("alternate", "zcurve"), ("subsample", "spiral_out")),
]
"""Pairs (better, worse) of the paper: row_major is best; subsample and spiral_out are worst."""


def shards(workspace: Workspace) -> tuple[ShardKind, ...]:
    """The shards of the dataset."""
    return ("shards",)


def priors(workspace: Workspace, orders: Sequence[OrderName] = ORDER_NAMES, seeds: int = 0) -> PriorRuns:
    """A prior per order and seed; other experiments use some of them."""
    every = max(1, workspace.prior_config().steps // workspace.config.evaluations)
    return {
        run_folder(workspace, name, seed): (
            workspace.prior_config(order=name, seed=seed, eval_every=every),
            workspace.shards(),
        )
        for seed in range(seeds or workspace.config.seeds)
        for name in orders
    }


def run_folder(workspace: Workspace, order_name: str, seed: int = 0) -> Path:
    """Run folder of a prior."""
    return workspace.out("orders") / f"{order_name}-seed{seed}"


def run(workspace: Workspace) -> None:
    """Compare the losses of the orders, and draw samples."""
    folders: dict[str, list[Path]] = {
        name: [run_folder(workspace, name, seed) for seed in range(workspace.config.seeds)] for name in ORDER_NAMES
    }
    grid = workspace.decoder().config.grid
    curves = {
        name: np.stack([np.array(curve(folder, "val_nll_nats")[1]) for folder in found])
        for name, found in folders.items()
    }
    steps = curve(folders["row_major"][0], "val_nll_nats")[0]
    finals = {name: nll_RS[:, -1] for name, nll_RS in curves.items()}
    results = {
        "ranking": ranking(finals),
        "paper": "row_major best; subsample and spiral_out worst",
        "val_nll_nats": {name: {"mean": float(nll.mean()), "seeds": nll.tolist()} for name, nll in finals.items()},
        "behind_row_major": {name: (nll - finals["row_major"]).tolist() for name, nll in finals.items()},
        "differences": {f"{worse} - {better}": asdict(found) for (better, worse), found in differences(finals).items()},
        "steps": int(steps[-1]),
    }
    maps = {name: position_map(found, name, grid) for name, found in folders.items()}
    drawn = [
        draw_samples(
            folders[name][0], workspace.shards(), _SAMPLES, config=workspace.sampling(batch_size=_SAMPLES)
        ).pictures
        for name in ORDER_NAMES
    ]
    pictures: dict[str, Figure | Image.Image] = {
        "curves": orders_curves(steps, curves),
        "differences": intervals_figure(
            {f"{worse} - {better}": found for (better, worse), found in differences(finals).items()},
            "difference of validation NLL, nats per code",
        ),
        "positions": maps_figure(maps),
        "samples": picture_grid(np.concatenate(drawn), _SAMPLES, scale=max(1, 64 // drawn[0].shape[1])),
    }
    text = (
        f"{describe(finals)} Pictures: the curves; the differences of all pairs; the loss of each cell of the grid, "
        f"by order; samples, one row per order: {', '.join(ORDER_NAMES)}."
    )
    workspace.save("orders", text, results, pictures)


def position_map(folders: list[Path], name: str, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Mean loss of each cell of the grid, [H, W] in nats."""
    losses = [(load_summary(folder) or {})["val_nll_nats_by_position"] for folder in folders]
    cells = np.empty(math.prod(grid))
    cells[order(name, *grid)] = np.mean(losses, axis=0)
    return cells.reshape(grid)


def ranking(finals: Mapping[str, npt.NDArray[np.float64]]) -> list[str]:
    """Orders by their mean loss, the best first."""
    return sorted(finals, key=lambda name: float(finals[name].mean()))


def differences(finals: Mapping[str, Values]) -> dict[tuple[str, str], Difference]:
    """How far each order is behind each better one, with intervals that hold for all pairs at once."""
    pairs = list(itertools.combinations(ranking(finals), 2))
    return {(better, worse): difference(finals[worse], finals[better], len(pairs)) for better, worse in pairs}


def describe(finals: Mapping[str, Values]) -> str:
    """Describe the final losses of each order, and which differences between them are shown."""
    names, seeds = ranking(finals), len(next(iter(finals.values())))
    rows = ", ".join(f"{name} {finals[name].mean():.4f}" for name in names)
    summary = f"Validation NLL in nats per code at the end, mean of {seeds} seed{'s' if seeds > 1 else ''}: {rows}. "
    if seeds == 1:
        return summary + "One seed has no spread: it shows no ranking."
    found = differences(finals)
    behind = ", ".join(
        f"{name} {difference(finals[name], finals['row_major'], len(found))}" for name in names if name != "row_major"
    )
    shown = {pair for pair, one in found.items() if one.shown}
    parts = [
        f"{name} than {listed(worse for better, worse in found if better == name and (better, worse) in shown)}"
        for name in names
        if any(better == name for better, _ in shown)
    ]
    unshown = listed(f"{better} and {worse}" for better, worse in found if (better, worse) not in shown)
    agreed, opposed = (sum(pair in shown for pair in claims) for claims in (_PAPER, [pair[::-1] for pair in _PAPER]))
    return (
        f"{summary}Behind row_major with the same seed, ± half of the 95% interval, which holds for all {len(found)} "
        f"pairs of orders at once (Student's t of paired differences, Bonferroni): {behind}. Shown to be better: "
        f"{'; '.join(parts) or 'none'}. Not shown to differ: {unshown}. In the paper row_major is best, subsample and "
        f"spiral_out are worst: of these {len(_PAPER)} differences {agreed} are shown, {opposed} are shown to be the "
        "other way round."
    )


def orders_curves(steps: Any, curves: Mapping[str, Any]) -> Figure:
    """Mean loss over steps with the range over seeds, and an enlarged view of the last third."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, start in zip(figure.subplots(1, 2), (0, 2 * len(steps) // 3), strict=True):
        for (name, nll_RS), style in zip(curves.items(), ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))), strict=True):
            x, y = steps[start:], nll_RS[:, start:]
            axes.plot(x, y.mean(0), label=name, linestyle=style)
            axes.fill_between(x, y.min(0), y.max(0), alpha=0.15)
        axes.set(xlabel="step", ylabel="validation NLL, nats per code")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def maps_figure(maps: dict[str, Any]) -> Figure:
    """One panel per order, with one colour scale."""
    figure = Figure(figsize=(3 * len(maps) + 1, 3.2), layout="constrained")
    low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
    image = None
    for axes, (name, cells) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        image = axes.imshow(cells, vmin=low, vmax=high, cmap="magma")
        axes.set(title=f"{name}: {cells.mean():.3f}", xticks=[], yticks=[])
    figure.colorbar(image, ax=figure.axes, label="nats")  # type: ignore[arg-type]
    return figure
