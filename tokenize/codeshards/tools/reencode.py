"""Encode samples of a finished dataset again from their pixels, and compare with the codes in its shards."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codeshards.config import TokenizeConfig
from codeshards.format.dataset import ShardDataset
from codeshards.format.errors import ShardError
from codeshards.format.manifest import Manifest
from codeshards.format.plan import Plan, PlannedShard, load_plan
from codeshards.format.schema import column_to_numpy, row_key
from codeshards.format.shardfile import read_table
from codeshards.job.encode import IMAGE, ShardTask, encode_shard
from codeshards.job.tokenize import filtered
from runkit.places import Where, as_typed
from vqgan.data import Split, open_splits
from vqgan.tokenizer import Tokenizer

_OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencodeRates:
    """Fraction of codes that are equal after encoding again, for the picture and each scale and condition."""

    samples: int
    """Number of samples encoded again."""
    precision: str
    """Precision of the shards."""
    same: dict[str, float]
    """Column → fraction of equal codes in that precision."""
    other: dict[str, float]
    """Column → fraction of equal codes in the other precision: bfloat16 instead of float32 or vice versa."""


def reencode(dataset: Where, *, source: str, data: Path, samples: int, device: str = "auto") -> ReencodeRates:
    """Encode about `samples` samples again exactly as the job did, in whole batches spread over the shards.

    Args:
        dataset: A finished dataset with its tokenizers.
        source: Name of the reader of the source dataset.
        data: Folder of the source dataset.
        samples: Number of samples; whole batches are encoded, because rounding may depend on the batch.
        device: Device of the encoders; another device than the job's may round differently.

    Raises:
        ShardError: The source is not the one that the plan was made from, or the dataset was merged.
        InputError: The source or a tokenizer cannot be opened.
    """
    shards, plan = ShardDataset.open(dataset), load_plan(dataset)
    splits, carried = filtered(open_splits(source, data), plan.settings.get("where", "")), tuple(shards.spec.carried)
    config = _config(plan, shards.manifest, device)
    for split in plan.splits:
        if split not in splits or splits[split].source_hash(carried) != plan.source_hashes[split]:
            raise ShardError(
                f"{as_typed(data)} read as {source!r} is not what split {split!r} was made from: its files or settings "
                "differ"
            )
    per_shard, planned = config.batch_samples, plan.shards
    step = max(1, len(planned) * per_shard // max(samples, 1))
    chosen = planned[::step][: -(-samples // per_shard)]
    rates = []
    for precision in (config.precision, _OTHER[config.precision]):
        found = dataclasses.replace(config, precision=precision)  # type: ignore[arg-type]
        rates.append(_rates(shards, plan, splits, chosen, found))
    count = sum(min(per_shard, shard.samples) for shard in chosen)
    return ReencodeRates(samples=count, precision=config.precision, same=rates[0], other=rates[1])


def _config(plan: Plan, manifest: Manifest, device: str) -> TokenizeConfig:
    settings = plan.settings
    try:
        return TokenizeConfig(
            orders=manifest.spec.orders,
            scales=manifest.spec.scales,  # type: ignore[arg-type]
            scales_from=plan.scales_from,  # type: ignore[arg-type]
            views=plan.views,  # type: ignore[arg-type]
            device=device,  # type: ignore[arg-type]
            workers=1,
            **{name: settings[name] for name in ("draft", "batch_size", "precision", "compile", "threads")},
        )
    except KeyError as error:
        raise ShardError(f"the plan has no {error}: a merged dataset has no single source. Verify its parts") from error


def _rates(
    shards: ShardDataset,
    plan: Plan,
    splits: Mapping[str, Split],
    chosen: tuple[PlannedShard, ...],
    config: TokenizeConfig,
) -> dict[str, float]:
    spec, manifest = shards.spec, shards.manifest
    columns = [f"codes_{spec.orders[0]}", *(name for name in spec.code_grids if not name.startswith("codes_"))]
    equal, total = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
    tokenizers = {
        name: _load(shards, name, about, config)
        for name, about in {IMAGE: manifest.tokenizer, **manifest.conditions}.items()
    }
    for shard in chosen:
        part = dataclasses.replace(shard, stop=min(shard.stop, shard.start + config.batch_samples))
        with tempfile.TemporaryDirectory() as folder:
            task = ShardTask(shard=part, plan_hash="", samples=splits[shard.split].subset(plan.sample_indices(part)))
            sidecar = encode_shard(task, tokenizers=tokenizers, spec=spec, config=config, out=Path(folder))
            again = read_table(part.path(folder, ".parquet"), spec, sidecar.rows)
        keys = {row_key(key, view) for key in plan.sample_keys(part) for view in range(plan.views)}
        entry = manifest.splits[shard.split].shards[shard.index]
        stored = shards.table(shard.split, entry)
        stored = stored.filter([key in keys for key in stored["key"].to_pylist()])
        for name in columns:
            again_NL, stored_NL = (column_to_numpy(table[name].combine_chunks()) for table in (again, stored))
            if again["key"] == stored["key"]:
                equal[name] += int(np.count_nonzero(again_NL == stored_NL))
            total[name] += stored_NL.size  # rows that are missing in one of them count as different
    return {name: equal[name] / max(1, total[name]) for name in columns}


def _load(shards: ShardDataset, name: str, about: dict[str, Any], config: TokenizeConfig) -> Tokenizer:
    if "folder" not in about:
        raise ShardError(f"{shards.path} does not hold the {name} tokenizer: nothing can be encoded again")
    with (shards.path / about["folder"]).as_folder() as folder:
        return Tokenizer.load(folder, device=config.device, precision=config.precision, compiled=config.compile)
