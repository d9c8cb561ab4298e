"""How time and memory grow: `imagepriors bench scaling`.

The driver: all that it does for ten million synthetic samples but the encoding itself (planning, finding what is made
already, committing), and handing out 100 to 100,000 shards to workers that do nothing. The job over workers, the loader
over rows, a training step over the length of its sequences. Each measurement is a process of its own.
"""

import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from codeprior.config import ModelConfig, SequenceSpec, TrainConfig
from codeprior.data import Batch
from codeprior.model import Prior
from codeprior.optim import make_autocast, make_optimizer, resolve_precision
from codeprior.trainer import SequenceLoss, train_step
from codeshards.config import TokenizeConfig
from codeshards.format import (
    FileRecord,
    GridSpec,
    Manifest,
    Plan,
    PlannedShard,
    ShardSpec,
    Sidecar,
    build_plan,
    sidecar_path,
)
from codeshards.job import EVENTS_FILE, tokenize
from codeshards.pool import ALLOCATOR, run_shards
from codeshards.progress import EventLog, read_events
from codeshards.resume import MissingShards, close_job, open_job
from imagepriors.benchmarks import harness, loader
from imagepriors.benchmarks.faults import make_inputs
from imagepriors.figures import save_figure

SAMPLES = 10_000_000
SHARDS = (100, 1_000, 10_000, 100_000)
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
GRIDS = ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64))
_IMAGES = 480
_SPEC = ShardSpec(image=GridSpec(height=16, width=16, codebook_size=1024, fingerprint="benchmark"))


class _Idle:
    """A worker that gives back what it gets."""

    def run(self, task: Any) -> Any:
        return task


