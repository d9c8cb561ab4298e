"""How time and memory grow: `imagepriors bench scaling`.

Four reports: the tokenize driver over shards, the job over workers, the loader over rows, and a training step over the
length of its sequences. A measurement is a process of its own; growth is the slope of a straight line through the
medians, both axes logarithmic.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from codeshards.pool import ALLOCATOR, usable_cores
from imagepriors.benchmarks import harness
from imagepriors.figures import save_figure
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
_COMMAND = "imagepriors bench scaling"
Rounds = dict[int, dict[str, list[float]]]
"""Size → figure → its value in every round."""


def run(repeats: int, *, out: Path = harness.RESULTS) -> str:
    """Measure, write four reports and a figure of them, and return the reports as Markdown."""
    few = min(repeats, 2)
    driver, job = _driver(few), _workers(few)
    loader = _loader(repeats)
    length = _measure(
        "length", repeats, LENGTHS, lambda size: _part("train", ALLOCATOR, length=size, batch=BATCH, steps=STEPS)
    )
    save_figure(_figure(driver, job, loader, length), harness.result_path(out, "scaling", ".png"))
    return "\n".join((
        _report_driver(driver, out), _report_workers(job, out), _report_loader(loader, out), _report_length(length, out)
    ))  # fmt: skip


def growth(values: Mapping[int, float]) -> float:
    """The power of the size that a figure grows with, fitted by least squares over logarithms."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def _part(name: str, env: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, float]:
    found: dict[str, float] = harness.spawn("scaling_parts", name, json.dumps(arguments, default=str), env=env)
    return found


def _measure(name: str, repeats: int, sizes: Sequence[int], part: Callable[[int], Mapping[str, float]]) -> Rounds:
    """All sizes in turn, `repeats` rounds."""
    found: Rounds = {size: {} for size in sizes}
    turns = [size for _ in range(repeats) for size in sizes]
    for size in tqdm(turns, desc=f"bench scaling, {name}", disable=None):
        for figure, value in part(size).items():
            found[size].setdefault(figure, []).append(value)
    return found


def _driver(repeats: int) -> Rounds:
    def part(shards: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            planned = _part("plan", folder=f"{folder}/plan", samples=SAMPLES, shards=shards)
            handed = _part("hand_out", folder=f"{folder}/hand-out", samples=HANDED_OUT, shards=shards)
        return {**planned, **handed}

    return _measure("driver", repeats, SHARDS, part)


def _workers(repeats: int) -> Rounds:
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
        return _measure(
            "workers", repeats, counts, lambda count: _part("workers", folder=work, count=count, shard_rows=SHARD_ROWS)
        )


def _loader(repeats: int) -> Rounds:
    here = {"IMAGEPRIORS_CACHE": ""}  # decoded columns lie beside the shards, and go with them
    with tempfile.TemporaryDirectory() as folder:
        opened = {rows: _part("make_rows", here, folder=f"{folder}/{rows}", rows=rows)["decode_s"] for rows in ROWS}
        found = _measure(
            "loader",
            repeats,
            ROWS,
            lambda rows: _part("read_rows", here, folder=f"{folder}/{rows}", limit_s=READ_SECONDS),
        )
    return {rows: {**figures, "decode_s": [opened[rows]]} for rows, figures in found.items()}


def _medians(found: Rounds, figure: str) -> dict[int, float]:
    return {size: harness.median(figures[figure]) for size, figures in found.items()}


def _grows(found: Rounds, names: Mapping[str, str]) -> str:
    """Figure → what it is called, as `planning grows as n^0.02, committing as n^0.91`."""
    parts = [f"{what} as n^{growth(_medians(found, figure)):.2f}" for figure, what in names.items()]
    return f"Growth with n, fitted: {', '.join(parts)}."


def _save(out: Path, name: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]], found: Rounds,
          headlines: Mapping[str, str], packages: Sequence[str] = ("torch",)) -> str:  # fmt: skip
    return harness.save(
        out, f"scaling-{name}", command=_COMMAND, text=text, columns=columns, rows=rows, figures=found,
        headlines=headlines, packages=packages,
    )  # fmt: skip


_SECONDS = {
    "plan_s": "planning", "open_s": "starting", "resume_s": "resuming", "commit_s": "committing",
    "hand_out_s": "handing out",
}  # fmt: skip


def _report_driver(found: Rounds, out: Path) -> str:
    rounds = len(found[SHARDS[0]]["plan_s"])
    rows = []
    for shards, figures in found.items():
        m = {figure: harness.median(values) for figure, values in figures.items()}
        rows.append([
            f"{shards:,}", *(f"{m[name]:.2g}" for name in _SECONDS if name != "hand_out_s"), f"{m['mib']:,.0f}",
            f"{shards / m['hand_out_s']:,.0f}", f"{m['hand_out_mib']:,.0f}",
        ])  # fmt: skip
    text = (
        f"The tokenize driver's own work for {SAMPLES:,} samples ({HANDED_OUT:,} while handing out to two workers that "
        f"do nothing), local disk, {rounds} rounds. Memory: the resident set at its highest, over that of the idle "
        "process; the synthetic list of keys is in it. Resume: every shard is made, and looked at. "
        f"{_grows(found, _SECONDS)}"
    )
    columns = [
        "shards", "plan, s", "start, s", "resume, s", "commit, s", "MiB", "handed out, shards/s", "MiB then",
    ]  # fmt: skip
    return _save(out, "driver", text, columns, rows, found, {}, ("ray", "pyarrow"))


