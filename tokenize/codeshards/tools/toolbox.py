"""Finished datasets as a whole: look into one, write it in other formats, put several into one. Needs no pixels.

Axes: L codes of a picture in raster order, K entries of the codebook, O orders.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codeshards.format import (
    Failure,
    Manifest,
    Plan,
    PlannedShard,
    ShardDataset,
    ShardEntry,
    ShardError,
    ShardFormat,
    Sidecar,
    Store,
    Where,
    build_plan,
    check_formats,
    inverse,
    is_intact,
    load_plan,
    open_store,
    read_table,
    save_or_match,
    shard_is_done,
    sidecar_path,
    write_shard,
)
from codeshards.job.resume import held_store, remove_temps
from runkit.folders import check_apart


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeStatistics:
    """How one column's codes are distributed over the rows of all splits."""

    counts_K: npt.NDArray[np.int64]
    """How often each code occurs."""
    entropy_bits_L: npt.NDArray[np.float64]
    """Entropy of the codes at each position, in raster order; with few rows it comes out too small."""

    def to_json(self) -> dict[str, Any]:
        """Usage, perplexity and entropies as JSON values."""
        entropy_bits = float(_entropy_bits(self.counts_K[None])[0])
        return {
            "codes": int(self.counts_K.sum()),
            "codebook_size": len(self.counts_K),
            "used": int((self.counts_K > 0).sum()),
            "entropy_bits": entropy_bits,
            "perplexity": 2.0**entropy_bits,
            "entropy_bits_per_position": [round(float(bits), 4) for bits in self.entropy_bits_L],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a dataset holds."""

    manifest: Manifest
    """Its account of itself."""
    codes: dict[str, CodeStatistics]
    """``image`` and each scale and condition → its codes."""
    labels: dict[str, Counter[int]]
    """Split → rows of each label; -1 counts those without one."""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        manifest = self.manifest
        return {
            "spec": manifest.spec.to_json(),
            "schema": {column.name: str(column.type) for column in _fields(manifest.spec.schema())},
            "formats": list(manifest.formats),
            "license": manifest.license,
            "plan_hash": manifest.plan_hash,
            "splits": {
                name: {
                    "rows": split.rows,
                    "samples": split.samples,
                    "failures": split.failures,
                    "shards": len(split.shards),
                    "bytes": sum(record.bytes for shard in split.shards for record in shard.files.values()),
                    "labels": {str(label): count for label, count in sorted(self.labels[name].items())},
                }
                for name, split in manifest.splits.items()
            },
            "class_names": list(manifest.class_names),
            "codes": {name: statistics.to_json() for name, statistics in self.codes.items()},
        }


def inspect(dataset: Where) -> Inspection:
    """Read every code of a dataset once and count.

    Raises:
        ShardError: It is not a finished dataset, or a shard is missing or damaged.
    """
    shards = ShardDataset.open(dataset)
    spec = shards.spec
    columns = {"image": f"codes_{spec.orders[0]}"}
    columns |= {name: name for name in spec.code_grids if not name.startswith("codes_")}
    to_raster = inverse(spec.orders[0], spec.image.height, spec.image.width)
    grids = spec.code_grids
    counts = {
        name: np.zeros((grids[column].length, grids[column].codebook_size), np.int64)
        for name, column in columns.items()
    }
    labels: dict[str, Counter[int]] = {split: Counter() for split in shards.splits}
    for split in shards.splits:
        for batch in shards.batches(split, ["label", *columns.values()]):
            values, numbers = np.unique(batch["label"], return_counts=True)
            labels[split].update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
            for name, column in columns.items():
                codes = batch[column][:, to_raster] if name == "image" else batch[column]
                _count(counts[name], codes)
    statistics = {
        name: CodeStatistics(counts_K=counts_LK.sum(0), entropy_bits_L=_entropy_bits(counts_LK))
        for name, counts_LK in counts.items()
    }
    return Inspection(manifest=shards.manifest, codes=statistics, labels=labels)


def convert(source: Where, out: Where, formats: Sequence[ShardFormat]) -> Manifest:
    """Write a dataset again with its shards in other formats; there and back gives the same bytes.

    Everything else stays: rows, plan (but for its formats), failures, tokenizers. Interrupted, it goes on.

    Args:
        source: A finished dataset.
        out: Where the new one goes: nothing is there yet, or the same conversion, not finished.
        formats: Out of ``parquet`` and ``webdataset``.

    Raises:
        UserError: `out` is, holds or is in the source, or another process works in it.
        ShardError: The source is damaged, or `out` holds something else.
        WriteError: `out` cannot be written.
    """
    check_apart(out, source=source)
    with held_store(out, "shards-convert"):
        return _convert(source, out, formats)


def _convert(source: Where, out: Where, formats: Sequence[ShardFormat]) -> Manifest:
    dataset, old = ShardDataset.open(source), load_plan(source)
    plan = dataclasses.replace(old, settings={**old.settings, "formats": list(check_formats(formats))})
    _start(plan, dataset.manifest, open_store(source), open_store(out))
    plan_hash, sidecars = plan.hash, list[Sidecar]()
    for shard, entry in _entries(old, dataset.manifest):
        target = sidecar_path(out, shard)
        if not shard_is_done(out, plan_hash, shard):
            table = _table(dataset, shard.split, entry)
            sidecar = Sidecar.load(sidecar_path(source, shard))
            files = write_shard(out, shard, table, formats)
            dataclasses.replace(sidecar, plan_hash=plan_hash, files=files).save(target)
        sidecars.append(Sidecar.load(target))
    return _finish(plan, sidecars, dataset.manifest, out)


def merge(sources: Sequence[Where], out: Where, *, formats: Sequence[ShardFormat] = ()) -> Manifest:
    """Put the rows of several datasets into one, each source's after the other's, cut into shards of one size.

    Samples that failed stay on record. The plan names the merged plans instead of a source list.

    Args:
        sources: Two or more finished datasets of equal spec, views, classes and licence.
        out: Where the new one goes: nothing is there yet, or the same merge, not finished.
        formats: Out of ``parquet`` and ``webdataset``; none: as the first source.

    Raises:
        UserError: `out` is, holds or is in a source, or another process works in it.
        ShardError: The sources do not fit, two rows would have one key, or `out` holds something else.
        WriteError: `out` cannot be written.
    """
    check_apart(out, source=list(sources))
    with held_store(out, "shards-merge"):
        return _merge(sources, out, formats)


def _merge(sources: Sequence[Where], out: Where, formats: Sequence[ShardFormat]) -> Manifest:
    datasets, plans = [ShardDataset.open(source) for source in sources], [load_plan(source) for source in sources]
    _check_mergeable(datasets, plans)
    first, splits = datasets[0], sorted({split for plan in plans for split in plan.splits})
    formats = check_formats(formats or first.manifest.formats)
    hashes = [plan.hash for plan in plans]
    try:
        plan = build_plan(
            samples={s: [key for plan in plans if s in plan.keys for key in plan.keys[s].to_pylist()] for s in splits},
            source_hashes=dict.fromkeys(splits, hashlib.sha256("\n".join(hashes).encode()).hexdigest()),
            settings={
                "merged": hashes,
                "spec": first.spec.to_json(),
                "formats": list(formats),
                **{name: value for name, value in plans[0].settings.items() if name == "scales_from"},
            },
            views=plans[0].views,
            shard_rows=plans[0].shard_rows,
            shuffle_seed=None,
        )
    except ShardError as error:
        raise ShardError(
            f"these datasets cannot be merged: {error}. Leave one out, or encode it under other keys"
        ) from error
    _start(plan, first.manifest, open_store(sources[0]), open_store(out))
    plan_hash, sidecars = plan.hash, list[Sidecar]()
    for split in splits:
        pieces = (piece for dataset, old in zip(datasets, plans, strict=True) for piece in _pieces(dataset, old, split))
        mine = [shard for shard in plan.shards if shard.split == split]
        for shard, piece in zip(mine, _cut(pieces, [shard.samples for shard in mine], plan.views), strict=True):
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
    return _finish(plan, sidecars, first.manifest, out)


@dataclass(slots=True)
class _Piece:
    """Planned samples in a run, each a failure or None, and the rows of those that did not fail."""

    failures: list[Failure | None]
    table: pa.Table


def _pieces(dataset: ShardDataset, plan: Plan, split: str) -> Iterator[_Piece]:
    for shard, entry in _entries(plan, dataset.manifest):
        if shard.split == split:
            failed = {one.key: one for one in Sidecar.load(sidecar_path(dataset.path, shard)).failures}
            yield _Piece([failed.get(key) for key in plan.sample_keys(shard)], _table(dataset, split, entry))


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
        raise ShardError(f"merge needs two datasets or more, found {len(datasets)}")
    first = datasets[0]
    for dataset, plan in zip(datasets[1:], plans[1:], strict=True):
        for what, mine, other in (
            ("spec", first.spec, dataset.spec),
            ("classes", first.class_names, dataset.class_names),
            ("views", plans[0].views, plan.views),
            ("scales_from", plans[0].scales_from, plan.scales_from),
            ("licence", first.manifest.license, dataset.manifest.license),
        ):
            if mine != other:
                raise ShardError(
                    f"{first.path} and {dataset.path} cannot be merged, for they differ in {what}:\n"
                    f"  {mine}\n  {other}\nEncode both with one tokenizer and the same settings"
                )


def _start(plan: Plan, manifest: Manifest, source: Store, out: Store) -> None:
    save_or_match(plan, out)
    remove_temps(plan, out)
    for folder in manifest.tokenizer_folders:
        for name in (source / folder).files():
            (out / f"{folder}/{name}").write_bytes((source / f"{folder}/{name}").read_bytes())


def _finish(plan: Plan, sidecars: Sequence[Sidecar], like: Manifest, out: Where) -> Manifest:
    manifest = Manifest.build(
        plan=plan,
        sidecars=sidecars,
        spec=like.spec,
        class_names=like.class_names,
        tokenizer=like.tokenizer,
        conditions=like.conditions,
        license=like.license,
    )
    manifest.save(out)
    return manifest


def _entries(plan: Plan, manifest: Manifest) -> Iterator[tuple[PlannedShard, ShardEntry]]:
    """Each planned shard with its entry in the manifest."""
    if plan.hash != manifest.plan_hash:
        raise ShardError("plan.json and dataset.json belong to different jobs: verify the dataset")
    entries = manifest.entries
    for shard in plan.shards:
        yield shard, entries[shard.split, shard.name]


def _table(dataset: ShardDataset, split: str, entry: ShardEntry) -> pa.Table:
    file = dataset.file_of(split, entry)
    if not is_intact(file, entry.files[file.name]):  # a flipped bit would get a hash of its own in the new dataset
        raise ShardError(f"{file} is not the file that {dataset.path} lists: verify the dataset")
    return read_table(file, dataset.spec, entry.rows)


def _count(counts_LK: npt.NDArray[np.int64], codes_NL: npt.NDArray[np.uint16]) -> None:
    length, size = counts_LK.shape
    offsets_L = np.arange(length, dtype=np.int64) * size
    counts_LK += np.bincount((codes_NL + offsets_L).ravel(), minlength=length * size).reshape(length, size)


def _entropy_bits(counts_LK: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    totals_L1 = np.maximum(counts_LK.sum(1, keepdims=True), 1)
    p_LK = counts_LK / totals_L1
    return np.asarray(-(p_LK * np.log2(p_LK, out=np.zeros_like(p_LK), where=p_LK > 0)).sum(1))


def _fields(schema: pa.Schema) -> list[Any]:
    return [schema.field(name) for name in schema.names]
