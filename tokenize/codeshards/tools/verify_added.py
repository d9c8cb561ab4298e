"""Verify the side-car shards of columns that were added to a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from codeshards.format.added import SideCars
from codeshards.format.dataset import ShardDataset
from codeshards.format.entries import AddedColumn
from codeshards.format.errors import ShardError
from codeshards.format.manifest import MANIFEST_FILE, Manifest, Sidecar, is_intact, sidecar_path
from codeshards.format.orders import inverse
from codeshards.format.plan import Plan, PlannedShard
from codeshards.format.schema import column_to_numpy
from codeshards.format.shardfile import read_table
from runkit.places import Store

_THREADS = 4  # hashing and decoding release the GIL


def added_problems(store: Store, manifest: Manifest, plan: Plan) -> list[str]:
    """The problems of all side-car shards: bytes, rows and keys, other image codes, and orders against the image."""
    checks = []
    for count, column in enumerate(manifest.added):
        before = dataclasses.replace(manifest, added=manifest.added[:count])
        side_cars = SideCars(store, plan, before, column.spec, column.settings)
        checks.append((column, side_cars, ShardDataset(store, before)))

    def check(shard: PlannedShard) -> list[str]:
        for column, side_cars, dataset in checks:
            try:
                problems = list(_problems(column, side_cars, dataset, plan, shard))
            except (ShardError, OSError) as error:  # a failing disk is a problem to report
                problems = [str(error)]
            if problems:
                return problems  # what was added later has the rows of this column
        return []

    if not checks or {(shard.split, shard.name) for shard in plan.each_shard()} != manifest.entries.keys():
        return []  # the latter is a problem of the manifest
    with ThreadPoolExecutor(_THREADS) as pool:
        return [problem for found in pool.map(check, plan.shards) for problem in found]


def _problems(
    column: AddedColumn, side_cars: SideCars, dataset: ShardDataset, plan: Plan, shard: PlannedShard
) -> Iterator[str]:
    entry, folder, side_car = column.splits[shard.split].shards[shard.index], side_cars.folder, side_cars.of(shard)
    sidecar = Sidecar.load(sidecar_path(folder, shard))
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
        elif column.spec.name.startswith("codes_") and not _same_pictures(dataset, shard, found):
            yield f"{file}: {column.spec.name} shows other pictures than {shard.split}/{shard.name}"


def _same_pictures(dataset: ShardDataset, shard: PlannedShard, found: dict[str, Any]) -> bool:
    """Whether an added order has the codes of the first order."""
    image, first = dataset.spec.image, dataset.spec.orders[0]
    batches = dataset.batches(shard.split, [f"codes_{first}"], shards=[shard.index])
    rasters = [batch[f"codes_{first}"][:, inverse(first, image.height, image.width)] for batch in batches]
    added = next(name for name in found if name.startswith("codes_"))
    order: Any = added.removeprefix("codes_")
    own = found[added][:, inverse(order, image.height, image.width)]
    return np.array_equal(own, np.concatenate(rasters)) if rasters else len(own) == 0
