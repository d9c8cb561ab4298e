"""Add orders and coarser scales to a finished dataset, from its codes and the codebook. Requires no pixels.

Axes: N rows, L codes of a sequence, S side of a scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from codeshards.format.added import SideCars, open_finished, whole_plan
from codeshards.format.column import ColumnSpec, new_columns, with_columns
from codeshards.format.dataset import ShardDataset
from codeshards.format.errors import ShardError
from codeshards.format.manifest import Manifest, Sidecar, finished_sidecar, sidecar_path
from codeshards.format.orders import OrderName, inverse, order
from codeshards.format.plan import Plan
from codeshards.format.shardfile import write_column
from codeshards.job.resume import close_job, locked_store, remove_temps
from runkit.codes import Codes
from runkit.places import Store, Where, open_store
from runkit.progress import tqdm

_QUANTISED = {"scales_from": "quantised"}


def add_codes(dataset: Where, *, orders: Sequence[OrderName] = (), scales: Sequence[int] = ()) -> Manifest:
    """Add orders and scales as side-car shards; an interrupted addition resumes. Those that exist are left as they are.

    They equal those of a job that writes them with the image codes; of scales, one with `scales_from` quantised.

    Args:
        dataset: Folder or URL of a finished dataset.
        orders: Sequence orders, one column each.
        scales: Sides of coarser grids of codes, one column each; require the dataset's tokenizer.

    Raises:
        UserError: Another process uses the dataset.
        ShardError: It is not finished or damaged, a column does not fit its grid, its scales are those of the
            continuous latent, or it has no tokenizer.
        WriteError: It cannot be written.
    """
    store = open_store(dataset)
    with locked_store(store, "tokenize"):
        manifest, plan = open_finished(store)
        spec = manifest.whole.spec
        columns = new_columns(spec, [*(f"codes_{name}" for name in orders), *(f"scale_{side}" for side in scales)])
        with_columns(spec, columns).check_rows(plan.shard_rows)
        with contextlib.ExitStack() as stack:
            rescale = None
            if any(column.name.startswith("scale_") for column in columns):
                rescale = _scaler(store, manifest, plan, stack)
            for column in columns:
                manifest = _add(column, store, manifest, plan, rescale)
    return manifest


Scaler = Callable[[Codes, int], Codes]
"""From codes [N, H, W] and a side S to codes [N, S, S]."""


def _scaler(store: Store, manifest: Manifest, plan: Plan, stack: contextlib.ExitStack) -> Scaler:
    from vqgan.tokenizer import Tokenizer

    if manifest.whole.spec.scales and (found := whole_plan(plan, manifest).scales_from) != "quantised":
        raise ShardError(f"the scales of {store} are those of the {found} latent, added ones would be of the quantised")
    if "folder" not in manifest.tokenizer:
        raise ShardError(f"{store} does not hold its tokenizer, whose codebook scales require")
    folder = stack.enter_context((store / manifest.tokenizer["folder"]).as_folder())
    mark, precision = manifest.spec.image.fingerprint, plan.settings.get("precision", "float32")
    tokenizer = Tokenizer.load(folder, precision=precision, known=mark)
    if tokenizer.fingerprint != mark:
        raise ShardError(
            f"{store / manifest.tokenizer['folder']} is not the tokenizer of the codes: verify the dataset"
        )
    return tokenizer.rescale


def _add(column: ColumnSpec, store: Store, manifest: Manifest, plan: Plan, rescale: Scaler | None) -> Manifest:
    """Add one column, and return the new manifest."""
    settings = {} if column.name.startswith("codes_") else _QUANTISED
    side_cars, dataset = SideCars(store, plan, manifest, column, settings), ShardDataset(store, manifest)
    folder = side_cars.folder
    remove_temps(plan, folder)
    for shard in tqdm(plan.shards, desc=f"add {column.name}", unit="shard", disable=None):
        side_car = side_cars.of(shard)
        if finished_sidecar(folder, side_car.hash, shard):
            continue
        sidecar_path(folder, shard).delete()
        keys, views, codes_NHW = _rasters(dataset, shard.split, shard.index)
        if keys != side_car.keys(plan):
            raise ShardError(f"{shard.split}/{shard.name} of {store} has other keys than its plan: verify the dataset")
        table = column.to_table(keys, views, _derived(codes_NHW, column, rescale))
        Sidecar(
            plan_hash=side_car.hash,
            split=shard.split,
            index=shard.index,
            rows=len(keys),
            samples=shard.samples - len(side_car.left_out),
            files=write_column(folder, shard, table),
        ).save(sidecar_path(folder, shard))
    return side_cars.commit(close_job(plan, folder, 1.0), {})


def _rasters(dataset: ShardDataset, split: str, index: int) -> tuple[list[str], Any, Codes]:
    """Keys, views and codes [N, H, W] of the rows of a shard."""
    image, first = dataset.spec.image, dataset.spec.orders[0]
    parts: Iterator[dict[str, Any]] = dataset.batches(split, ["key", "view", f"codes_{first}"], shards=[index])
    keys, views, codes = list[str](), list[int](), [np.empty((0, image.length), image.dtype)]
    for part in parts:
        keys += part["key"].tolist()
        views += part["view"].tolist()
        codes.append(part[f"codes_{first}"][:, inverse(first, image.height, image.width)])
    return keys, views, np.concatenate(codes).reshape(-1, image.height, image.width)


def _derived(codes_NHW: Codes, column: ColumnSpec, rescale: Scaler | None) -> Codes:
    """Codes [N, L] of an order or a scale."""
    kind, _, rest = column.name.partition("_")
    if rescale and kind == "scale":
        return rescale(codes_NHW, int(rest)).reshape(len(codes_NHW), -1)
    return codes_NHW.reshape(len(codes_NHW), -1)[:, order(rest, *codes_NHW.shape[1:])]
