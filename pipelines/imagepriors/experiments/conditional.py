"""One code path for every condition (the paper's section 4): classes, masks, depth maps and poses to pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from codeprior.checkpoint import CONFIG, RunConfig
from codeshards.format import ShardDataset
from imagepriors.decode.draw import Samples, draw_samples
from imagepriors.decode.rows import decode_rows, read_rows
from imagepriors.decode.samples import sample_grid
from imagepriors.evaluate.conditions import METRICS, ConditionEvaluator
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.workspace import PriorRuns, Workspace
from imagepriors.reports.figures import bars_figure, picture_grid

_COLUMNS, _ROWS = 4, 4


def shards(workspace: Workspace) -> tuple[ShardKind, ...]:
    """The shards of the dataset."""
    return ("shards",)


def names(workspace: Workspace) -> tuple[str, ...]:
    """Conditions that the shards have."""
    classes = ShardDataset.open(workspace.shards()).class_names
    return (*(("class",) if len(classes) > 1 else ()), *workspace.conditions())


def run_folder(workspace: Workspace, name: str) -> Path:
    """Run folder of the prior of a condition."""
    return workspace.out("conditional") / name


def priors(workspace: Workspace, wanted: Sequence[str] = ()) -> PriorRuns:
    """A prior per condition; other experiments use some of them."""
    found = [name for name in names(workspace) if name in wanted or not wanted]
    return {run_folder(workspace, name): (workspace.prior_config(condition=name), workspace.shards()) for name in found}


def run(workspace: Workspace) -> None:
    """Draw samples from each prior, and measure how well they follow their conditions."""
    shards, config = workspace.shards(), workspace.evaluation()
    dataset = ShardDataset.open(shards)
    parts = {
        name: RunConfig.load(run_folder(workspace, name) / CONFIG).sequence.conditions[0] for name in names(workspace)
    }
    if not parts:
        text = (
            f"{workspace.config.dataset} has one class and none of the preset's conditions: there is nothing to follow."
        )
        workspace.save("conditional", text, {"agreement": {}}, {})
        return
    evaluator = ConditionEvaluator(dataset, list(parts.values()), config)
    figures: dict[str, dict[str, float]] = {}
    pictures: dict[str, Figure | Image.Image] = {}
    sentences = []
    for name in parts:
        folder = run_folder(workspace, name)
        samples = draw_samples(folder, shards, config.n, config=workspace.sampling(batch_size=64), sources=False)
        found = evaluator.evaluate(name, samples.pictures, samples.conditions[name])
        figures[name] = found
        sentences.append(
            f"{name} ({METRICS[name]}) {'; '.join(f'{value:.2f}' for value in _bounds(found, name).values())}"
        )
        shown = draw_samples(folder, shards, _COLUMNS * _ROWS, config=workspace.sampling(), per_condition=_COLUMNS)
        scale = max(1, 64 // shown.pictures.shape[1])
        pictures[name] = (
            class_grid(dataset, shown, scale) if name == "class" else sample_grid(shown, _COLUMNS, scale=scale)
        )
    classes = f"; classes: {', '.join(dataset.class_names[:_ROWS])}" if "class" in figures else ""
    text = (
        f"Agreement of {config.n} samples with their conditions, as predicted by a small network that is trained on "
        "decoded training codes (samples; the same samples with shuffled conditions; decoded validation pictures): "
        f"{'; '.join(sentences)}. One picture per condition, with rows of: the condition (a class has no picture), an "
        f"original, four samples{classes}."
    )
    bars = {f"{name}\n{METRICS[name]}": _bounds(found, name) for name, found in figures.items()}
    pictures = {"agreement": bars_figure(bars, "agreement with the condition"), **pictures}
    workspace.save("conditional", text, {"agreement": figures, "samples": config.n}, pictures)


def _bounds(found: dict[str, float], name: str) -> dict[str, float]:
    """The agreement of samples, of samples with shuffled conditions, and of real pictures."""
    return {kind: found.get(f"{name} {METRICS[name]}, {kind}", np.nan) for kind in ("samples", "shuffled", "real")}


def class_grid(dataset: ShardDataset, samples: Samples, scale: int) -> Image.Image:
    """One row per class: a decoded validation picture, or white if there is none, then its samples."""
    wanted = samples.conditions["class"][::_COLUMNS]
    labels, firsts = np.unique(read_rows(dataset, "val", ["label"], 0)["label"], return_index=True)
    rows = np.sort(firsts[np.isin(labels, wanted)])
    picture_of: dict[int, npt.NDArray[np.uint8]] = {}
    if len(rows):
        decoded, found = decode_rows(dataset, "val", rows, ["label"])
        picture_of = dict(zip(found["label"].tolist(), decoded, strict=True))
    white = np.full_like(samples.pictures[0], 255)
    tiles: list[npt.NDArray[np.uint8]] = []
    for label, first in zip(wanted.tolist(), range(0, len(samples.pictures), _COLUMNS), strict=True):
        tiles.append(picture_of.get(label, white))
        tiles += list(samples.pictures[first : first + _COLUMNS])
    return picture_grid(np.stack(tiles), _COLUMNS + 1, scale=scale)
