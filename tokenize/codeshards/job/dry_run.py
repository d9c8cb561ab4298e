"""What a tokenize job would do: its plan, its sizes, its memory and its time. Nothing is written, and no Ray starts."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from codeshards.config import TokenizeConfig
from codeshards.format.contents import check_deletable, has_plan
from codeshards.format.errors import ShardError
from codeshards.format.parquet import parquet_bytes
from codeshards.format.plan import Plan, PlannedShard
from codeshards.format.schema import ShardSpec
from codeshards.format.tar import tar_bytes
from codeshards.job.encode import Rows, ShardTask, WorkerResources, encode_rows
from codeshards.job.resume import missing_shards
from codeshards.job.tokenize import device_of, make_plan, open_inputs
from runkit.machine import usable_cores
from runkit.places import Where
from runkit.plans import TRIAL_S, WorkPlan, changed_settings
from vqgan.data import Split
from vqgan.tokenizer import Tokenizer

_BATCHES = 2
"""Batches that a trial encodes to measure, after one that warms up."""


def plan_tokenize(
    config: TokenizeConfig,
    *,
    dataset: str,
    data: Path,
    tokenizers: Mapping[str, Path],
    out: Where,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> WorkPlan:
    """Return what :func:`codeshards.job.tokenize.tokenize` would do; it finds the same errors, and writes nothing.

    Raises:
        UserError: As the job.
    """
    inputs = open_inputs(config, dataset, data, tokenizers, out)
    plan, spec = make_plan(config, inputs, tokenizers, overwrite=overwrite)
    store, splits = inputs.store, inputs.splits
    if overwrite:
        deleted, missing = len(check_deletable(store)), list(plan.each_shard())
    else:
        started = has_plan(plan, store)
        missing = list(missing_shards(plan, store, retry_failed=retry_failed) if started else plan.each_shard())
        deleted = 0
    samples = sum(shard.samples for shard in missing)
    workers = min(max(1, len(missing)), config.workers or _workers(config))
    figures = {
        "dataset": inputs.dataset, "splits": {name: len(split) for name, split in splits.items()},
        **({"left_out": dict(inputs.left_out)} if config.where else {}),
        "rows": sum(map(len, splits.values())) * config.views, "shards": sum(map(plan.shard_count, plan.splits)),
        "shards_to_make": len(missing), "images_to_encode": samples, "files_to_delete": deleted,
        "columns": len(spec.orders) + len(spec.scales) + len(spec.conditions) + len(spec.carried),
        "workers": workers, "device": device_of(config),
    }  # fmt: skip
    notes = []
    if missing:
        figures |= _trial(config, spec, plan, splits, tokenizers, missing, workers)
        notes.append("time is that of a trial in this process, divided among the workers, without the start of Ray")
        notes.append("bytes follow from the codes of the trial; more rows compress better or worse")
    work = f"make {len(missing):,} shards in {store}" if missing else f"{store} is complete: nothing to do"
    return WorkPlan(work=work, figures=figures, notes=tuple(notes), settings=changed_settings(config))


def _workers(config: TokenizeConfig) -> int:
    if device_of(config) == "cuda":
        return torch.cuda.device_count() * config.workers_per_gpu
    return max(1, usable_cores() // config.threads)


def _trial(
    config: TokenizeConfig,
    spec: ShardSpec,
    plan: Plan,
    splits: Mapping[str, Split],
    tokenizers: Mapping[str, Path],
    missing: list[PlannedShard],
    workers: int,
) -> dict[str, float]:
    """Sizes, memory and time of the missing shards, from the first samples of the first one."""
    threads, first = torch.get_num_threads(), missing[0]
    loaded = {
        name: Tokenizer.load(folder, device=device_of(config), precision=config.precision)
        for name, folder in tokenizers.items()
    }
    resources = WorkerResources(config.decode_threads or max(2, usable_cores() // workers))

    def encode(start: int, count: int) -> tuple[Rows, float]:
        indices = plan.sample_indices(first)[start : start + count]
        task = ShardTask(shard=first, plan_hash=plan.hash, samples=splits[first.split].subset(indices))
        begin_s = time.perf_counter()
        rows = encode_rows(task, loaded, spec, config, resources)
        return rows, time.perf_counter() - begin_s

    try:
        batch = min(config.batch_samples, first.samples)
        rows, seconds = encode(0, batch)
        if seconds < TRIAL_S and first.samples > batch:
            rows, seconds = encode(batch, min(_BATCHES * batch, first.samples - batch))
    finally:
        torch.set_num_threads(threads)
        resources.decode_pool.shutdown()
    if not rows.keys:
        raise ShardError(f"none of the first samples can be encoded (the first: {rows.failures[0].reason})")
    count, samples = len(rows.keys) // config.views, sum(shard.samples for shard in missing)
    fixed, per_row = _bytes(rows, spec, config)
    sharing = config.workers_per_gpu if device_of(config) == "cuda" else 1
    images_per_s = count / seconds * -(-workers // sharing)  # workers that share a GPU share its speed
    memory = torch.cuda.max_memory_allocated() if device_of(config) == "cuda" else 0
    return {
        "images_per_s": round(images_per_s, 1), "time_s": samples / images_per_s,
        "shards_bytes": round(len(missing) * fixed + samples * config.views * per_row),
        "memory_per_worker_bytes": memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def _bytes(rows: Rows, spec: ShardSpec, config: TokenizeConfig) -> tuple[float, float]:
    """Bytes of a shard without rows, and of each row, of the files in all formats."""
    table = rows.to_table(spec)
    writers = {"parquet": parquet_bytes, "webdataset": tar_bytes}
    half = table.num_rows // 2
    whole, part = (
        sum(memoryview(writers[name](piece)).nbytes for name in config.formats) for piece in (table, table[:half])
    )
    per_row = (whole - part) / (table.num_rows - half)
    return max(0.0, whole - per_row * table.num_rows), per_row