def _report_workers(found: Rounds, out: Path) -> str:
    alone = found[1]["images_per_s"]
    rows = []
    for count, figures in found.items():
        rates = figures["images_per_s"]
        rows.append([
            str(count), f"{harness.median(rates):.3g}", harness.ratio(rates, alone),
            harness.ratio(rates, [count * one for one in alone]),
            f"{harness.median(figures['images_per_s_with_start']):.3g}",
        ])  # fmt: skip
    most = max(found)
    grows = _grows(found, {"images_per_s": "images/s"}) if most > 1 else ""
    text = (
        f"`tokenize` from {IMAGES_PER_CORE * most} JPEG files of 500×375 to shards of {SHARD_ROWS} rows, a narrow f16 "
        f"tokenizer at {TOKENIZER.resolution}×{TOKENIZER.resolution}, one torch thread and one decoding thread a "
        f"worker, on the CPU, {len(alone)} rounds. From the first shard that is done once all workers are ready to the "
        f"last; with start: all of it, Ray's included. {grows}"
    )
    headlines = {f"the tokenize job, {most} workers over one": harness.ratio(found[most]["images_per_s"], alone)}
    columns = ["workers", "images/s", "× one worker", "efficiency", "images/s with start"]
    return _save(out, "workers", text, columns, rows, found, headlines if most > 1 else {}, ("torch", "ray"))


def _report_loader(found: Rounds, out: Path) -> str:
    least, most = min(found), max(found)
    names = {"first_s": "the first batch", "decode_s": "the first opening ever", "m_codes_per_s": "codes/s"}
    rows = [
        [f"{size:,}", f"{harness.median(figures['m_codes_per_s']):.3g}",
         harness.ratio(figures["m_codes_per_s"], found[least]["m_codes_per_s"]),
         f"{harness.median(figures['first_s']):.2g}", f"{figures['decode_s'][0]:.2g}",
         f"{harness.median(figures['mib']):,.0f}"]
        for size, figures in found.items()
    ]  # fmt: skip
    text = (
        "Batches of 256 random rows of 64 codes as int64 tensors from the memory map, exact shuffle, one core, page "
        f"cache warm, {len(found[least]['first_s'])} rounds; all sizes through the real decoding, whose shards are one "
        "file under many names. First batch: a later start, the epoch's permutation of all rows included; first "
        "opening ever: once, with decoding. Memory: the resident set at its highest, over that before opening; the "
        f"mapped file's pages count. {_grows(found, names)}"
    )
    headlines = {
        f"loading shuffled codes, codes/s with {most:,} rows over {least:,}": harness.ratio(
            found[most]["m_codes_per_s"], found[least]["m_codes_per_s"]
        )
    }
    columns = ["rows", "M codes/s", f"× {least:,} rows", "first batch, s", "first opening ever, s", "MiB"]
    return _save(out, "loader", text, columns, rows, found, headlines, ("torch", "numpy", "pyarrow"))


def _report_length(found: Rounds, out: Path) -> str:
    rows = []
    for length, figures in found.items():
        m = {figure: harness.median(values) for figure, values in figures.items()}
        shares = [limit / step for limit, step in zip(figures["limit_s"], figures["step_s"], strict=True)]
        rows.append([
            f"{length:,}", f"{m['step_s']:.3g}", f"{m['tokens_per_s']:,.0f}", f"{harness.median(shares):.2f}",
            f"{m['peak_gib']:.2g}",
        ])  # fmt: skip
    text = (
        f"A training step of a prior of 4 layers, 4 heads and width 256 on a batch of {BATCH}, "
        f"{len(found[LENGTHS[0]]['step_s'])} rounds of {STEPS} steps. Share: FLOPs over those of a large product in "
        "the same process; our allocator settings; attention's causal half is counted in full. "
        f"{_grows(found, {'step_s': 'time', 'peak_gib': 'memory'})}"
    )
    columns = ["codes", "s/step", "tokens/s", "share of a large product", "peak GiB"]
    return _save(out, "length", text, columns, rows, found, {})


def _figure(driver: Rounds, job: Rounds, loader: Rounds, length: Rounds) -> Figure:
    """A panel for each report; axes are logarithmic but for the job's images/s."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    panels = [
        ("driver", "shards", "s", driver, _SECONDS),
        ("tokenize job", "workers", "images/s", job, {"images_per_s": "images/s"}),
        ("loader", "rows", "", loader,
         {"m_codes_per_s": "M codes/s", "first_s": "first batch, s", "decode_s": "first opening ever, s"}),
        ("training step", "codes in a sequence", "s", length, {"step_s": "s/step"}),
    ]  # fmt: skip
    for axes, (title, xlabel, ylabel, found, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, label in names.items():
            values = _medians(found, name)
            slope = f", n^{growth(values):.2f}" if len(values) > 1 else ""
            axes.plot(list(values), list(values.values()), marker="o", markersize=3, label=f"{label}{slope}")
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
        if found is job:
            alone = harness.median(job[1]["images_per_s"])
            axes.plot(list(job), [count * alone for count in job], linestyle=":", color="grey", label="n times one")
            axes.set(yscale="linear", ylim=(0, None))
        if found is job or found is length:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(found), [str(size) for size in found])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure
