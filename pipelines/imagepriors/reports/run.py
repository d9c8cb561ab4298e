"""One self-contained HTML page about a run: data, reconstructions, codebook, curves, orders, samples."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codeprior.checkpoint import RunConfig
from codeprior.config import SampleConfig
from codeshards.format import ShardDataset, ShardError
from codeshards.format.files import read_json
from imagepriors.decode.draw import draw_samples
from imagepriors.decode.rows import decode_rows, read_rows
from imagepriors.decode.samples import sample_grid
from imagepriors.reports.figures import colorize, curves_figure, orders_figure, picture_grid, png_bytes, usage_figure
from imagepriors.reports.page import render_page
from runkit.folders import check_apart, check_publish, publish
from runkit.jsonfiles import parse_json
from vqgan.checkpoint import load_config
from vqgan.config import ModelConfig
from vqgan.data import Split, open_splits, resolve, sources_of, spread
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_SHOWN = 12


def write_report(run: Path, data: Path, dataset: str) -> Path:
    """Write RUN/report/report.html and its PNGs; sections without inputs are omitted.

    Raises:
        ShardError: the run has no finished shards.
    """
    out = run / "report"
    shards = ShardDataset.open(run / "shards")
    splits = open_splits(dataset, data)
    dataset = resolve(dataset, data)
    check_apart(out, data=sources_of(splits, data))
    check_publish(out, ["report.html"], "report")
    priors = sorted(path.parent for path in run.glob("prior-*/summary.json"))
    sections = [
        _data_section(splits["train"], run),
        _reconstruction_section(splits["val"], data, run, shards),
        *_curve_sections(run, priors),
        _orders_section(shards),
        *(_sample_section(prior, run, shards) for prior in priors),
    ]
    page = render_page(f"imagepriors: {dataset}", _facts(run, shards, priors), sections)
    files = {name: png for section in sections for name, png in section["files"].items()}
    publish(out, {**files, "report.html": page}, "report", last="report.html")
    return out / "report.html"


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return read_json(path) if path.is_file() else {}


def _facts(run: Path, shards: ShardDataset, priors: list[Path]) -> list[tuple[str, str]]:
    tokenizer = _summary(run / "tokenizer")
    facts = []
    if tokenizer:
        facts.append(("validation PSNR", f"{tokenizer['val_psnr_db']:.2f} dB"))
        facts.append(("codebook usage", f"{100 * tokenizer['val_usage']:.0f}%"))
    facts.append(("rows of codes", " + ".join(f"{shards.rows(name):,} {name}" for name in shards.splits)))
    for prior in priors:
        figures = _summary(prior)
        nll = figures.get("val_nll_nats")  # missing for an imported prior
        if nll is not None:
            below = 100 * (1 - nll / figures["unigram_entropy_nats"])
            facts.append((prior.name, f"{nll:.3f} nats per code, {below:.0f}% below the unigram entropy"))
    return facts


def _data_section(split: Split, run: Path) -> dict[str, Any]:
    net, names = _tokenizer(run), split.conditions
    samples = [
        split.read_good(i, net.resolution, conditions=names, geometry=net.geometry) for i in spread(len(split), _SHOWN)
    ]
    rows = [np.stack([sample.image for sample in samples])]
    rows += [colorize(np.stack([sample.picture(name) for sample in samples])) for name in names]
    scale = max(1, 96 // net.resolution)
    grid = picture_grid(np.concatenate(rows), len(samples), scale=scale)
    text = "Training pictures" + (f" and their conditions: {', '.join(names)}." if names else ".")
    return {"title": "Data", "text": text, "files": {"data.png": png_bytes(grid)}}


def _tokenizer(run: Path) -> ModelConfig:
    """Configuration of the run's image tokenizer."""
    return load_config(run / "shards" / "tokenizer").model


