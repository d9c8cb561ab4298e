"""Measurements of the scaling suite, each in a separate process: `python -m priorbench.scaling_parts`."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from codeprior.speed import measured_flops, resolve_precision
from codeshards.config import TokenizeConfig
from codeshards.format import GridSpec, Manifest, Plan, ShardSpec, Sidecar, build_plan
from codeshards.format.contents import EVENTS_FILE, save_dataset
from codeshards.format.files import FileRecord
from codeshards.format.manifest import ShardEntry, SplitEntry, sidecar_path
from codeshards.format.plan import PlannedShard
from codeshards.format.shardfile import write_shard
from codeshards.job.progress import EventLog, read_events
from codeshards.job.resume import MissingShards, close_job, open_job
from codeshards.job.scheduler import run_shards
from codeshards.job.tokenize import tokenize
from priorbench import harness, loader, processes, train_prior
from priorbench.shards import skewed_codes
from vqgan.tokenizer import Tokenizer

_SPEC = ShardSpec(image=GridSpec(height=16, width=16, codebook_size=1024, fingerprint="benchmark"))
_SIDE = 8
"""Side of the code grids that the loader reads: with 64 codes, ten million rows are 1.3 GB."""
_FILE_ROWS = 50_000


class _Keys(Sequence[str]):
    """Keys like those of ImageNet, made when they are read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: Any) -> Any:
        start, stop, _ = part.indices(self._count)
        return [f"n{i % 1000:08d}/picture{i:010d}" for i in range(start, stop)]


class _Idle:
    """A worker that returns its task."""

    def run(self, task: Any) -> Any:
        return task


def _mib_over(before_gib: float) -> float:
    """Peak memory of this process above `before_gib`, in MiB."""
    return (harness.resident_gib() - before_gib) * 1024


