"""Half of a picture's codes are given, in each order, and the rest is drawn several times."""

from codeshards.format import ORDER_NAMES
from imagepriors.decode.samples import draw_samples, sample_grid
from imagepriors.experiments import orders
from imagepriors.experiments.lab import Lab, Plan

_ROWS, _DRAWN = 3, 5
shards = orders.shards


def priors(lab: Lab) -> Plan:
    """The first seed of `orders`."""
    return orders.priors(lab, seeds=1)


def run(lab: Lab) -> None:
    """Complete with each."""
    grid = lab.decoder().config.grid
    pictures = {}
    for name in ORDER_NAMES:
        config = lab.sampling(batch_size=_ROWS * _DRAWN)
        samples = draw_samples(
            orders.run_folder(lab, name), lab.shards(), _ROWS * _DRAWN, config=config, per_condition=_DRAWN,
            given=grid * grid // 2,
        )  # fmt: skip
        pictures[name] = sample_grid(samples, _DRAWN, scale=max(1, 64 // samples.pictures.shape[1]))
    text = f"Rows: what is given, the original, {_DRAWN} completions. One picture an order: {', '.join(ORDER_NAMES)}."
    lab.save("completion", text, {"given_codes": grid * grid // 2}, pictures)
