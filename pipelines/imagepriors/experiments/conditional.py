"""One code path for every condition (the paper's section 4): classes, masks, depth maps and poses to pictures."""

import numpy as np

from codeshards.format import ShardDataset
from imagepriors.config import EvaluatePriorConfig
from imagepriors.decode import draw_samples, sample_grid
from imagepriors.evaluate_prior import faith
from imagepriors.experiments.lab import Lab
from imagepriors.faithfulness import MEASURES

_COLUMNS, _ROWS = 4, 4


def run(lab: Lab) -> None:
    """Train a prior for each condition, draw from it, and read the conditions back from what was drawn."""
    shards = lab.shards()
    dataset = ShardDataset.open(shards)
    names = (*(("class",) if len(dataset.class_names) > 1 else ()), *lab.conditions())
    folders = lab.train({name: lab.prior(condition=name) for name in names}, shards)
    config = EvaluatePriorConfig(n=max(2, lab.config.n), reader_steps=lab.config.reader_steps)
    figures, pictures, told = {}, {}, []
    for name, folder in folders.items():
        samples = draw_samples(folder, shards, config.n, config=lab.sampling(batch_size=64))
        found = faith(dataset, samples.sequence, name, samples.pictures, samples.conditions[name], config)
        figures[name] = found
        told.append(f"{name} ({MEASURES[name]}) {_told(found, name)}")
        shown = draw_samples(folder, shards, _COLUMNS * _ROWS, config=lab.sampling(), per_condition=_COLUMNS)
        pictures[name] = sample_grid(shown, _COLUMNS, scale=max(1, 64 // shown.pictures.shape[1]))
    listed = "; ".join(told)
    text = (
        f"How far {config.n} samples follow their conditions, as a small network taught on decoded training codes "
        f"reads them back (samples; the same against shuffled conditions; decoded validation pictures): {listed}. "
        "Rows: condition, original, four samples."
    )
    lab.save("Conditional", text, {"faith": figures, "samples": config.n}, pictures)


def _told(found: dict[str, float], name: str) -> str:
    values = [found.get(f"{name} {MEASURES[name]}, {of}", np.nan) for of in ("samples", "shuffled", "real")]
    return "; ".join(f"{value:.2f}" for value in values)
