"""Training batches: the pictures of each step, read ahead."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from runkit.ranks import rank, world_size
from vqgan.config import TrainConfig
from vqgan.data import CENTRE, Split, View


def training_pictures(
    split: Split, config: TrainConfig, step: int, pool: ThreadPoolExecutor, *, rank: int = 0, world: int = 1
) -> list[npt.NDArray[Any]]:
    """Return this rank's part of the batch of a step.

    The batch is a function of (seed, step), so a run resumes exactly, and any number of ranks reads the same pictures.

    Raises:
        InputError: Ten files in a row cannot be decoded.
    """
    size = config.batch_size
    epoch, position = divmod(step, max(1, len(split) // size))
    order = np.random.default_rng((config.seed, epoch)).permutation(len(split))
    indices = order[position * size : (position + 1) * size]
    if len(indices) < size:
        indices = np.resize(order, size)
    rng = np.random.default_rng((config.seed, 1, step))
    mirrored = (rng.random(size) < 0.5) & config.mirror
    corners = rng.random((size, 2))
    windows = np.column_stack([rng.uniform(config.crop_scale or 1.0, 1.0, size), rng.random((size, 2))])
    model = config.model
    wanted = () if model.modality == "rgb" else (model.modality,)

    def read(place: int) -> npt.NDArray[Any]:
        view = View(*windows[place].tolist()) if config.crop_scale else CENTRE
        view = view._replace(mirror=bool(mirrored[place]))
        sample = split.read_good(
            int(indices[place]), model.resolution, conditions=wanted, view=view, geometry=model.geometry
        )
        picture = sample.picture(model.modality)
        if not config.crop:
            return picture
        top, left = (int(corner * (model.resolution - config.crop + 1)) for corner in corners[place])
        return picture[top : top + config.crop, left : left + config.crop]

    share = size // world
    return list(pool.map(read, range(rank * share, (rank + 1) * share)))


def prefetched(split: Split, config: TrainConfig, first: int) -> Generator[list[npt.NDArray[Any]]]:
    """Yield this rank's pictures of each step from `first` on; the next ones are decoded meanwhile."""
    with ThreadPoolExecutor(config.reader_threads) as pool, ThreadPoolExecutor(1) as ahead:

        def load(step: int) -> list[npt.NDArray[Any]]:
            return training_pictures(split, config, step, pool, rank=rank(), world=world_size())

        future = ahead.submit(load, first)
        for step in range(first, config.steps):
            batch = future.result()
            if step + 1 < config.steps:
                future = ahead.submit(load, step + 1)
            yield batch
