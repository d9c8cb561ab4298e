"""The part of a run's page about one prior: samples, their conditions, and how they are drawn.

Axes: N samples, T codes of a sequence, H × W the code grid.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeprior.checkpoint import load_prior
from codeprior.config import SequenceSpec
from codeprior.sample import to_grids
from codeprior.sample_config import SampleConfig
from imagepriors.decode.draw import DrawnCodes, decode_condition, draw_codes, load_prior_tokenizer
from imagepriors.decode.partial import decode_partial
from imagepriors.reports.cards import blend_text
from imagepriors.reports.charts import Chart, Curve, curve, line_chart
from imagepriors.reports.figures import Pixels, colorize
from imagepriors.reports.page import Picture, embed, embed_frames
from imagepriors.reports.run_codes import decode_beginning
from imagepriors.reports.run_folder import RunFolder, summary
from runkit.devices import pick_device
from vqgan.tokenizer import Tokenizer

_CLASSES = 10
_ROWS = 6
"""Rows of pictures of a prior without classes, and maximum number of rows whose first sample is animated."""
_COLUMNS = {"class": 8, "none": 8}
"""Samples per row; those of other conditions have 4, because a row begins and ends with another picture."""


def prior_part(run: RunFolder, folder: Path) -> dict[str, Any]:
    """Samples of a prior in rows, one condition per row, and its figures."""
    prior = load_prior(folder, device=pick_device("auto"))
    sequence = prior.sequence
    assert run.shards is not None  # a prior is listed only beside its shards
    shards = run.path / "shards"
    tokenizer = run.tokenizer
    if sequence.fingerprint != tokenizer.fingerprint:
        tokenizer = load_prior_tokenizer(folder, shards, sequence)
    columns = _COLUMNS.get(sequence.condition, 4)
    rows = min(_CLASSES, sequence.conditions[0].vocabulary) if sequence.condition == "class" else _ROWS
    drawn = draw_codes(
        prior, folder, shards, rows * columns, config=SampleConfig(batch_size=64), per_condition=columns, frames=True
    )
    return {
        "name": folder.name, "label": folder.name.removeprefix("prior-"),
        "condition": sequence.condition, "length": sequence.length,
        "order": sequence.order if sequence.objective == "ordered" else "",
        "rows": _rows(sequence, tokenizer, shards, drawn, columns, sequence.class_names or run.class_names),
        "blend": blend_text(summary(folder)),
        "nll": _likelihood(folder, sequence), "cells": _by_position(folder, sequence),
    }  # fmt: skip


def _rows(
    sequence: SequenceSpec,
    tokenizer: Tokenizer,
    shards: Path,
    drawn: DrawnCodes,
    columns: int,
    class_names: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Rows of samples; the first sample of each of the first rows also as an animation."""
    pictures = colorize(tokenizer.decode(drawn.codes_NHW))
    animations = _animations(sequence, tokenizer, drawn, columns)
    hints, originals = _given(sequence, tokenizer, shards, drawn)
    rows = []
    for number, first in enumerate(range(0, len(pictures), columns)):
        classes = drawn.conditions.get("class")
        label = _name(int(classes[first]), class_names) if classes is not None else ""
        what = label or (f"{sequence.condition} {number + 1}" if hints is not None else "no condition")
        tiles = [embed(pixels, f"sample, {what}") for pixels in pictures[first : first + columns]]
        animation = None
        if number < len(animations):
            animation, tiles = embed_frames(animations[number], f"sample, {what}, code by code"), tiles[1:]
        rows.append({
            "label": label, "animation": animation, "tiles": tiles,
            "hint": None if hints is None else embed(hints[number], f"{sequence.condition} {number + 1}"),
            "original": None if originals is None else embed(originals[number], f"real picture of {what}"),
        })  # fmt: skip
    return rows


def _name(label: int, class_names: tuple[str, ...]) -> str:
    return class_names[label] if label < len(class_names) else f"class {label}"


