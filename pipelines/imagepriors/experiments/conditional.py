"""One code path for every condition (the paper's section 4): classes, masks, depth maps and poses to pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from codeprior.checkpoint import CONFIG, RunConfig
from codeshards.format import ShardDataset
from imagepriors.decode.samples import Samples, decoded_at, draw_samples, read_rows, sample_grid
from imagepriors.evaluate.conditions import MEASURES
from imagepriors.evaluate.prior import Judge
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.lab import Lab, Plan
from imagepriors.reports.figures import bars_figure, picture_grid

_COLUMNS, _ROWS = 4, 4


def shards(lab: Lab) -> tuple[ShardKind, ...]:
    """Of the dataset."""
    return ("shards",)


def names(lab: Lab) -> tuple[str, ...]:
    """Conditions that the shards have."""
    classes = ShardDataset.open(lab.shards()).class_names
    return (*(("class",) if len(classes) > 1 else ()), *lab.conditions())


def run_folder(lab: Lab, name: str) -> Path:
    """Where the prior of a condition is trained."""
    return lab.out("conditional") / name


def priors(lab: Lab, wanted: Sequence[str] = ()) -> Plan:
    """A prior for each condition; other experiments use some of them."""
    found = [name for name in names(lab) if name in wanted or not wanted]
    return {run_folder(lab, name): (lab.prior(condition=name), lab.shards()) for name in found}


def run(lab: Lab) -> None:
    """Draw from each prior, and read the conditions back from what was drawn."""
    shards, config = lab.shards(), lab.measures()
    dataset = ShardDataset.open(shards)
    parts = {name: RunConfig.load(run_folder(lab, name) / CONFIG).sequence.conditions[0] for name in names(lab)}
    if not parts:
        text = f"{lab.config.dataset} has one class and none of the preset's conditions: there is nothing to follow."
        lab.save("conditional", text, {"faith": {}}, {})
        return
    judge = Judge(dataset, list(parts.values()), config)
    figures: dict[str, dict[str, float]] = {}
    pictures: dict[str, Figure | Image.Image] = {}
    told = []
    for name in parts:
        folder = run_folder(lab, name)
        samples = draw_samples(folder, shards, config.n, config=lab.sampling(batch_size=64), sources=False)
        found = judge.faith(name, samples.pictures, samples.conditions[name])
        figures[name] = found
        told.append(f"{name} ({MEASURES[name]}) {_told(found, name)}")
        shown = draw_samples(folder, shards, _COLUMNS * _ROWS, config=lab.sampling(), per_condition=_COLUMNS)
        scale = max(1, 64 // shown.pictures.shape[1])
        pictures[name] = (
            class_grid(dataset, shown, scale) if name == "class" else sample_grid(shown, _COLUMNS, scale=scale)
        )
    classes = f"; classes: {', '.join(dataset.class_names[:_ROWS])}" if "class" in figures else ""
    text = (
        f"How far {config.n} samples follow their conditions, as one small network taught on decoded training codes "
        "reads them back (samples; the same against shuffled conditions; decoded validation pictures): "
        f"{'; '.join(told)}. One picture a condition, in its rows: the condition (a class has no picture), an "
        f"original, four samples{classes}."
    )
    bars = {f"{name}\n{MEASURES[name]}": _of_each(found, name) for name, found in figures.items()}
    pictures = {"faith": bars_figure(bars, "agreement with the condition"), **pictures}
    lab.save("conditional", text, {"faith": figures, "samples": config.n}, pictures)


def _told(found: dict[str, float], name: str) -> str:
    return "; ".join(f"{value:.2f}" for value in _of_each(found, name).values())


def _of_each(found: dict[str, float], name: str) -> dict[str, float]:
    """The measure of samples, of shuffled ones and of real pictures."""
    return {of: found.get(f"{name} {MEASURES[name]}, {of}", np.nan) for of in ("samples", "shuffled", "real")}


def class_grid(dataset: ShardDataset, samples: Samples, scale: int) -> Image.Image:
    """A row a class: a decoded picture of it, white where validation has none, then its samples."""
    wanted = samples.conditions["class"][::_COLUMNS]
    labels, firsts = np.unique(read_rows(dataset, "val", ["label"], 0)["label"], return_index=True)
    rows = np.sort(firsts[np.isin(labels, wanted)])
    picture_of: dict[int, npt.NDArray[np.uint8]] = {}
    if len(rows):
        decoded, found = decoded_at(dataset, "val", rows, ["label"])
        picture_of = dict(zip(found["label"].tolist(), decoded, strict=True))
    white = np.full_like(samples.pictures[0], 255)
    tiles: list[npt.NDArray[np.uint8]] = []
    for label, first in zip(wanted.tolist(), range(0, len(samples.pictures), _COLUMNS), strict=True):
        tiles.append(picture_of.get(label, white))
        tiles += list(samples.pictures[first : first + _COLUMNS])
    return picture_grid(np.stack(tiles), _COLUMNS + 1, scale=scale)
