"""Growth of time and memory: `python -m priorbench scaling`.

Four reports: the tokenize driver by shards, the job by workers, the loader by rows, and a training step by sequence
length. Contenders are sizes, and each measurement is a separate process. Growth is the slope of a straight line through
the medians on logarithmic axes.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from imagepriors.reports.figures import png_bytes
from priorbench import harness, processes
from runkit.machine import ALLOCATOR, usable_cores
from vqgan.checkpoint import save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN

SAMPLES, HANDED_OUT = 10_000_000, 1_000_000
SHARDS = (100, 1_000, 10_000, 100_000)
IMAGES_PER_CORE, SHARD_ROWS = 160, 8
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
READ_SECONDS = 3.0
LENGTHS = (256, 512, 1024, 2048, 4096)
BATCH, STEPS = 1, 3
# The geometry of the paper's tokenizer, narrow: tens of milliseconds an image.
TOKENIZER = ModelConfig(ch=16, ch_mult=(1, 2, 2, 4, 8), num_res_blocks=1, z_channels=64, embed_dim=32)
RoundsBySize = dict[int, harness.Rounds]
"""Size → rounds."""


def run(repeats: int, *, out: Path = harness.RESULTS) -> str:
    """Measure, write four reports and a figure of them, and return the reports as Markdown."""
    reports: dict[str, RoundsBySize] = {}

    def keep(name: str, text: Callable[[RoundsBySize], str], packages: Sequence[str]) -> Callable[[RoundsBySize], str]:
        def report(found: RoundsBySize) -> str:
            reports[name] = found
            return harness.save(
                out, f"scaling-{name}", TABLES[name](found), command=harness.command("scaling", repeats),
                text=text(found), figures=found, packages=packages,
            )  # fmt: skip

        return report

    markdown = (
        _driver(min(repeats, 2), keep("driver", _driver_text, ("ray", "pyarrow"))),
        _workers(min(repeats, 2), keep("workers", _workers_text, ("torch", "ray"))),
        _loader(repeats, keep("loader", _loader_text, ("torch", "numpy", "pyarrow"))),
        _length(repeats, keep("length", _length_text, ("torch",))),
    )
    harness.result_path(out, "scaling", ".png").write_bytes(png_bytes(_figure(reports)))
    return "\n".join(markdown)


def growth(values: Mapping[int, float]) -> float:
    """Exponent of a power law of a figure over the size, fitted by least squares over logarithms."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def _part(name: str, env: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, float]:
    found: dict[str, float] = processes.spawn("scaling_parts", name, json.dumps(arguments, default=str), env=env)
    return found