def plan_of(samples: int, shards: int) -> Plan:
    """A shuffled plan of synthetic keys like those of ImageNet."""
    return build_plan(
        samples={"train": _Keys(samples)},
        source_hashes={"train": "benchmark"},
        settings={},
        views=1,
        shard_rows=-(-samples // shards),
        shuffle_seed=0,
    )


def plan(folder: Path, samples: int, shards: int) -> dict[str, float]:
    """Seconds to plan, to start, to resume with all shards finished, and to commit; peak memory."""
    seconds: dict[str, float] = {}
    before_gib = harness.resident_gib("VmRSS")

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    made = timed("plan_s", lambda: plan_of(samples, shards))
    missing: MissingShards = timed("open_s", lambda: open_job(made, folder))
    with mock.patch("os.fsync"):  # writing the shards is not measured
        for shard in missing:
            _pretend(shard, made.hash, folder)
    if left := len(timed("resume_s", lambda: open_job(made, folder))):
        raise RuntimeError(f"{left} of {shards} made shards are to be made again")
    timed(
        "commit_s",
        lambda: save_dataset(Manifest.build(plan=made, sidecars=close_job(made, folder, 0), spec=_SPEC), folder),
    )
    return {**seconds, "mib": _mib_over(before_gib)}


def _pretend(shard: PlannedShard, plan_hash: str, folder: Path) -> None:
    """Write an empty shard and its sidecar."""
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
    """Seconds and the driver's memory while idle workers process shards, from the first ready worker on."""
    before_gib = harness.resident_gib("VmRSS")
    missing, log = open_job(plan_of(samples, shards), folder), folder / EVENTS_FILE
    run_shards(
        missing, lambda shard: shard, _Idle, (), name="scaling", device="cpu",
        settings=TokenizeConfig(workers=2, threads=1, decode_threads=1, max_attempts=1), shards_at_once=2,
        events=EventLog(log),
    )  # fmt: skip
    mib, events = _mib_over(before_gib), read_events(log)
    ready_s, done_s = (
        [event["time_s"] for event in events if event["event"] == kind] for kind in ("worker_ready", "shard_done")
    )
    return {"hand_out_s": done_s[-1] - ready_s[0], "hand_out_mib": mib}


def workers(folder: Path, count: int, shard_rows: int) -> dict[str, float]:
    """Images/s of the job with `count` workers of one thread, from `folder`/data by `folder`/tokenizer.

    Timed from the first shard that is finished after all workers are ready to the last; with the start: the whole job.
    Also the FLOPs of an image, and FLOPs per second of a large product on as many cores.
    """
    config = TokenizeConfig(
        shard_rows=shard_rows, batch_size=8, threads=1, decode_threads=1, workers=count, device="cpu",
        precision="float32",
    )  # fmt: skip
    out = folder / f"shards-{count}"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    tokenize(config, dataset="folder", data=folder / "data", tokenizers={"image": folder / "tokenizer"}, out=out)
    seconds = time.perf_counter() - start
    events = read_events(out / EVENTS_FILE)
    ready_s = max(event["time_s"] for event in events if event["event"] == "worker_ready")
    done = [event for event in events if event["event"] == "shard_done"]
    timed = [event for event in done if event["time_s"] > ready_s]
    if len(timed) < 2:
        raise RuntimeError(f"{len(done)} shards are too few for {count} workers: all were done before the last began")
    network = Tokenizer.load(folder / "tokenizer", device="cpu", precision="float32")
    pictures = [np.zeros((network.config.resolution, network.config.resolution, 3), np.uint8)] * config.batch_size
    with FlopCounterMode(display=False) as counter:
        network.encode(pictures)
    torch.set_num_threads(count)
    return {
        "images_per_s": sum(event["samples"] for event in timed[1:]) / (timed[-1]["time_s"] - timed[0]["time_s"]),
        "images_per_s_with_start": sum(event["samples"] for event in done) / seconds,
        "flops": counter.get_total_flops() / len(pictures),
        "floor": measured_flops("cpu", "float32"),
    }


def make_rows(folder: Path, rows: int) -> dict[str, float]:
    """Write a dataset whose shards are hard links to one file, and measure the seconds of its first opening."""
    count = min(rows, _FILE_ROWS)
    grid = GridSpec(height=_SIDE, width=_SIDE, codebook_size=1024, fingerprint="benchmark")
    spec = ShardSpec(image=grid, orders=("row_major",))
    table = spec.rows_to_table([f"row{i:07d}" for i in range(count)], np.zeros(count), None, skewed_codes(count, _SIDE))
    first = PlannedShard(split="train", index=0, start=0, stop=count)
    ((name, record),) = write_shard(folder, first, table).items()
    shards = [ShardEntry(name=first.name, rows=count, files={name: record})]
    for index in range(1, rows // count):
        shard = PlannedShard(split="train", index=index, start=index * count, stop=(index + 1) * count)
        os.link(folder / "train" / name, folder / "train" / f"{shard.name}.parquet")
        shards.append(ShardEntry(name=shard.name, rows=count, files={f"{shard.name}.parquet": record}))
    total = count * len(shards)
    split = SplitEntry(rows=total, samples=total, failures=0, shards=tuple(shards))
    Manifest(spec=spec, plan_hash="benchmark", splits={"train": split}).save(folder)
    return {"decode_s": harness.seconds(lambda: next(loader.read_ours(folder, 0)))}


def read_rows(folder: Path, limit_s: float) -> dict[str, float]:
    """Read random batches of a dataset that was opened before, on one core: M codes/s, seconds to the first, memory.

    Also the bytes per second of a large copy.
    """
    harness.pin(1)
    torch.set_num_threads(1)
    before_gib, start = harness.resident_gib("VmRSS"), time.perf_counter()
    batches = loader.read_ours(folder, 0)
    next(batches)
    first_s = time.perf_counter() - start
    counted, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < limit_s:
        counted += next(batches).numel()
    mib = _mib_over(before_gib)
    return {"m_codes_per_s": counted / spent / 1e6, "first_s": first_s, "mib": mib, "copy": harness.copy_floor()}


def train(length: int, batch: int, steps: int) -> dict[str, float]:
    """Measure a training step of a small prior on `length` codes: seconds (median of `steps`), FLOPs, memory.

    Memory is the peak above the memory before the model is created.
    """
    size = train_prior.Size(layers=4, heads=4, width=256, codes=length, batch=batch)
    torch.manual_seed(0)
    precision = resolve_precision("auto", torch.device(harness.device()))
    before_gib = 0.0 if harness.device() == "cuda" else harness.resident_gib("VmRSS")
    step = train_prior.ours(size, precision, compiled=False)
    for _ in range(2):
        step()
    step_s = harness.median([harness.seconds(step) for _ in range(steps)])
    gib = harness.peak_gib() - before_gib
    return {
        "step_s": step_s, "tokens_per_s": batch * length / step_s, "flops": train_prior.step_flops(size),
        "floor": harness.flops_floor(precision), "gib": gib,
    }  # fmt: skip


_PARTS: dict[str, Callable[..., dict[str, float]]] = {
    part.__name__: part for part in (plan, hand_out, workers, make_rows, read_rows, train)
}

if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    place = {"folder": Path(given.pop("folder"))} if "folder" in given else {}
    processes.write_answer(lambda: _PARTS[sys.argv[1]](**place, **given))
