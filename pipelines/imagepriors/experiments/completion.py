"""Half of a picture's codes are given, in each order, and the rest is drawn several times."""

from codeshards.format import ORDER_NAMES
from imagepriors.decode import draw_samples, sample_grid
from imagepriors.experiments.lab import Lab
from imagepriors.experiments.orders import train_orders

_ROWS, _DRAWN = 3, 5


def run(lab: Lab) -> None:
    """Complete with the priors of `orders`."""
    shards = lab.shards()
    folders = train_orders(lab, shards)
    grid = lab.decoder(shards).config.grid
    pictures = {}
    for name in ORDER_NAMES:
        config = lab.sampling(batch_size=_ROWS * _DRAWN)
        samples = draw_samples(
            folders[name][0], shards, _ROWS * _DRAWN, config=config, per_condition=_DRAWN, given=grid * grid // 2
        )
        pictures[name] = sample_grid(samples, _DRAWN, scale=max(1, 64 // samples.pictures.shape[1]))
    text = f"Rows: what is given, the original, {_DRAWN} completions. One picture an order: {', '.join(ORDER_NAMES)}."
    lab.save("Completion", text, {"given_codes": grid * grid // 2}, pictures)
