"""Verify the side-car shards of columns that were added to a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from codeshards.format.added import SideCar, SideCars
from codeshards.format.dataset import ShardDataset
from codeshards.format.entries import AddedColumn, ShardEntry
from codeshards.format.errors import ShardError
from codeshards.format.manifest import MANIFEST_FILE, Manifest, Sidecar, is_intact, sidecar_path
from codeshards.format.orders import inverse
from codeshards.format.plan import Plan, PlannedShard
from codeshards.format.schema import column_to_numpy
from codeshards.format.shardfile import read_table
from runkit.places import Store


def added_problems(store: Store, manifest: Manifest, plan: Plan, shard: PlannedShard) -> Iterator[str]:
    """Problems of the side-car shards of a shard that has none itself: bytes, rows, keys, and orders against the image.

    Args:
        store: The dataset.
        manifest: Its manifest.
        plan: Its plan.
        shard: The shard.
    """
    for count, column in enumerate(manifest.added):
        before = dataclasses.replace(manifest, added=manifest.added[:count])
        entry = column.splits[shard.split].shards[shard.index]
        try:
            side_car = SideCars(store, plan, before, column.spec, column.settings).of(shard)
            sidecar = Sidecar.load(sidecar_path(store / column.spec.name, shard))
            problems = list(_problems(store, before, plan, column, side_car, sidecar, entry))
        except (ShardError, OSError) as error:  # a failing disk is a problem to report
            problems = [str(error)]
        yield from problems
        if problems:
            return  # what was added later has the rows of this column


def _problems(
    store: Store,
    before: Manifest,
    plan: Plan,
    column: AddedColumn,
    side_car: SideCar,
    sidecar: Sidecar,
    entry: ShardEntry,
) -> Iterator[str]:
    shard, folder = side_car.shard, store / column.spec.name
    made = (sidecar.plan_hash, sidecar.split, sidecar.index, sidecar.rows, sidecar.files)
    if made != (side_car.hash, shard.split, shard.index, entry.rows, entry.files):
        yield f"{sidecar_path(folder, shard)} and {MANIFEST_FILE} differ about this shard"
        return
    keys = side_car.keys(plan, [failure.key for failure in sidecar.failures])
    for name, record in entry.files.items():
        file = folder / f"{shard.split}/{name}"
        if not is_intact(file, record):
            yield f"{file} is missing, or its sha256 is not the one of {MANIFEST_FILE}"
            continue
        table = read_table(file, column.spec, entry.rows)
        found = {part: column_to_numpy(table.column(part).combine_chunks()) for part in column.spec.column_names}
        if found["key"].tolist() != keys or found["view"].tolist() != [row % plan.views for row in range(len(keys))]:
            yield f"{file}: its keys and views are not those of {shard.split}/{shard.name}"
        elif found[column.spec.name].max(initial=0) >= column.spec.grid.codebook_size:
            yield f"{file}: {column.spec.name} has a code beyond the codebook of {column.spec.grid.codebook_size}"
        elif column.spec.name.startswith("codes_") and not _same_pictures(store, before, shard, found):
            yield f"{file}: {column.spec.name} shows other pictures than {shard.split}/{shard.name}"


def _same_pictures(store: Store, before: Manifest, shard: PlannedShard, found: dict[str, Any]) -> bool:
    """Whether an added order has the codes of the first order."""
    dataset = ShardDataset(store, before)
    image, first = dataset.spec.image, dataset.spec.orders[0]
    batches = dataset.batches(shard.split, [f"codes_{first}"], shards=[shard.index])
    rasters = [batch[f"codes_{first}"][:, inverse(first, image.height, image.width)] for batch in batches]
    added = next(name for name in found if name.startswith("codes_"))
    order: Any = added.removeprefix("codes_")
    own = found[added][:, inverse(order, image.height, image.width)]
    return np.array_equal(own, np.concatenate(rasters)) if rasters else len(own) == 0
