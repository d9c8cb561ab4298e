"""Rewrite a finished dataset with its shards in other formats. Requires no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pyarrow as pa

from codeshards.format.added import failures_of, whole_plan
from codeshards.format.contents import save_dataset, save_or_match
from codeshards.format.dataset import ShardDataset
from codeshards.format.entries import ShardEntry
from codeshards.format.errors import ShardError
from codeshards.format.manifest import Manifest, Sidecar, finished_sidecar, sidecar_path
from codeshards.format.plan import Plan, PlannedShard, load_plan
from codeshards.format.shardfile import ShardFormat, check_formats, write_shard
from codeshards.job.resume import locked_store, remove_temps
from runkit.folders import check_apart
from runkit.places import Store, Where, open_store

_T = TypeVar("_T")


def convert(source: Where, out: Where, formats: Sequence[ShardFormat], *, splits: Sequence[str] = ()) -> Manifest:
    """Write a dataset again with its shards in other formats; converting back gives the same bytes.

    Columns that were added later are written into the shards, as by one job for all columns. Rows, plan (except its
    formats), failures and tokenizers stay the same. An interrupted conversion resumes.

    Args:
        source: A finished dataset.
        out: Folder or URL of the new one: empty, or the same conversion, unfinished.
        formats: Out of ``parquet`` and ``webdataset``.
        splits: Splits of the new dataset; none: all.

    Raises:
        UserError: `out` is, holds or is in the source, or another process uses it.
        ShardError: The source is damaged, or `out` holds something else.
        WriteError: `out` cannot be written.
    """
    check_apart(out, source=source)
    with locked_store(out, "shards-convert"):
        return _convert(source, out, formats, splits)


def _convert(source: Where, out: Where, formats: Sequence[ShardFormat], splits: Sequence[str]) -> Manifest:
    dataset, old = ShardDataset.open(source), load_plan(source)
    settings = whole_plan(old, dataset.manifest).settings
    plan = _only(dataclasses.replace(old, settings={**settings, "formats": list(check_formats(formats))}), splits)
    start_copy(plan, dataset.manifest, open_store(source), open_store(out))
    plan_hash, sidecars = plan.hash, list[Sidecar]()
    for shard, entry in planned_entries(old, dataset.manifest):
        if shard.split not in plan.splits:
            continue
        sidecar = finished_sidecar(out, plan_hash, shard)
        if sidecar is None:
            table = read_intact_table(dataset, shard.split, entry)
            failures = failures_of(dataset.path, dataset.manifest, old, shard, entry.rows)
            sidecar = dataclasses.replace(
                Sidecar.load(sidecar_path(source, shard)),
                plan_hash=plan_hash,
                rows=entry.rows,
                samples=shard.samples - len(failures),
                failures=tuple(failures),
                files=write_shard(out, shard, table, formats),
            )
            sidecar.save(sidecar_path(out, shard))
        sidecars.append(sidecar)
    return finish_copy(plan, sidecars, dataset.manifest, out)


def _only(plan: Plan, splits: Sequence[str]) -> Plan:
    """The plan of some of the splits; of all, where none is named."""
    if unknown := set(splits) - set(plan.splits):
        raise ShardError(f"there is no split {min(unknown)!r}: choose out of {', '.join(plan.splits)}")

    def kept(values: dict[str, _T]) -> dict[str, _T]:
        return {name: value for name, value in values.items() if name in splits or not splits}

    return dataclasses.replace(
        plan,
        keys=kept(plan.keys),
        keys_sha256=kept(plan.keys_sha256),
        source_hashes=kept(plan.source_hashes),
    )


def start_copy(plan: Plan, manifest: Manifest, source: Store, out: Store) -> None:
    """Write the plan and the tokenizers of a dataset that is made from `source`."""
    save_or_match(plan, out)
    remove_temps(plan, out)
    for folder in manifest.tokenizer_folders:
        for name in (source / folder).files():
            (out / f"{folder}/{name}").write_bytes((source / f"{folder}/{name}").read_bytes())


def finish_copy(plan: Plan, sidecars: Sequence[Sidecar], original: Manifest, out: Where) -> Manifest:
    """Write the manifest of a dataset with the spec, names, tokenizers and licence of `original`."""
    manifest = Manifest.build(
        plan=plan,
        sidecars=sidecars,
        spec=original.spec,
        class_names=original.class_names,
        label_names=original.label_names,
        tokenizer=original.tokenizer,
        conditions=original.conditions,
        license=original.license,
    )
    save_dataset(manifest, out)
    return manifest


def planned_entries(plan: Plan, manifest: Manifest) -> Iterator[tuple[PlannedShard, ShardEntry]]:
    """Each planned shard with its entry in the manifest."""
    if plan.hash != manifest.plan_hash:
        raise ShardError("plan.json and dataset.json belong to different jobs: verify the dataset")
    entries = manifest.entries
    for shard in plan.shards:
        yield shard, entries[shard.split, shard.name]


def read_intact_table(dataset: ShardDataset, split: str, entry: ShardEntry) -> pa.Table:
    """The rows of a shard whose file has the recorded hash.

    Raises:
        ShardError: It has another: a flipped bit would get a valid hash in the new dataset.
    """
    return dataset.table(split, entry)
