"""Add conditions to a finished dataset: encodes the maps of its samples, on Ray, and leaves its image codes alone.

The samples keep their places in the batches of the plan, so that the codes are those of one job for all columns.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codeshards.config import TokenizeConfig
from codeshards.format.added import SideCars, open_finished
from codeshards.format.column import ColumnSpec, with_columns
from codeshards.format.contents import save_dataset
from codeshards.format.errors import ShardError
from codeshards.format.manifest import Manifest, finished_sidecar
from codeshards.format.plan import Plan, PlannedShard
from codeshards.format.schema import CONDITION_NAMES, ShardSpec
from codeshards.job.encode import IMAGE, ShardTask
from codeshards.job.progress import EventLog
from codeshards.job.resume import close_job, locked_store, remove_temps
from codeshards.job.tokenize import device_of, label_names, make_shards, open_inputs
from codeshards.job.tokenizers import DEPTH_RANGE, about_tokenizer, check_fit, copy_tokenizers, grid_of
from runkit.places import Store, Where, absolute, as_typed
from runkit.termination import exit_on_sigterm
from vqgan.checkpoint import fingerprint, load_config
from vqgan.config import ModelConfig
from vqgan.data import Split

log = logging.getLogger(__name__)
_THREADS = 32
"""Sidecars read at once: in an object store each costs a round trip."""


@exit_on_sigterm()
def add_conditions(
    config: TokenizeConfig,
    *,
    dataset: str,
    data: Path,
    tokenizers: Mapping[str, Path],
    out: Where,
    retry_failed: bool = False,
) -> Manifest:
    """Add the codes of conditions to a finished dataset, as side-car shards; an interrupted addition resumes.

    A sample whose map fails loses its row, as in one job for all columns: readers leave it out. All settings that
    determine codes are those of the dataset's plan.

    Args:
        config: Number and size of the workers, and `max_failure_rate`. A `device` other than auto replaces that of the
            plan.
        dataset: Name of the reader of the pictures; "auto" detects it.
        data: Folder of the pictures from which the dataset was made, with the maps.
        tokenizers: Condition → folder of its tokenizer.
        out: Folder or URL of the dataset.
        retry_failed: Make the side-car shards with failures again.

    Returns:
        The manifest, which is also in `out`/dataset.json.

    Raises:
        UserError: Another process uses `out`, or Ray cannot start.
        ShardError: `out` is not finished, was merged or made from other pictures, or has the condition of another
            tokenizer; the tokenizers do not fit; or more maps failed than `config.max_failure_rate` allows.
        InputError: The pictures or a tokenizer cannot be opened.
    """
    store = absolute(out)
    with locked_store(store, "tokenize"):
        manifest, plan = open_finished(store)
        config = planned_config(plan, config)
        found = open_inputs(config, dataset, data, tokenizers, store).splits
        splits = check_source(plan, found, data, manifest.spec)
        with (store / manifest.tokenizer["folder"]).as_folder() as folder:
            image = load_config(folder).model
        models = {name: load_config(folder).model for name, folder in tokenizers.items()}
        check_fit({IMAGE: image, **models}, splits)
        if plan.views > 1:
            for samples in splits.values():
                samples.check_mirror(list(models), "leave the pose out")
        for name in (name for name in CONDITION_NAMES if name in tokenizers):
            manifest = _add(name, tokenizers[name], models[name], manifest, plan, splits, store, config, retry_failed)
    return manifest


def check_source(plan: Plan, splits: Mapping[str, Split], data: Path, spec: ShardSpec) -> dict[str, Split]:
    """The splits of a plan, if they are what its shards with this spec were made from.

    Raises:
        ShardError: They are not.
    """
    for split in plan.splits:
        if split not in splits or splits[split].source_hash(tuple(spec.carried)) != plan.source_hashes[split]:
            raise ShardError(
                f"{as_typed(data)} is not what split {split!r} was made from: its files or settings differ. Give the "
                "pictures of the tokenize job, and their layout"
            )
    return {split: splits[split] for split in plan.splits}


def planned_config(plan: Plan, config: TokenizeConfig) -> TokenizeConfig:
    """A config with the settings of a plan that determine codes; a `device` other than auto stays.

    Raises:
        ShardError: The plan has none.
    """
    names = ("draft", "batch_size", "precision", "compile", "threads")
    if not set(names) <= plan.settings.keys():
        raise ShardError("the dataset has no single source of pictures: it was merged or imported. Use its parts")
    found = {name: plan.settings[name] for name in names}
    found |= {"where": plan.settings.get("where", ""), "resampler": plan.settings.get("resampler", "pillow")}
    device = plan.settings["device"] if config.device == "auto" else config.device
    return dataclasses.replace(config, **found, views=plan.views, device=device)  # type: ignore[arg-type]


def _add(
    name: str,
    folder: Path,
    model: ModelConfig,
    manifest: Manifest,
    plan: Plan,
    splits: Mapping[str, Split],
    store: Store,
    config: TokenizeConfig,
    retry_failed: bool,
) -> Manifest:
    """Add one condition, and return the new manifest."""
    listed = manifest.whole.spec.conditions.get(name)
    grid = grid_of(model, fingerprint(folder, listed.fingerprint if listed else ""))
    if listed:
        if grid != listed:
            raise ShardError(f"{store} has {name} of another tokenizer ({listed.fingerprint}): make another dataset")
        manifest, again = _without_failed(name, manifest, store, retry_failed)
        if not again:
            return manifest
    column = ColumnSpec(name=f"cond_{name}", grid=grid)
    with_columns(manifest.whole.spec, [column]).check_rows(plan.shard_rows)
    settings = {"device": device_of(config), **({"depth": DEPTH_RANGE} if name == "depth" else {})}
    manifest = dataclasses.replace(manifest, label_names=label_names([name], splits, manifest))
    side_cars = SideCars(store, plan, manifest, column, settings)
    remove_temps(plan, side_cars.folder)
    copy_tokenizers({name: folder}, store)
    if missing := _missing(side_cars, plan, retry_failed):

        def task_of(shard: PlannedShard) -> ShardTask:
            side_car, samples = side_cars.of(shard), splits[shard.split].subset(plan.sample_indices(shard))
            return ShardTask(shard=shard, plan_hash=side_car.hash, samples=samples, left_out=side_car.left_out)

        spec = ShardSpec(image=manifest.spec.image, orders=manifest.spec.orders, conditions={name: grid})
        config = dataclasses.replace(config, scales=())
        events = EventLog(None)  # events.jsonl is about the image codes
        tokenizer = {name: folder}
        make_shards(
            missing, config, plan, spec, tokenizer, side_cars.folder, task_of=task_of, events=events, column=column
        )
    about = about_tokenizer(name, grid, folder)
    return side_cars.commit(close_job(plan, side_cars.folder, config.max_failure_rate), about)


def _without_failed(name: str, manifest: Manifest, store: Store, retry_failed: bool) -> tuple[Manifest, bool]:
    """The manifest, without a column whose failed maps are tried again; and whether it is made again."""
    column = next((column for column in manifest.added if column.spec.name == f"cond_{name}"), None)
    if column is None or not retry_failed or not any(split.failures for split in column.splits.values()):
        log.info("%s has %s already", store, name)
        return manifest, False
    if column != manifest.added[-1]:
        raise ShardError(
            f"{manifest.added[-1].spec.name} was added after {name}, to the rows that have it: its failed maps cannot "
            "be tried again. Make another dataset"
        )
    manifest = dataclasses.replace(manifest, added=manifest.added[:-1])
    save_dataset(manifest, store)  # it must not list side-car shards that are made again
    return manifest, True


def _missing(side_cars: SideCars, plan: Plan, retry_failed: bool) -> list[PlannedShard]:
    """The side-car shards that are not made yet, and with `retry_failed` those with failures."""

    def is_missing(shard: PlannedShard) -> bool:
        sidecar = finished_sidecar(side_cars.folder, side_cars.of(shard).hash, shard)
        return sidecar is None or (retry_failed and bool(sidecar.failures))

    with ThreadPoolExecutor(_THREADS) as pool:
        return [shard for shard, missing in zip(plan.shards, pool.map(is_missing, plan.shards), strict=True) if missing]
