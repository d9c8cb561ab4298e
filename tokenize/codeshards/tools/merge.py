"""Merge several finished datasets into one. Requires no pixels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import pyarrow as pa

from codeshards.format.added import failures_of, whole_plan
from codeshards.format.dataset import ShardDataset
from codeshards.format.errors import ShardError
from codeshards.format.manifest import Failure, Manifest, Sidecar, sidecar_path
from codeshards.format.plan import Plan, build_plan, load_plan
from codeshards.format.shardfile import ShardFormat, check_formats, write_shard
from codeshards.job.resume import locked_store
from codeshards.tools.convert import finish_copy, planned_entries, read_intact_table, start_copy
from runkit.folders import check_apart
from runkit.places import Where, open_store

_ENCODE = "Encode both with one tokenizer and the same settings"
_NAME = "A number would have two meanings: encode both from data with the same names"
_LICENSE = "Repeat the job that encodes one of them with the licence of the other, if it is under that, too"


def merge(sources: Sequence[Where], out: Where, *, formats: Sequence[ShardFormat] = ()) -> Manifest:
    """Concatenate the rows of several datasets and cut them into shards of one size.

    Samples that failed stay on record. The plan names the merged plans instead of a source list.

    Args:
        sources: Two or more finished datasets of equal spec, views, classes and licence, and of equal names of labels,
            which some may lack.
        out: Folder or URL of the new one: empty, or the same merge, unfinished.
        formats: Out of ``parquet`` and ``webdataset``; empty: those of the first source.

    Raises:
        UserError: `out` is, holds or is in a source, or another process uses it.
        ShardError: The sources do not fit, two rows would have one key, or `out` holds something else.
        WriteError: `out` cannot be written.
    """
    check_apart(out, source=list(sources))
    with locked_store(out, "shards-merge"):
        return _merge(sources, out, formats)


def _merge(sources: Sequence[Where], out: Where, formats: Sequence[ShardFormat]) -> Manifest:
    datasets, plans = [ShardDataset.open(source) for source in sources], [load_plan(source) for source in sources]
    _check_mergeable(datasets, [whole_plan(p, d.manifest) for p, d in zip(plans, datasets, strict=True)])
    names = next((dataset.label_names for dataset in datasets if dataset.label_names), ())
    manifest = dataclasses.replace(datasets[0].manifest, label_names=names)
    formats = check_formats(formats or manifest.formats)
    plan = _merged_plan(plans, manifest, formats)
    start_copy(plan, manifest, open_store(sources[0]), open_store(out))
    plan_hash, sidecars = plan.hash, list[Sidecar]()
    for split in plan.splits:
        pieces = (piece for dataset, old in zip(datasets, plans, strict=True) for piece in _pieces(dataset, old, split))
        shards = [shard for shard in plan.shards if shard.split == split]
        for shard, piece in zip(shards, _cut(pieces, [shard.samples for shard in shards], plan.views), strict=True):
            failures = tuple(failure for failure in piece.failures if failure)
            sidecar = Sidecar(
                plan_hash=plan_hash,
                split=split,
                index=shard.index,
                rows=piece.table.num_rows,
                samples=shard.samples - len(failures),
                failures=failures,
                files=write_shard(out, shard, piece.table, formats),
            )
            sidecar.save(sidecar_path(out, shard))
            sidecars.append(sidecar)
    return finish_copy(plan, sidecars, manifest, out)


def _merged_plan(plans: Sequence[Plan], manifest: Manifest, formats: Sequence[ShardFormat]) -> Plan:
    splits, hashes = sorted({split for plan in plans for split in plan.splits}), [plan.hash for plan in plans]
    settings = whole_plan(plans[0], manifest).settings
    try:
        return build_plan(
            samples={s: [key for plan in plans if s in plan.keys for key in plan.keys[s].to_pylist()] for s in splits},
            source_hashes=dict.fromkeys(splits, hashlib.sha256("\n".join(hashes).encode()).hexdigest()),
            settings={
                "merged": hashes,
                "spec": manifest.spec.to_json(),
                "formats": list(formats),
                **{name: value for name, value in settings.items() if name == "scales_from"},
            },
            views=plans[0].views,
            shard_rows=plans[0].shard_rows,
            shuffle_seed=None,
        )
    except ShardError as error:
        raise ShardError(
            f"these datasets cannot be merged: {error}. Leave one out, or encode it under other keys"
        ) from error


@dataclass(slots=True)
class _Piece:
    """Consecutive planned samples, each a failure or None, and the rows of those that did not fail."""

    failures: list[Failure | None]
    table: pa.Table


def _pieces(dataset: ShardDataset, plan: Plan, split: str) -> Iterator[_Piece]:
    for shard, entry in planned_entries(plan, dataset.manifest):
        if shard.split == split:
            failed = {one.key: one for one in failures_of(dataset.path, dataset.manifest, plan, shard, entry.rows)}
            table = read_intact_table(dataset, split, entry)
            yield _Piece([failed.get(key) for key in plan.sample_keys(shard)], table)


def _cut(pieces: Iterable[_Piece], sizes: Sequence[int], views: int) -> Iterator[_Piece]:
    """The same samples in pieces of other sizes."""
    source, held = iter(pieces), list[_Piece]()
    for size in sizes:
        while sum(len(piece.failures) for piece in held) < size:
            held.append(next(source))
        failures = [failure for piece in held for failure in piece.failures]
        table = pa.concat_tables([piece.table for piece in held])
        rows = sum(failure is None for failure in failures[:size]) * views
        yield _Piece(failures[:size], table.slice(0, rows))
        held = [_Piece(failures[size:], table.slice(rows))]


def _check_mergeable(datasets: Sequence[ShardDataset], plans: Sequence[Plan]) -> None:
    if len(datasets) < 2:
        raise ShardError(f"merge requires two datasets or more, found {len(datasets)}")
    first = datasets[0]
    named = next((dataset for dataset in datasets if dataset.label_names), first)
    for dataset, plan in zip(datasets[1:], plans[1:], strict=True):
        labels = dataset.label_names or named.label_names  # shards from before these were recorded have none
        for what, one, expected, found, remedy in (
            ("spec", first, first.spec, dataset.spec, _ENCODE),
            ("views", first, plans[0].views, plan.views, _ENCODE),
            ("scales_from", first, plans[0].scales_from, plan.scales_from, _ENCODE),
            ("classes", first, first.class_names, dataset.class_names, _NAME),
            ("names of labels", named, named.label_names, labels, _NAME),
            ("licence", first, first.manifest.license, dataset.manifest.license, _LICENSE),
        ):
            if expected != found:
                raise ShardError(
                    f"{one.path} and {dataset.path} cannot be merged, because they differ in {what}:\n"
                    f"{_difference(expected, found)}\n{remedy}"
                )


def _difference(one: object, other: object) -> str:
    """Both values, a line each; of names the first that differ, with their number."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        number = next(i for i, (a, b) in enumerate(zip_longest(one, other)) if a != b)
        one, other = (f"{number}: {names[number] if number < len(names) else 'none'}" for names in (one, other))
    return f"  {one}\n  {other}"
