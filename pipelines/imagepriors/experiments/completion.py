"""Complete half of a picture's codes several times, in each order."""

import math

import numpy as np

from codeshards.format import ORDER_NAMES
from imagepriors.decode.draw import draw_samples
from imagepriors.decode.samples import sample_grid
from imagepriors.experiments import orders
from imagepriors.experiments.workspace import PriorRuns, Workspace

_ROWS, _DRAWN = 3, 5
shards = orders.shards


def priors(workspace: Workspace) -> PriorRuns:
    """The priors of the first seed of `orders`."""
    return orders.priors(workspace, seeds=1)


def run(workspace: Workspace) -> None:
    """Complete pictures with the prior of each order."""
    half = math.prod(workspace.decoder().config.grid) // 2
    pictures = {}
    for name in ORDER_NAMES:
        config = workspace.sampling(batch_size=_ROWS * _DRAWN)
        samples = draw_samples(
            orders.run_folder(workspace, name), workspace.shards(), _ROWS * _DRAWN, config=config, per_condition=_DRAWN,
            known_T=np.arange(math.prod(workspace.decoder().config.grid)) < half,
        )  # fmt: skip
        pictures[name] = sample_grid(samples, _DRAWN, scale=max(1, 64 // samples.pictures.shape[1]))
    text = f"Rows: what is given, the original, {_DRAWN} completions. One picture per order: {', '.join(ORDER_NAMES)}."
    workspace.save("completion", text, {"given_codes": half}, pictures)
