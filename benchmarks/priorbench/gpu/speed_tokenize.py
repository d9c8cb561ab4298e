"""Speed of the data path: JPEG files to shards of codes, and shards to batches on the device.

Random weights of the f16/1024 tokenizer, photos of 500×375 pixels, five orders.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from codeprior.data import checked
from codeprior.speed import peak_flops
from codeshards.config import TokenizeConfig
from codeshards.job.encode import IMAGE, WorkerResources, read_ahead, task_maker
from codeshards.job.tokenize import Worker, make_plan, open_inputs
from priorbench import harness, loader, train_prior
from priorbench.gpu import networks
from priorbench.gpu.check import PHOTOS, Figure, Setup
from priorbench.gpu.memory import require_compiler
from priorbench.gpu.networks import own_arithmetic
from priorbench.processes import spawn, write_answer
from priorbench.shards import skewed_codes
from priorbench.tokenize import measure_job
from runkit.machine import ALLOCATOR, usable_cores
from vqgan.checkpoint import load_config, save_model
from vqgan.config import TrainConfig
from vqgan.data import Split, open_splits, views_of

_TARGET = 2500.0
"""Images/s: ImageNet-1k in 9 minutes."""
_MEDIUM = train_prior.Size(24, 16, 1024, 256, 1)
_LOADER_MARGIN = 2.0
"""How much faster than training a loader is, at least, so that it costs no step when the cores have other work."""
_MFU = 0.5
"""Share of the peak at which a training step would be fast."""

_PARTS = ("0", "1")
_MEETING_S = 60.0
"""Seconds that a process waits for the other one, which imports torch and warms up too."""


def tokenize(setup: Setup) -> Iterator[Figure]:
    """Measure the worker of the tokenize job with each resampler, and reading the photos alone."""
    model = load_config(make_tokenizer(setup)).model
    flops, peak = networks.encoder_flops(model, matching=False), peak_flops(setup.device, "bfloat16")
    splits = open_splits("folder", setup.work / PHOTOS)
    cores, rates, out = usable_cores(), [], setup.work / "tokenize-shards"
    for name in ("pillow", "torch"):
        for threads in (1, cores):
            rate = read_rate(splits["train"], model.resolution, name, threads, setup.pick(300, 4))
            yield Figure(f"{name}: reading alone, threads: {threads}", rate, "images/s")
        shutil.rmtree(out, ignore_errors=True)
        made = make_shards(setup, _config(setup, name, cores), out)
        rates.append(made.rate)
        yield Figure(f"{name}: files to shards", rates[-1], "images/s")
        yield Figure(f"{name}: the encoder's part of it", rates[-1] * flops / 1e12, "TFLOP/s")
        yield Figure(f"{name}: of the card's peak", rates[-1] * flops / peak, "%")
        yield Figure(f"{name}: shards waited for photos", made.waiting_s, "s")
        yield Figure(f"{name}: shards were encoded", made.encoding_s, "s")
        yield Figure(f"{name}: CPU time per photo", made.cpu_s / made.images * 1e3, "ms")
        yield Figure(f"{name}: photos without a row", missing_rows(splits, out), "", at_most=0)
    yield Figure("files to shards, the faster of both", max(rates), "images/s", at_least=_TARGET)


def tokenize_compiled(setup: Setup) -> Iterator[Figure]:
    """Measure the worker with a compiled encoder."""
    require_compiler(setup.device)
    model = load_config(make_tokenizer(setup)).model
    config, out = _config(setup, "pillow", usable_cores()), setup.work / "tokenize-compiled"
    made = make_shards(setup, dataclasses.replace(config, compile=True), out)
    yield Figure("pillow, compiled: files to shards", made.rate, "images/s", at_least=_TARGET)
    share = made.rate * networks.encoder_flops(model, matching=False) / peak_flops(setup.device, "bfloat16")
    yield Figure("pillow, compiled: of the card's peak", share, "%")
    yield Figure("photos without a row", missing_rows(open_splits("folder", setup.work / PHOTOS), out), "", at_most=0)


def tokenize_two(setup: Setup) -> Iterator[Figure]:
    """Measure two worker processes that share the device and the cores, as with `workers_per_gpu = 2`."""
    make_tokenizer(setup)
    with tempfile.TemporaryDirectory(dir=setup.work) as folder, ThreadPoolExecutor() as pool:
        out = Path(folder) / "shards"
        words = (setup.device.type, setup.size, str(setup.work), str(out))
        work = functools.partial(spawn, "gpu.speed_tokenize", *words, env=ALLOCATOR)
        found = [Made(*made) for made in pool.map(work, _PARTS)]
        seconds = max(made.end_s for made in found) - max(made.start_s for made in found)
        rate = sum(made.images for made in found) / seconds
        yield Figure("pillow: files to shards, two processes", rate, "images/s", at_least=_TARGET)
        lacking = missing_rows(open_splits("folder", setup.work / PHOTOS), out)
        yield Figure("photos without a row", lacking, "", at_most=0)


def tokenize_ray(setup: Setup) -> Iterator[Figure]:
    """Measure the tokenize job itself, from the end of its first shard."""
    out = setup.work / "tokenize-ray"
    found = measure_job(_config(setup, "pillow", usable_cores()), setup.work / PHOTOS, make_tokenizer(setup), out)
    yield Figure("files to shards", found["images_per_s"], "images/s", at_least=_TARGET)
    yield Figure("with the start of Ray", found["images_per_s_with_start"], "images/s")
    yield Figure("photos without a row", missing_rows(open_splits("folder", setup.work / PHOTOS), out), "", at_most=0)


def load(setup: Setup) -> Iterator[Figure]:
    """Measure shuffled batches of codes from shards to the device, as the trainer reads them."""
    folder, rows = setup.work / "load", setup.pick(loader.ROWS, 600)
    if not folder.exists():
        loader.write_ours(folder, skewed_codes(rows).reshape(rows, -1))
    batches = loader.open_ours(folder, setup.pick(256, 64))
    sequence, steps = batches.data.sequence, setup.pick(500, 5)

    def read(count: int = steps) -> None:
        for _ in range(count):
            checked(next(batches), sequence).to(setup.device)

    yield Figure("first batch", harness.seconds(functools.partial(read, 1)), "s")
    read()
    tokens = steps * batches.batch_size * sequence.length
    rate = tokens / harness.median_seconds(read, warm=0, repeats=3)
    per_token = train_prior.step_flops(_MEDIUM) / (_MEDIUM.batch * _MEDIUM.codes)
    needed = _MFU * peak_flops(setup.device, "bfloat16") / per_token
    yield Figure("files to batches on the device", rate, "tokens/s")
    yield Figure(f"GPT-2 medium at {_MFU:.0%} MFU takes", needed, "tokens/s")
    yield Figure("times as fast as it takes them", rate / needed, "×", at_least=_LOADER_MARGIN)


def make_tokenizer(setup: Setup) -> Path:
    """Return the folder of a random tokenizer, which is written if it is missing."""
    folder = setup.work / "tokenize-weights"
    if not folder.exists():
        save_model(folder, TrainConfig(model=networks.config(setup)), networks.network(setup))
    return folder


def _config(setup: Setup, resampler: str, decode_threads: int) -> TokenizeConfig:
    gpu = setup.device.type == "cuda"
    return TokenizeConfig(
        precision="bfloat16",
        device="cuda" if gpu else "cpu",
        resampler=resampler,  # type: ignore[arg-type]
        batch_size=setup.pick(128, 2),
        shard_rows=setup.pick(1024, 4),
        threads=2 if gpu else usable_cores(),
        decode_threads=max(1, decode_threads),
        workers=0 if gpu else 1,
    )


def read_rate(split: Split, size: int, resampler: str, threads: int, photos: int) -> float:
    """Images/s of reading this number of photos per thread, as the worker reads them."""
    pool, total = WorkerResources(threads).decode_pool, threads * photos

    def read(index: int) -> Any:
        return split.read_views(index % len(split), size, views_of(1), resampler=resampler)  # type: ignore[arg-type]

    def read_all(count: int) -> None:
        for _ in read_ahead(read, count, 8 * threads, pool):
            pass

    with own_arithmetic(), pool:
        read_all(threads)  # starts the threads
        start = time.perf_counter()
        read_all(total)
        return total / (time.perf_counter() - start)


class Made(NamedTuple):
    """What making shards took after the first one, in which a worker warms up."""

    images: int
    start_s: float
    end_s: float
    """Start and end on the clock that all processes of a machine share."""
    cpu_s: float
    """CPU time of all threads."""
    waiting_s: float
    """Seconds that shards waited for photos, some of them while another one was encoded."""
    encoding_s: float

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / (self.end_s - self.start_s)


def make_shards(
    setup: Setup,
    config: TokenizeConfig,
    out: Path,
    part: int = 0,
    parts: int = 1,
    ready: Callable[[], None] = lambda: None,
) -> Made:
    """Make every `parts`-th shard of all photos by the job's worker, after the first one two at once as Ray calls it.

    Args:
        setup: The setup.
        config: Settings of the job.
        out: Folder of the shards.
        part: Number of this part.
        parts: Number of parts.
        ready: Called after the first shard.
    """
    tokenizers = {IMAGE: make_tokenizer(setup)}
    inputs = open_inputs(config, "folder", setup.work / PHOTOS, tokenizers, out)
    plan, spec = make_plan(config, inputs, tokenizers, overwrite=False)
    task_of = task_maker(plan, inputs.splits)
    with own_arithmetic(), ThreadPoolExecutor(2) as pool:
        worker = Worker(config, spec, tokenizers, inputs.store, config.device)  # type: ignore[arg-type]
        first, *shards = map(task_of, plan.shards[part::parts])
        worker.run(first)
        ready()
        start_s, cpu_s = time.perf_counter(), time.process_time()
        sidecars = list(pool.map(worker.run, shards))
        end_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    waiting_s, encoding_s = (sum(one.durations_s[step] for one in sidecars) for step in ("decode_wait", "encode"))
    return Made(sum(one.rows for one in sidecars), start_s, end_s, cpu_s, waiting_s, encoding_s)


def _part(device: str, size: str, work: str, out: str, part: str) -> Made:
    """The work of one of two processes, which start to measure together."""
    setup = Setup(torch.device(device), size, Path(work))  # type: ignore[arg-type]

    def meet() -> None:
        Path(f"{out}.ready-{part}").touch()
        end_s = time.monotonic() + _MEETING_S
        while not all(Path(f"{out}.ready-{one}").exists() for one in _PARTS):
            if time.monotonic() > end_s:
                raise RuntimeError("the other process is not ready")
            time.sleep(0.01)

    config = _config(setup, "pillow", usable_cores() // len(_PARTS))
    return make_shards(setup, config, Path(out), int(part), len(_PARTS), meet)


def missing_rows(splits: Mapping[str, Split], out: Path) -> int:
    """Number of samples that have no row in the shards of a folder."""
    return sum(len(set(split.keys) - _keys(out / name)) for name, split in splits.items())


def _keys(folder: Path) -> set[str]:
    tables = (pq.read_table(path, columns=["key"]) for path in folder.glob("*.parquet"))
    return {key for table in tables for key in table["key"].to_pylist()}


if __name__ == "__main__":
    write_answer(lambda: _part(*sys.argv[1:]))
