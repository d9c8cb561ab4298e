"""The tokenize job: encodes a dataset with tokenizers into token shards.

Whatever process dies, a shard is either complete (its sidecar exists) or made again, and its bytes depend on the plan
alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

from codeshards.config import TokenizeConfig
from codeshards.format.column import ColumnSpec
from codeshards.format.contents import EVENTS_FILE, delete_dataset, save_dataset
from codeshards.format.errors import ShardError
from codeshards.format.manifest import MANIFEST_FILE, UNKNOWN_LICENSE, Manifest, Sidecar, is_intact
from codeshards.format.orders import ORDER_NAMES, defined_orders
from codeshards.format.plan import Plan, PlannedShard, build_plan
from codeshards.format.schema import GridSpec, ShardSpec
from codeshards.job.actors import assigned_cores
from codeshards.job.encode import IMAGE, ShardTask, WorkerResources, encode_shard, fix_arithmetic, task_maker
from codeshards.job.progress import EventLog, kind_of
from codeshards.job.resume import (
    Arrivals,
    close_job,
    locked_store,
    open_job,
    planned_spec,
    remove_temps,
)
from codeshards.job.scheduler import run_shards
from codeshards.job.tokenizers import about_tokenizer, check_fit, copy_tokenizers, grid_of, preprocessing
from runkit.compiling import check_compiler
from runkit.folders import check_apart
from runkit.places import Store, Where, absolute
from runkit.termination import exit_on_sigterm
from vqgan.checkpoint import fingerprint, load_config
from vqgan.config import ModelConfig
from vqgan.data import (
    ColumnType,
    Filter,
    Split,
    column_types,
    open_splits,
    parse_columns,
    resolve,
    sources_of,
)
from vqgan.plugin_tokenizer import plugin_name

log = logging.getLogger(__name__)


@exit_on_sigterm()
def tokenize(
    config: TokenizeConfig,
    *,
    dataset: str,
    data: Path,
    tokenizers: Mapping[str, Path],
    out: Where,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Manifest:
    """Encode a dataset into token shards, or resume a job that was interrupted.

    SIGTERM and Ctrl-C discard unfinished shards, leave no partial files, and raise StoppedError and KeyboardInterrupt.
    The same call resumes.

    Args:
        config: Settings of the job.
        dataset: Name of the dataset's reader; "auto" detects it.
        data: Folder or URL of the dataset; every node of a cluster must see it under this path.
        tokenizers: ``image`` and any of segmentation, depth, pose → folder of the trained tokenizer.
        out: Folder or URL (s3://…, gs://…) of the shards; every node must reach it under this name.
        overwrite: Delete the dataset in `out` first; refused where `out` holds anything else.
        retry_failed: Make the shards with failures again.

    Returns:
        The manifest, which is also in `out`/dataset.json.

    Raises:
        UserError: `out` is, holds or is in a folder of samples or a tokenizer, another process uses it, or Ray cannot
            start.
        ShardError: Tokenizers and dataset do not fit, `out` holds shards of another plan or anything else, the workers
            of a shard died repeatedly, or more samples failed than `config.max_failure_rate` allows.
        InputError: The dataset or a tokenizer cannot be opened.
    """
    inputs = open_inputs(config, dataset, data, tokenizers, out)
    with locked_store(inputs.store, "tokenize"):
        return _tokenize(config, inputs, tokenizers, overwrite=overwrite, retry_failed=retry_failed)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a job reads and where it writes."""

    store: Store
    """The output."""
    splits: Mapping[str, Split]
    """The samples, without those that a filter leaves out."""
    dataset: str
    """Resolved name of the dataset."""
    left_out: Mapping[str, int]
    """Split → number of samples that a filter leaves out; empty without one."""


def open_inputs(config: TokenizeConfig, dataset: str, data: Path, tokenizers: Mapping[str, Path], out: Where) -> Inputs:
    """Open the samples of a job; arguments and errors as :func:`tokenize`."""
    store = absolute(out)
    parse_columns(config.columns)  # refused before files are listed
    if config.where:
        Filter.parse(config.where)
    splits = open_splits(dataset, data)
    check_apart(store, data=sources_of(splits, data), tokenizer=list(tokenizers.values()))
    kept = filtered(splits, config.where)
    left_out = {name: len(split) - len(kept[name]) for name, split in splits.items()} if config.where else {}
    return Inputs(store=store, splits=kept, dataset=resolve(dataset, data), left_out=left_out)


def filtered(splits: Mapping[str, Split], where: str) -> Mapping[str, Split]:
    """The samples that satisfy an expression, "" for all; logs how many do.

    Raises:
        InputError: The expression or a column cannot be read.
        ShardError: A split is left without samples.
    """
    if not where:
        return splits
    condition = Filter.parse(where)
    types = column_types(splits, dict.fromkeys(condition.names))
    found = {name: split.where(condition, types) for name, split in splits.items()}
    for name, split in found.items():
        log.info("%s: %d of %d samples satisfy %s", name, len(split), len(splits[name]), condition.text)
        if not len(split):
            raise ShardError(f"no sample of split {name!r} satisfies {condition.text!r}: weaken the condition")
    return found


def make_plan(
    config: TokenizeConfig, inputs: Inputs, tokenizers: Mapping[str, Path], *, overwrite: bool
) -> tuple[Plan, ShardSpec]:
    """The plan of a job and the columns of its shards; arguments and errors as :func:`tokenize`."""
    splits = inputs.splits
    if config.compile and "RAY_ADDRESS" not in os.environ:  # the nodes of a cluster check for themselves
        check_compiler(device_of(config), ShardError)
    models = {name: load_config(folder).model for name, folder in tokenizers.items()}
    check_fit(models, splits)
    if config.views > 1:
        for samples in splits.values():
            samples.check_mirror([name for name in models if name != IMAGE], "set views = 1")
    planned = None if overwrite else planned_spec(inputs.store)
    known = {name: grid.fingerprint for name, grid in _grids(planned).items()} if planned else {}
    found = {name: fingerprint(folder, known.get(name, "")) for name, folder in tokenizers.items()}
    carried = column_types(splits, parse_columns(config.columns))
    spec = _spec(config, models, found, carried)
    spec.check_rows(config.shard_rows)
    return build_plan(
        samples={name: split.keys for name, split in splits.items()},
        source_hashes={name: split.source_hash(tuple(carried)) for name, split in splits.items()},
        settings={
            **config.plan_settings(device_of(config)),
            "dataset": inputs.dataset,
            "resolution": models[IMAGE].resolution,
            **preprocessing(models),
            **({"where": config.where, "left_out": inputs.left_out} if config.where else {}),
            "spec": spec.to_json(),
        },
        views=config.views,
        shard_rows=config.shard_rows,
        shuffle_seed=config.shuffle_seed,
    ), spec


def _tokenize(
    config: TokenizeConfig, inputs: Inputs, tokenizers: Mapping[str, Path], *, overwrite: bool, retry_failed: bool
) -> Manifest:
    store, splits = inputs.store, inputs.splits
    plan, spec = make_plan(config, inputs, tokenizers, overwrite=overwrite)
    if overwrite:
        delete_dataset(store)
    missing = open_job(plan, store, retry_failed=retry_failed)
    made = Manifest.load(store) if not missing and (store / MANIFEST_FILE).exists() else None
    names = label_names((made.whole.spec if made else spec).conditions, splits, made)
    if made:
        failed = sum(split.failures for split in made.splits.values())
        allowed = config.max_failure_rate * (failed + sum(split.samples for split in made.splits.values()))
        # Tokenizers, plan and card are restored where one was lost.
        complete = all(is_intact(store / name, record, check_hash=False) for name, record in made.files.items())
        named = config.license in (UNKNOWN_LICENSE, made.license) and names == made.label_names
        if named and failed <= allowed and complete:
            return made
    copy_tokenizers(tokenizers, store)
    if missing:
        _delete_manifest(store)
        events = EventLog(store / EVENTS_FILE)
        task_of = task_maker(plan, splits)
        make_shards(missing, config, plan, spec, tokenizers, store, task_of=task_of, events=events)
    return _finish(plan, spec, config, splits, names, tokenizers, store, made)


def label_names(
    conditions: Collection[str], splits: Mapping[str, Split], made: Manifest | None = None
) -> tuple[str, ...]:
    """Return the names of the labels of masks, if masks are among the conditions.

    Those of a manifest are kept where the data has none.
    """
    names = next(iter(splits.values())).label_names if "segmentation" in conditions else ()
    return names or (made.label_names if made else ())


def _delete_manifest(store: Store) -> None:
    """Delete the manifest, which may be wrong while shards are made again."""
    with contextlib.suppress(ShardError):  # there is none, or it is damaged
        if names := ", ".join(column.spec.name for column in Manifest.load(store).added):
            log.warning("add %s again afterwards: shards are made, and only those of other rows are encoded", names)
    (store / MANIFEST_FILE).delete()


def make_shards(
    missing: Collection[PlannedShard],
    config: TokenizeConfig,
    plan: Plan,
    spec: ShardSpec,
    tokenizers: Mapping[str, Path],
    out: Store,
    *,
    task_of: Callable[[PlannedShard], ShardTask],
    events: EventLog,
    column: ColumnSpec | None = None,
) -> None:
    """Make the missing shards on Ray and leave no partial file, however the job ends.

    Args:
        missing: The shards.
        config: Settings of the job.
        plan: Their plan.
        spec: Columns of the shards.
        tokenizers: Name → folder of the tokenizer.
        out: Folder of the dataset, or of the column.
        task_of: Makes the task of a shard.
        events: Where to log events.
        column: Make side-car shards of this condition.
    """
    arrivals = Arrivals(out, None if column else plan.hash)

    def failures_of(shard: PlannedShard, sidecar: Sidecar) -> dict[str, int]:
        arrivals.expect(shard, sidecar)
        return dict(Counter(kind_of(failure.reason) for failure in sidecar.failures))

    device, folders = (
        device_of(config),
        {name: path if plugin_name(path) else path.resolve() for name, path in tokenizers.items()},
    )
    events.write(
        "start",
        plan_hash=plan.hash,
        shards=len(missing),
        samples=sum(shard.samples for shard in missing),
        settings=dataclasses.asdict(config),
    )
    end = "failed"
    try:
        run_shards(
            missing,
            task_of,
            Worker,
            (config, spec, folders, out, device, column),
            name="tokenize",
            device=device,
            settings=config,
            shards_at_once=2,
            workers_per_gpu=config.workers_per_gpu,
            events=events,
            on_done=failures_of,
        )
        end = "made"
    except (KeyboardInterrupt, SystemExit):
        end = "stopped"
        log.warning("stopped: finished shards are kept, the same command resumes the job")
        raise
    finally:
        events.write(end)
        events.close()
        arrivals.close()
        remove_temps(plan, out)  # also after success: workers may have died


def _finish(
    plan: Plan,
    spec: ShardSpec,
    config: TokenizeConfig,
    splits: Mapping[str, Split],
    names: tuple[str, ...],
    tokenizers: Mapping[str, Path],
    out: Store,
    made: Manifest | None,
) -> Manifest:
    """Check that all shards are made and few samples failed, and write the manifest.

    The licence and the added columns that the dataset has already are kept where none is given.
    """
    about = {name: about_tokenizer(name, grid, tokenizers[name]) for name, grid in _grids(spec).items()}
    manifest = Manifest.build(
        plan=plan,
        sidecars=close_job(plan, out, config.max_failure_rate),
        spec=spec,
        class_names=next(iter(splits.values())).class_names,
        label_names=names,
        tokenizer=about.pop(IMAGE),
        conditions=about,
        license=made.license if made and config.license == UNKNOWN_LICENSE else config.license,
    )
    if made:
        manifest = dataclasses.replace(manifest, added=made.added)
    save_dataset(manifest, out)
    return manifest


def _spec(
    config: TokenizeConfig,
    models: Mapping[str, ModelConfig],
    fingerprints: Mapping[str, str],
    carried: Mapping[str, ColumnType],
) -> ShardSpec:
    grids = {name: grid_of(model, fingerprints[name]) for name, model in models.items()}
    image = grids.pop(IMAGE)
    # All orders mean all that are defined on the grid; one that is asked for by name must be.
    orders = defined_orders(image.height, image.width) if config.orders == ORDER_NAMES else config.orders
    return ShardSpec(image=image, orders=orders, scales=config.scales, conditions=grids, carried=dict(carried))


def _grids(spec: ShardSpec) -> dict[str, GridSpec]:
    """Name of the tokenizer → the grid of its codes."""
    return {IMAGE: spec.image, **spec.conditions}


def device_of(config: TokenizeConfig) -> Literal["cpu", "cuda"]:
    """The device that a config means on this machine."""
    if config.device != "auto":
        return config.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Worker:
    """The worker of an actor: loads the tokenizers once, then encodes shards, reading one while it encodes another."""

    def __init__(
        self,
        config: TokenizeConfig,
        spec: ShardSpec,
        folders: Mapping[str, Path],
        out: Store,
        device: Literal["cpu", "cuda"],
        column: ColumnSpec | None = None,
    ) -> None:
        from vqgan.tokenizer import Tokenizer

        fix_arithmetic(config.threads)
        self._config, self._spec, self._out, self._column = config, spec, out, column
        self._resources = WorkerResources(config.decode_threads or max(2, assigned_cores()))
        self._tokenizers = {
            name: Tokenizer.load(folder, device=device, precision=config.precision, compiled=config.compile)
            for name, folder in folders.items()
        }

    @property
    def samples_done(self) -> int:
        """Number of samples encoded or failed since the process started."""
        return self._resources.samples_done

    def run(self, task: ShardTask) -> Sidecar:
        """Encode one shard."""
        return encode_shard(
            task,
            tokenizers=self._tokenizers,
            spec=self._spec,
            config=self._config,
            out=self._out,
            resources=self._resources,
            column=self._column,
        )
