"""The orders (the paper's Fig. 2): priors that differ in nothing but the order of the codes.

Same shards, same first weights, same batches, same budget, for every seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from codeprior.checkpoint import load_summary
from codeshards.format import ORDER_NAMES, OrderName, order
from imagepriors.decode.samples import draw_samples
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.lab import Lab, Plan, val_curve
from imagepriors.reports.figures import picture_grid

_SAMPLES = 8


def shards(lab: Lab) -> tuple[ShardKind, ...]:
    """Of the dataset."""
    return ("shards",)


def priors(lab: Lab, orders: Sequence[OrderName] = ORDER_NAMES, seeds: int = 0) -> Plan:
    """A prior of every order and seed; other experiments use some of them."""
    every = max(1, lab.prior().steps // lab.config.evaluations)
    return {
        run_folder(lab, name, seed): (lab.prior(order=name, seed=seed, eval_every=every), lab.shards())
        for seed in range(seeds or lab.config.seeds)
        for name in orders
    }


def run_folder(lab: Lab, order_name: str, seed: int = 0) -> Path:
    """Where such a prior is trained."""
    return lab.out("orders") / f"{order_name}-seed{seed}"


def run(lab: Lab) -> None:
    """Compare, draw."""
    folders: dict[str, list[Path]] = {
        name: [run_folder(lab, name, seed) for seed in range(lab.config.seeds)] for name in ORDER_NAMES
    }
    grid = lab.decoder().config.grid
    curves = {name: np.stack([val_curve(folder)[1] for folder in found]) for name, found in folders.items()}
    steps = val_curve(folders["row_major"][0])[0]
    finals = {name: nll_RS[:, -1] for name, nll_RS in curves.items()}
    results = {
        "ranking": ranking(finals),
        "paper": "row_major best; subsample and spiral_out worst",
        "val_nll_nats": {name: {"mean": float(nll.mean()), "seeds": nll.tolist()} for name, nll in finals.items()},
        "behind_row_major": {name: (nll - finals["row_major"]).tolist() for name, nll in finals.items()},
        "steps": int(steps[-1]),
    }
    maps = {name: position_map(found, name, grid) for name, found in folders.items()}
    drawn = [
        draw_samples(folders[name][0], lab.shards(), _SAMPLES, config=lab.sampling(batch_size=_SAMPLES)).pictures
        for name in ORDER_NAMES
    ]
    pictures: dict[str, Figure | Image.Image] = {
        "curves": orders_curves(steps, curves),
        "positions": maps_figure(maps),
        "samples": picture_grid(np.concatenate(drawn), _SAMPLES, scale=max(1, 64 // drawn[0].shape[1])),
    }
    text = (
        f"{describe(finals)} Pictures: the curves; the loss of every cell of the grid, by order; samples, a row an "
        f"order: {', '.join(ORDER_NAMES)}."
    )
    lab.save("orders", text, results, pictures)


def position_map(folders: list[Path], name: str, grid: int) -> npt.NDArray[np.float64]:
    """Mean loss of every cell of the grid, [H, W] in nats."""
    losses = [(load_summary(folder) or {})["val_nll_nats_by_position"] for folder in folders]
    cells = np.empty(grid * grid)
    cells[order(name, grid, grid)] = np.mean(losses, axis=0)
    return cells.reshape(grid, grid)


def ranking(finals: Mapping[str, npt.NDArray[np.float64]]) -> list[str]:
    """Orders by their mean loss, the best first."""
    return sorted(finals, key=lambda name: float(finals[name].mean()))


def describe(finals: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """Final losses of every seed by order, in words, and what they show.

    Seeds are paired (a seed's first weights and batches are those of all orders), so that the difference within a seed
    says more than the spread of either order. It is shown where its mean lies outside the 95% interval of Student's t
    for all four comparisons at once (Bonferroni).
    """
    names, seeds = ranking(finals), len(next(iter(finals.values())))
    rows = ", ".join(f"{name} {finals[name].mean():.4f}" for name in names)
    told = f"Validation NLL in nats per code at the end, mean of {seeds} seed{'s' if seeds > 1 else ''}: {rows}. "
    if seeds == 1:
        return told + "One seed has no spread: it shows no ranking."
    behind = {name: finals[name] - finals["row_major"] for name in names if name != "row_major"}
    errors = {name: float(nll.std(ddof=1)) / seeds**0.5 for name, nll in behind.items()}
    pairs = ", ".join(f"{name} {nll.mean():+.4f} ± {errors[name]:.4f}" for name, nll in behind.items())
    limit = float(stats.t.ppf(1 - 0.05 / (2 * len(behind)), seeds - 1))
    shown = [name for name, nll in behind.items() if abs(nll.mean()) > limit * errors[name]]
    worse, better = ([name for name in shown if sign * behind[name].mean() > 0] for sign in (1, -1))
    return (
        f"{told}Behind row_major with the same seed (mean ± standard error): {pairs}. Shown at 95% "
        f"({limit:.1f} standard errors) to be worse than row_major: {', '.join(worse) or 'none'}; better: "
        f"{', '.join(better) or 'none'}. In the paper row_major is best, subsample and spiral_out are worst; here "
        f"{names[0]} is best, {names[-2]} and {names[-1]} are last."
    )


def orders_curves(steps: Any, curves: Mapping[str, Any]) -> Figure:
    """Mean loss over steps with the range over seeds; beside it the last third, enlarged."""
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
    """One panel an order, the same colours in all."""
    figure = Figure(figsize=(3 * len(maps) + 1, 3.2), layout="constrained")
    low, high = min(m.min() for m in maps.values()), max(m.max() for m in maps.values())
    image = None
    for axes, (name, cells) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        image = axes.imshow(cells, vmin=low, vmax=high, cmap="magma")
        axes.set(title=f"{name}: {cells.mean():.3f}", xticks=[], yticks=[])
    figure.colorbar(image, ax=figure.axes, label="nats")  # type: ignore[arg-type]
    return figure