def _reconstruction_section(split: Split, data: Path, run: Path, shards: ShardDataset) -> dict[str, Any]:
    """Validation pictures and their reconstructions from the codes in the shards."""
    whole = np.flatnonzero(read_rows(shards, "val", ["view"], 0)["view"] == 0)
    if not len(whole):
        raise ShardError(f"{run / 'shards'} has no validation rows to show")
    decoded, batch = decode_rows(shards, "val", whole[spread(len(whole), _SHOWN)], ["key"])
    index_of = {key: index for index, key in enumerate(split.keys)}
    if missing := [key for key in batch["key"] if key not in index_of]:
        raise ShardError(
            f"{missing[0]!r} of {run / 'shards'} is not a picture of {data}: pass the shards' --dataset and --data"
        )
    originals = [_original(split, index_of[key], _tokenizer(run)) for key in batch["key"]]
    tiles = np.concatenate([np.stack(originals), decoded])
    above = picture_grid(tiles, len(originals), scale=max(1, 96 // tiles.shape[1]))
    files = {"reconstructions.png": png_bytes(above)}
    summary = _summary(run / "tokenizer")
    if summary:
        files["codebook.png"] = png_bytes(usage_figure(summary["code_counts"]))
    grid = shards.spec.image
    text = f"Validation pictures above, their reconstructions from {grid.height}×{grid.width} codes below."
    return {"title": "Reconstructions and codebook", "text": text, "files": files}


def _original(split: Split, index: int, net: ModelConfig) -> npt.NDArray[np.uint8]:
    """A picture in the tokenizer's input format; grey if it cannot be read any more."""
    size = net.resolution
    try:
        return split.read(index, size, geometry=net.geometry).image
    except InputError as error:
        log.warning("skipped: %s", error)
        return np.full((size, size, 3), 128, np.uint8)


def _curve_sections(run: Path, priors: list[Path]) -> list[dict[str, Any]]:
    sections = []
    stages = {
        "stage1": ("Stage 1: loss", sorted(path.parent for path in run.glob("tokenizer*/metrics.jsonl")), ("loss",)),
        "stage2": ("Stage 2: negative log-likelihood", priors, ("train_nll_nats", "val_nll_nats")),
    }
    for stage, (title, folders, fields) in stages.items():
        curves = {f"{folder.name} {field}": curve(folder, field) for folder in folders for field in fields}
        curves = {name: points for name, points in curves.items() if points[0]}
        if curves:
            unit = "loss" if stage == "stage1" else "nats per code"
            sections.append(
                {"title": title, "text": "", "files": {f"{stage}.png": png_bytes(curves_figure(curves, unit))}}
            )
    return sections


def curve(folder: Path, field: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric in a run's metrics.jsonl; empty without this file."""
    file = folder / "metrics.jsonl"  # missing for an imported network
    lines = [parse_json(line, file) for line in file.read_text().splitlines()] if file.is_file() else []
    points = [(line["step"], line[field]) for line in lines if field in line]
    return [step for step, _ in points], [value for _, value in points]


def _orders_section(shards: ShardDataset) -> dict[str, Any]:
    grid = shards.spec.image
    figure = orders_figure(shards.spec.orders, grid.height, grid.width)
    text = "Position of the t-th code: the orders in which a prior may generate a picture."
    return {"title": "Orders", "text": text, "files": {"orders.png": png_bytes(figure)}}


def _sample_section(prior: Path, run: Path, shards: ShardDataset) -> dict[str, Any]:
    sequence = RunConfig.load(prior / "config.json").sequence
    condition, columns = sequence.condition, 8
    per_condition, n, text = 1, 32, ""
    if condition == "class":
        classes = min(sequence.conditions[0].vocabulary, 10)
        per_condition, n = columns, columns * classes
        names = shards.class_names[:classes] or tuple(str(i) for i in range(classes))
        text = f"One class per row: {', '.join(names)}."
    elif condition != "none":
        per_condition, columns, n = 4, 4, 24
        text = f"{condition} | its original picture | four samples."
    samples = draw_samples(prior, run / "shards", n, config=SampleConfig(batch_size=64), per_condition=per_condition)
    files = {f"samples-{prior.name}.png": png_bytes(sample_grid(samples, columns))}
    return {"title": f"Samples: {prior.name}", "text": text, "files": files}