def plan_of(samples: int, shards: int) -> Plan:
    """A shuffled plan of synthetic keys, shaped like ImageNet's."""
    return build_plan(
        samples={"train": [f"n{i % 1000:08d}/picture{i:010d}" for i in range(samples)]},
        source_hashes={"train": "benchmark"},
        settings={},
        views=1,
        shard_rows=-(-samples // shards),
        shuffle_seed=0,
    )


def memory_mb(key: str = "VmRSS") -> float:
    """Resident memory of this process in MB; VmHWM is the most it has been."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def plan(folder: Path, samples: int, shards: int) -> dict[str, float]:
    """Seconds to plan, to start, to resume with every shard made, and to commit; memory at its highest."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    made = timed("plan_s", lambda: plan_of(samples, shards))
    missing: MissingShards = timed("open_s", lambda: open_job(made, folder))
    with mock.patch("os.fsync"):  # what was made is no part of this
        for shard in missing:
            _pretend(shard, made.hash, folder)
    if left := len(timed("resume_s", lambda: open_job(made, folder))):
        raise RuntimeError(f"{left} of {shards} made shards are to be made again")
    timed("commit_s", lambda: Manifest.build(plan=made, sidecars=close_job(made, folder, 0), spec=_SPEC).save(folder))
    return {**seconds, "peak_mb": memory_mb("VmHWM")}


def _pretend(shard: PlannedShard, plan_hash: str, folder: Path) -> None:
    """An empty shard and its sidecar."""
    name = f"{shard.name}.parquet"
    Sidecar(
        plan_hash=plan_hash,
        split=shard.split,
        index=shard.index,
        rows=shard.samples,
        samples=shard.samples,
        files={name: FileRecord(hashlib.sha256().hexdigest(), 0)},
    ).save(sidecar_path(folder, shard))
    (folder / shard.split / name).touch()


def hand_out(folder: Path, samples: int, shards: int) -> dict[str, float]:
    """Seconds and the driver's memory while workers take shards and give them back."""
    made = plan_of(samples, shards)
    missing = open_job(made, folder)
    before_mb, start = memory_mb(), time.perf_counter()
    run_shards(
        missing, lambda shard: shard, _Idle, (), name="scaling", device="cpu", workers=2, threads=1, decode_threads=1,
        max_attempts=1, shards_at_once=2, events=EventLog(folder / "events.jsonl"),
    )  # fmt: skip
    return {"seconds": time.perf_counter() - start, "before_mb": before_mb, "peak_mb": memory_mb("VmHWM")}


def job(work: Path, workers: int) -> dict[str, float]:
    """Images/s of small pictures by a small tokenizer, one core a worker, once every worker has done a shard."""
    config = TokenizeConfig(
        batch_size=16, shard_rows=_IMAGES // 24, threads=1, decode_threads=1, workers=workers, max_failure_rate=0.1
    )
    out = work / f"shards-{workers}"
    tokenize(config, dataset="folder", data=work / "data", tokenizers={"image": work / "tokenizer"}, out=out)
    done = [event for event in read_events(out / EVENTS_FILE) if event["event"] == "shard_done"]
    images = sum(event["samples"] for event in done[workers:])
    return {"images_per_s": images / (done[-1]["time_s"] - done[workers - 1]["time_s"])}


def length(height: int, width: int) -> dict[str, float]:
    """Seconds of a training step of a small prior on one sequence."""
    place = torch.device(harness.device())
    sequence = SequenceSpec(height=height, width=width, codebook_size=1024, order="row_major", fingerprint="none")
    prior = Prior(ModelConfig(n_layer=4, n_head=4, n_embd=256), sequence).to(place)
    loss, optimizer = SequenceLoss(prior), make_optimizer(prior, TrainConfig())
    codes_BT = torch.randint(1024, (1, sequence.length))
    batch = Batch(condition_BC=torch.zeros(1, 1, dtype=torch.int64), codes_BT=codes_BT).to(place)
    autocast = make_autocast(place, resolve_precision(TrainConfig(), place))
    times = [
        harness.seconds(
            lambda: train_step(loss, optimizer, [batch], learning_rate=1e-4, grad_clip=1.0, autocast=autocast)
        )
        for _ in range(6)
    ]
    return {"seconds": harness.median(times[2:]), "peak_gib": harness.peak_gib()}


PARTS = {"plan": (plan, SAMPLES), "hand_out": (hand_out, 1_000_000)}
Rounds = Sequence[Mapping[Any, Mapping[str, float]]]


def run(repeats: int = 3, *, out: Path = harness.RESULTS) -> str:
    """Measure one round of the driver and `repeats` of the rest, write the reports, and return them as Markdown."""
    driver = [
        {
            (part, shards): harness.spawn("scaling", part, str(shards))
            for part in PARTS
            for shards in tqdm(SHARDS, f"bench scaling: {part}", disable=None)
        }
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_inputs(work, _IMAGES)
        counts = range(1, (os.cpu_count() or 1) + 1)
        workers = []
        for number in tqdm(range(repeats), "bench scaling: workers", disable=None):
            make = work / f"round-{number}"
            make.mkdir()
            for name in ("data", "tokenizer"):
                (make / name).symlink_to(work / name)
            workers.append({count: harness.spawn("scaling", "job", str(make), str(count)) for count in counts})
    lengths = [
        {h * w: harness.spawn("scaling", "length", str(h), str(w), env=ALLOCATOR) for h, w in GRIDS}
        for _ in tqdm(range(repeats), "bench scaling: lengths", disable=None)
    ]
    rows = _loader_rounds(repeats)
    suffix = "cpu" if harness.device() == "cpu" else "gpu"
    save_figure(_figure(driver, workers, rows, lengths), out / f"scaling-{suffix}.png")
    reports = (_driver_report(driver, out), _workers_report(workers, out), _loader_report(rows, out))
    return "\n".join((*reports, _length_report(lengths, out)))


def _loader_rounds(repeats: int) -> list[dict[int, dict[str, float]]]:
    rounds: list[dict[int, dict[str, float]]] = [{} for _ in range(repeats)]
    for count in tqdm(ROWS, "bench scaling: rows", disable=None):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "shards"
            loader.write_shards(place, count, side=8)
            harness.spawn("loader", "memory_map", str(place), "0")  # decodes the column
            for found in rounds:
                found[count] = harness.spawn("loader", "memory_map", str(place), "0")
    return rounds


def _median(rounds: Rounds, what: Any, figure: str) -> float:
    return harness.median([found[what][figure] for found in rounds])


def growth(x: Sequence[float], y: Sequence[float]) -> str:
    """The exponent k of y ∝ x^k that fits best, in words."""
    return f"n^{np.polyfit(np.log(x), np.log(y), 1)[0]:.2f}"


def _driver_report(rounds: Rounds, out: Path) -> str:
    rows = []
    for shards in SHARDS:
        planned, handed = ("plan", shards), ("hand_out", shards)
        seconds = [_median(rounds, planned, name) for name in ("plan_s", "open_s", "resume_s", "commit_s")]
        rows.append(
            [
                f"{shards:,}", *(f"{value:.1f}" for value in seconds), f"{_median(rounds, planned, 'peak_mb'):,.0f}",
                f"{shards / _median(rounds, handed, 'seconds'):,.0f}", f"{_median(rounds, handed, 'peak_mb'):,.0f}",
            ]
        )  # fmt: skip
    most = SHARDS[-1]
    text = (
        f"The driver's own work for {SAMPLES:,} samples ({PARTS['hand_out'][1]:,} while handing out), local disk, one "
        "round. Memory: resident at its highest, the synthetic list of keys included. Resume: every shard is made, and "
        f"looked at; it grows as {growth(SHARDS, [_median(rounds, ('plan', n), 'resume_s') for n in SHARDS])}."
    )
    columns = [
        "shards", "plan, s", "start, s", "resume, s", "commit, s", "peak MB", "handed out, shards/s", "peak MB then",
    ]  # fmt: skip
    figures = [{f"{part} {shards}": value for (part, shards), value in found.items()} for found in rounds]
    resumed = _median(rounds, ("plan", most), "resume_s")
    return harness.save(
        out, "scaling-driver", command="imagepriors bench scaling", text=text, columns=columns, rows=rows,
        figures=figures, packages=("pyarrow", "ray"),
        headlines={f"seconds to resume a plan of 10 million samples in {most:,} shards": f"{resumed:.1f} s"},
    )  # fmt: skip


def _workers_report(rounds: Rounds, out: Path) -> str:
    counts = list(rounds[0])
    one = [found[1]["images_per_s"] for found in rounds]
    speedups = {n: harness.ratio([found[n]["images_per_s"] for found in rounds], one) for n in counts}
    rows = [[str(n), f"{_median(rounds, n, 'images_per_s'):.0f}", speedups[n]] for n in counts]
    text = (
        f"The tokenize job over workers of one core each: {_IMAGES} pictures of 64×64 by a small tokenizer, local Ray, "
        f"{len(rounds)} rounds. The driver and Ray take their part of the same cores."
    )
    return harness.save(
        out, "scaling-workers", command="imagepriors bench scaling", text=text,
        columns=["workers", "images/s", "× one worker"], rows=rows, figures=list(rounds), packages=("torch", "ray"),
        headlines={f"tokenize job, {counts[-1]} workers over one": speedups[counts[-1]]},
    )  # fmt: skip


def _loader_report(rounds: Rounds, out: Path) -> str:
    rows = [
        [
            f"{n:,}", f"{_median(rounds, n, 'm_codes_per_s'):.0f}", f"{1e3 * _median(rounds, n, 'first_s'):.0f}",
            f"{1024 * _median(rounds, n, 'peak_gib'):,.0f}",
        ]
        for n in ROWS
    ]  # fmt: skip
    exponent = growth(ROWS, [1 / _median(rounds, n, "m_codes_per_s") for n in ROWS])
    text = (
        f"The memory-mapped loader over rows of 64 codes, batch 256, one core, column decoded before, {len(rounds)} "
        f"rounds. The time of a batch grows as {exponent} of the rows. Memory: touched pages of the map included."
    )
    return harness.save(
        out, "scaling-loader", command="imagepriors bench scaling", text=text,
        columns=["rows", "M codes/s", "first batch, ms", "peak MiB"], rows=rows, figures=list(rounds),
        headlines={}, packages=("torch", "numpy"),
    )  # fmt: skip


def _length_report(rounds: Rounds, out: Path) -> str:
    tokens = list(rounds[0])
    seconds = [_median(rounds, n, "seconds") for n in tokens]
    rows = [
        [f"{n:,}", f"{1e3 * s:.0f}", f"{n / s:,.0f}", f"{_median(rounds, n, 'peak_gib'):.2f}"]
        for n, s in zip(tokens, seconds, strict=True)
    ]
    text = (
        f"A training step of a prior of 4 layers, width 256, on one sequence, {len(rounds)} rounds. Its time grows as "
        f"{growth(tokens, seconds)} of the length."
    )
    return harness.save(
        out, "scaling-length", command="imagepriors bench scaling", text=text,
        columns=["tokens", "ms a step", "tokens/s", "peak GiB"], rows=rows, figures=list(rounds), headlines={},
    )  # fmt: skip


def _figure(driver: Rounds, workers: Rounds, rows: Rounds, lengths: Rounds) -> Figure:
    figure = Figure(figsize=(12, 3), layout="constrained")
    panels = figure.subplots(1, 4)
    for name in ("plan_s", "resume_s", "commit_s"):
        panels[0].loglog(SHARDS, [_median(driver, ("plan", n), name) for n in SHARDS], marker="o", label=name[:-2])
    panels[0].set(xlabel="shards of 10 million samples", ylabel="s", title="driver")
    panels[0].legend(frameon=False)
    for axes, rounds, name, labels in (
        (panels[1], workers, "images_per_s", ("workers", "images/s", "tokenize job")),
        (panels[2], rows, "m_codes_per_s", ("rows", "M codes/s", "loader")),
        (panels[3], lengths, "seconds", ("tokens", "s a step", "training")),
    ):
        x = list(rounds[0])
        axes.plot(x, [_median(rounds, n, name) for n in x], marker="o")
        axes.set(xlabel=labels[0], ylabel=labels[1], title=labels[2], ylim=(0, None))
    panels[1].set_xticks(list(workers[0]))
    panels[2].set_xscale("log")
    panels[3].set(xscale="log", yscale="log", ylim=(None, None))
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def _contend(arguments: list[str]) -> dict[str, float]:
    """What one process measures."""
    if arguments[0] == "job":
        return job(Path(arguments[1]), int(arguments[2]))
    if arguments[0] == "length":
        return length(int(arguments[1]), int(arguments[2]))
    measure, total = PARTS[arguments[0]]
    with tempfile.TemporaryDirectory() as place:
        return measure(Path(place), total, int(arguments[1]))


if __name__ == "__main__":
    harness.answer(lambda: _contend(sys.argv[1:]))