def _animations(sequence: SequenceSpec, tokenizer: Tokenizer, drawn: DrawnCodes, columns: int) -> list[list[Pixels]]:
    """Frames of the first sample of each row: decoded beginnings of its sequence of codes, or its codes after steps."""
    codes_NT = drawn.steps[-1][::columns][:_ROWS]
    count = min(sequence.length, max(8, min(12, 1024 // tokenizer.config.resolution)))
    if sequence.objective == "ordered":
        lengths = [math.ceil(sequence.length * (i + 1) / count) for i in range(count)]
        frames = [decode_beginning(tokenizer, sequence, codes_NT[:, :length]) for length in lengths]
    else:  # each sample is drawn in an order of its own
        steps = [drawn.steps[math.ceil(len(drawn.steps) * (i + 1) / count) - 1] for i in range(count)]
        frames = [decode_partial(tokenizer, sequence, step[::columns][:_ROWS]) for step in steps]
    return [[frame[row] for frame in frames] for row in range(len(codes_NT))]


def _given(
    sequence: SequenceSpec, tokenizer: Tokenizer, shards: Path, drawn: DrawnCodes
) -> tuple[Pixels | None, Pixels | None]:
    """The picture condition of each row, and the validation picture that it is from; None without such a condition."""
    if drawn.rows_AT is None:
        return None, None
    codes_AHW = to_grids(sequence, torch.from_numpy(drawn.rows_AT))[-1].numpy()
    return decode_condition(sequence, shards, drawn.row_conditions), colorize(tokenizer.decode(codes_AHW))


def _likelihood(folder: Path, sequence: SequenceSpec) -> dict[str, Any] | None:
    """Validation likelihood beside its scale; None for an imported prior."""
    figures = summary(folder)
    if figures.get("val_nll_nats") is None:
        return None
    nll, unigram, uniform = figures["val_nll_nats"], figures["unigram_entropy_nats"], math.log(sequence.codebook_size)
    return {
        "nats": nll, "unigram": unigram, "uniform": uniform, "below": 100 * (1 - nll / unigram) if unigram else 0.0,
        "choices": math.exp(nll), "unigram_choices": math.exp(unigram), "codes": sequence.codebook_size,
    }  # fmt: skip


def _by_position(folder: Path, sequence: SequenceSpec) -> dict[str, Any] | None:
    """The likelihood at each cell of the full grid as a picture, dark where the prior is sure."""
    nats_T = np.array(summary(folder).get("val_nll_nats_by_position") or [])
    if len(nats_T) != sequence.length:
        return None
    grid = sequence.height, sequence.width
    cells_HW = np.empty(math.prod(grid))
    cells_HW[sequence.permutation(*grid)] = nats_T[-math.prod(grid) :]
    low, high = float(cells_HW.min()), float(cells_HW.max())
    level = ((cells_HW - low) / max(high - low, 1e-9)).reshape(*grid, 1)
    sure, unsure = np.array([24, 32, 64]), np.array([255, 190, 92])
    pixels = (sure + level * (unsure - sure)).astype(np.uint8)
    return {"picture": embed(pixels, f"uncertainty per cell, {low:.2f} to {high:.2f} nats"), "low": low, "high": high}


def likelihood_chart(run: RunFolder) -> Chart | None:
    """Training and validation curves of all priors with the unigram entropy; None without curves."""
    curves: dict[str, Curve] = {}
    colours, marks, validation = {}, {}, set[str]()
    for number, folder in enumerate(run.priors):
        for field, name in (("train_nll_nats", "training"), ("val_nll_nats", "validation")):
            points = curve(folder, field)
            if points[0]:
                label = f"{folder.name.removeprefix('prior-')}, {name}"
                curves[label], colours[label] = points, number
                validation |= {label} if field == "val_nll_nats" else set()
        if entropy := summary(folder).get("unigram_entropy_nats"):
            marks = {"unigram entropy": entropy}
    return line_chart("nats per code", curves, marks=marks, colours=colours, dotted=validation)


def few_samples(part: dict[str, Any]) -> list[Picture]:
    """Finished samples for the overview: four of different rows, or one if there are fewer rows."""
    found = [tile for row in part["rows"] for tile in row["tiles"][:1]]
    return found[:4] if len(found) >= 4 else found[:1]