def _driver(repeats: int, report: Callable[[RoundsBySize], str]) -> str:
    def part(shards: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            planned = _part("plan", folder=f"{folder}/plan", samples=SAMPLES, shards=shards)
            handed = _part("hand_out", folder=f"{folder}/hand-out", samples=HANDED_OUT, shards=shards)
        return {**planned, **handed}

    return harness.run_rounds("bench scaling, driver", SHARDS, part, report, repeats)


def _workers(repeats: int, report: Callable[[RoundsBySize], str]) -> str:
    cores = usable_cores()
    counts = sorted({cores, *(2**power for power in range(cores.bit_length()))})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = sorted(harness.photos(work / "photos", min(64, IMAGES_PER_CORE)).rglob("*.jpg"))
        (work / "data" / "train").mkdir(parents=True)
        for number in range(IMAGES_PER_CORE * cores):
            (work / "data" / "train" / f"{number:06d}.jpg").symlink_to(photos[number % len(photos)])
        torch.manual_seed(0)
        save_model(
            work / "tokenizer", TrainConfig(model=TOKENIZER, loss=LossConfig(perceptual="none")), VQGAN(TOKENIZER)
        )
        return harness.run_rounds(
            "bench scaling, workers",
            counts,
            lambda count: _part("workers", folder=work, count=count, shard_rows=SHARD_ROWS),
            report,
            repeats,
        )


def _loader(repeats: int, report: Callable[[RoundsBySize], str]) -> str:
    here = {"IMAGEPRIORS_CACHE": ""}  # decoded columns are stored beside the shards, and deleted with them

    def part(rows: int) -> dict[str, float]:
        place = Path(folder) / str(rows)
        made = {} if place.exists() else _part("make_rows", here, folder=place, rows=rows)
        return {**made, **_part("read_rows", here, folder=place, limit_s=READ_SECONDS)}

    with tempfile.TemporaryDirectory() as folder:
        return harness.run_rounds("bench scaling, loader", ROWS, part, report, repeats)


def _length(repeats: int, report: Callable[[RoundsBySize], str]) -> str:
    def part(length: int) -> dict[str, float]:
        return _part("train", ALLOCATOR, length=length, batch=BATCH, steps=STEPS)

    return harness.run_rounds("bench scaling, length", LENGTHS, part, report, repeats)


def _values(found: harness.Rounds, figure: str) -> list[float]:
    return [of_round[figure] for of_round in found if figure in of_round]


def _base(found: Mapping[Any, harness.Rounds], figure: str) -> list[float]:
    """A figure of the first size; empty if it failed."""
    first = next(iter(found.values()))
    return [] if harness.failure(first) else _values(first, figure)


def _medians(found: RoundsBySize, figure: str) -> dict[int, float]:
    return {size: harness.median(_values(of_one, figure)) for size, of_one in harness.finished(found).items()}


def _grows(found: RoundsBySize, names: Mapping[str, str]) -> str:
    """Describe growth as `planning as n^0.02, committing as n^0.91`; empty for less than two sizes."""
    if len(harness.finished(found)) < 2:
        return ""
    parts = [f"{what} as n^{growth(_medians(found, figure)):.2f}" for figure, what in names.items()]
    return f" Growth with n, fitted: {', '.join(parts)}."


def _rounds(found: RoundsBySize) -> str:
    return harness.rounds(max(map(len, found.values())))


def _table(
    columns: Sequence[str],
    found: Mapping[Any, harness.Rounds],
    cells: Callable[[int, harness.Rounds], Sequence[str]],
    headline: str = "",
    figure: str = "",
) -> harness.Table:
    """Table with a row per size; the headline is the ratio of a figure between the largest and the smallest."""
    sizes = {int(size): of_one for size, of_one in found.items()}  # keys of JSON objects are strings
    rows = [
        [f"{size:,}", *([failed] if (failed := harness.failure(of_one)) else cells(size, of_one))]
        for size, of_one in sizes.items()
    ]
    live = harness.finished(sizes)
    headlines = {}
    if headline and len(live) > 1:
        least, most = min(live), max(live)
        over = harness.ratio(_values(live[most], figure), _values(live[least], figure))
        headlines[headline.format(most=most, least=least)] = over
    return harness.table_of(columns, rows, headlines)


_SECONDS = {
    "plan_s": "planning", "open_s": "starting", "resume_s": "resuming", "commit_s": "committing",
    "hand_out_s": "handing out",
}  # fmt: skip


def driver_table(found: Mapping[Any, harness.Rounds]) -> harness.Table:
    """Table of seconds and memory by shards."""

    def cells(shards: int, of_one: harness.Rounds) -> list[str]:
        m = {figure: harness.median(_values(of_one, figure)) for figure in of_one[0]}
        return [
            *(f"{m[name]:.2g}" for name in _SECONDS if name != "hand_out_s"), f"{m['mib']:,.0f}",
            f"{shards / m['hand_out_s']:,.0f}", f"{m['hand_out_mib']:,.0f}",
        ]  # fmt: skip

    columns = [
        "shards", "plan, s", "start, s", "resume, s", "commit, s", "MiB", "handed out, shards/s",
        "MiB while handing out",
    ]  # fmt: skip
    return _table(columns, found, cells)


def _driver_text(found: RoundsBySize) -> str:
    return (
        f"The tokenize driver's own work for {SAMPLES:,} samples ({HANDED_OUT:,} while handing out shards to two idle "
        f"workers, from the first ready worker on), local disk, {_rounds(found)}. Memory: peak resident set above "
        "that of the idle process; synthetic keys are made while they are read. Resume: all shards exist and are "
        f"checked.{_grows(found, _SECONDS)}"
    )


def workers_table(found: Mapping[Any, harness.Rounds]) -> harness.Table:
    """Images/s over workers."""
    alone = _base(found, "images_per_s")

    def cells(count: int, of_one: harness.Rounds) -> list[str]:
        rates, flops = _values(of_one, "images_per_s"), of_one[0]["flops"]
        floor = harness.best_floor([of_one])
        over = [harness.ratio(rates, [times * one for one in alone]) if alone else "" for times in (1, count)]
        return [
            f"{harness.median(rates):.3g}", *over, f"{flops * harness.median(rates) / floor:.0%}",
            f"{harness.median(_values(of_one, 'images_per_s_with_start')):.3g}",
        ]  # fmt: skip

    columns = ["workers", "images/s", "× one worker", "efficiency", "of matmul speed", "images/s with start"]
    return _table(columns, found, cells, "the tokenize job, {most} workers over one", "images_per_s")


def _workers_text(found: RoundsBySize) -> str:
    return (
        f"`tokenize` from {IMAGES_PER_CORE * max(found)} JPEG files of 500×375 to shards of {SHARD_ROWS} rows, a "
        f"narrow f16 tokenizer at {TOKENIZER.resolution}×{TOKENIZER.resolution}, one torch thread and one decoding "
        f"thread per worker, on the CPU, {_rounds(found)}. Measured from the first shard after all workers are ready "
        "to the last; with start: the whole job, including Ray. Of matmul speed: the network's FLOPs over those of a "
        f"large product on as many cores.{_grows(found, {'images_per_s': 'images/s'})}"
    )


def loader_table(found: Mapping[Any, harness.Rounds]) -> harness.Table:
    """Table of codes/s, start-up seconds and memory by rows."""
    base = _base(found, "m_codes_per_s")

    def cells(_: int, of_one: harness.Rounds) -> list[str]:
        m = {figure: harness.median(_values(of_one, figure)) for figure in of_one[0]}
        return [
            f"{m['m_codes_per_s']:.3g}", f"{8e6 * m['m_codes_per_s'] / m['copy']:.0%}",
            harness.ratio(_values(of_one, "m_codes_per_s"), base) if base else "",
            f"{m['first_s']:.2g}", f"{m['decode_s']:.2g}", f"{m['mib']:,.0f}",
        ]  # fmt: skip

    columns = [
        "rows",
        "M codes/s",
        "of a copy's speed",
        f"× {int(next(iter(found))):,} rows",
        "first batch, s",
        "first opening ever, s",
        "MiB",
    ]
    headline = "loading shuffled codes, codes/s with {most:,} rows over {least:,}"
    return _table(columns, found, cells, headline, "m_codes_per_s")


def _loader_text(found: RoundsBySize) -> str:
    names = {"first_s": "the first batch", "decode_s": "the first opening ever", "m_codes_per_s": "codes/s"}
    return (
        "Batches of 256 random rows of 64 codes as int64 tensors from the memory map, exact shuffle, one core, page "
        f"cache warm, {_rounds(found)}. Of a copy's speed: bytes of the tensors over those of a large copy. Shards "
        "are hard links to one file. First batch: at a later start, including the epoch's permutation of all rows; "
        "first opening ever: including decoding. Memory: peak resident set above that before opening, including "
        f"pages of the mapped file.{_grows(found, names)}"
    )


def length_table(found: Mapping[Any, harness.Rounds]) -> harness.Table:
    """Table of seconds, share of a large product and memory by sequence length."""
    floor = harness.best_floor(found.values())

    def cells(_: int, of_one: harness.Rounds) -> list[str]:
        m = {figure: harness.median(_values(of_one, figure)) for figure in of_one[0]}
        return [
            f"{m['step_s']:.3g}", f"{m['tokens_per_s']:,.0f}", f"{m['flops'] / m['step_s'] / floor:.2f}",
            f"{m['gib']:.2g}",
        ]  # fmt: skip

    return _table(["codes", "s/step", "tokens/s", "share of a large product", "GiB"], found, cells)


def _length_text(found: RoundsBySize) -> str:
    return (
        f"A training step of a prior of 4 layers, 4 heads and width 256 on a batch of {BATCH}, {_rounds(found)} of "
        f"{STEPS} steps. Share: FLOPs over those of a large product in the same precision, the fastest of all "
        "processes of the run; allocator settings of imagepriors; attention is counted without its causal mask. "
        f"Memory: peak above that before the model is created.{_grows(found, {'step_s': 'time', 'gib': 'memory'})}"
    )


TABLES: dict[str, Callable[[Mapping[Any, harness.Rounds]], harness.Table]] = {
    "driver": driver_table, "workers": workers_table, "loader": loader_table, "length": length_table,
}  # fmt: skip
"""Report → function from figures, also if read from JSON, to a table."""


def _figure(reports: Mapping[str, RoundsBySize]) -> Figure:
    """Plot one panel per report; all axes but that of images/s are logarithmic."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    panels = {
        "driver": ("driver", "shards", "s", _SECONDS),
        "workers": ("tokenize job", "workers", "images/s", {"images_per_s": "images/s"}),
        "loader": ("loader", "rows", "",
                   {"m_codes_per_s": "M codes/s", "first_s": "first batch, s", "decode_s": "first opening ever, s"}),
        "length": ("training step", "codes in a sequence", "s", {"step_s": "s/step"}),
    }  # fmt: skip
    for axes, (report, panel) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        (title, xlabel, ylabel, names), found = panel, harness.finished(reports[report])
        for name, label in names.items():
            values = _medians(found, name)
            slope = f", n^{growth(values):.2f}" if len(values) > 1 else ""
            axes.plot(list(values), list(values.values()), marker="o", markersize=3, label=f"{label}{slope}")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
        if report == "workers" and 1 in found:
            alone = _medians(found, "images_per_s")[1]
            axes.plot(list(found), [count * alone for count in found], linestyle=":", color="grey", label="n times one")
            axes.set(yscale="linear", ylim=(0, None))
        if report in ("workers", "length"):
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(found), [str(size) for size in found])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure
