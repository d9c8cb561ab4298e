"""The tokenize job: a dataset and tokenizers in, token shards out.

Whatever dies on the way, a shard is either whole (its sidecar is there) or made again, and its bytes depend on the
plan alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from codeshards.config import TokenizeConfig
from codeshards.format import (
    EVENTS_FILE,
    MANIFEST_FILE,
    UNKNOWN_LICENSE,
    GridSpec,
    Manifest,
    Plan,
    PlannedShard,
    ShardError,
    ShardSpec,
    Sidecar,
    Store,
    Where,
    absolute,
    atomic_write,
    build_plan,
    delete_dataset,
    is_intact,
    sidecar_path,
)
from codeshards.job.encode import IMAGE, Lanes, ShardTask, encode_shard, fix_arithmetic
from codeshards.job.progress import EventLog, kind_of
from codeshards.job.resume import MissingShards, close_job, held_store, open_job, planned_spec, remove_temps
from codeshards.job.scheduler import assigned_cores, run_shards
from codeshards.job.session import terminable
from runkit.compiling import check_compiler
from runkit.folders import check_apart
from runkit.retries import patient
from vqgan.checkpoint import fingerprint, load_config
from vqgan.config import ModelConfig
from vqgan.data import Split, open_splits, resolve, sources_of

log = logging.getLogger(__name__)


@terminable()
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
    """Encode a dataset into token shards, or finish a job that was interrupted.

    SIGTERM and Ctrl-C give up the shards in work, leave no half files, and end the process; the same call goes on.

    Args:
        config: Settings of the job.
        dataset: Name of the dataset's reader; "auto" recognises it.
        data: The dataset's folder; every node of a cluster must see it under this path.
        tokenizers: ``image`` and any of segmentation, depth, pose → folder of the trained tokenizer.
        out: Folder or URL (s3://…, gs://…) of the shards; every node must reach it under this name.
        overwrite: Delete the dataset in `out` first; it is refused where `out` holds anything else.
        retry_failed: Make the shards with failures again.

    Returns:
        The manifest, which is also in `out`/dataset.json.

    Raises:
        UserError: `out` is, holds or is in a folder of samples or a tokenizer, or another process works in it.
        ShardError: Tokenizers and dataset do not fit, `out` holds shards of another plan or anything else, a shard's
            workers kept dying, or more samples failed than `config.max_failure_rate` allows.
        InputError: The dataset or a tokenizer cannot be opened.
    """
    store = absolute(out)
    splits = open_splits(dataset, data)
    dataset = resolve(dataset, data)
    check_apart(store, data=sources_of(splits, data), tokenizer=list(tokenizers.values()))
    with held_store(store, "tokenize"):
        return _tokenize(config, dataset, splits, tokenizers, store, overwrite=overwrite, retry_failed=retry_failed)


def _tokenize(
    config: TokenizeConfig,
    dataset: str,
    splits: Mapping[str, Split],
    tokenizers: Mapping[str, Path],
    store: Store,
    *,
    overwrite: bool,
    retry_failed: bool,
) -> Manifest:
    if config.compile and "RAY_ADDRESS" not in os.environ:  # the nodes of a cluster look for themselves
        check_compiler(_device(config), ShardError)
    models = {name: load_config(folder).model for name, folder in tokenizers.items()}
    _check_fit(models, splits)
    if config.views > 1:
        for samples in splits.values():
            samples.check_mirror([name for name in models if name != IMAGE], "set views = 1")
    planned = None if overwrite else planned_spec(store)
    known = {name: grid.fingerprint for name, grid in _grids(planned).items()} if planned else {}
    found = {name: fingerprint(folder, known.get(name, "")) for name, folder in tokenizers.items()}
    spec = _spec(config, models, found)
    spec.check_rows(config.shard_rows)
    plan = build_plan(
        samples={name: split.keys for name, split in splits.items()},
        source_hashes={name: split.source_hash() for name, split in splits.items()},
        settings={
            **config.plan_settings(_device(config)),
            "dataset": dataset,
            "resolution": models[IMAGE].resolution,
            **_reading(models),
            "spec": spec.to_json(),
        },
        views=config.views,
        shard_rows=config.shard_rows,
        shuffle_seed=config.shuffle_seed,
    )
    if overwrite:
        delete_dataset(store)
    missing = open_job(plan, store, retry_failed=retry_failed)
    if not missing and (store / MANIFEST_FILE).exists():
        made = Manifest.load(store)
        failed = sum(split.failures for split in made.splits.values())
        allowed = config.max_failure_rate * (failed + sum(split.samples for split in made.splits.values()))
        # Tokenizers, plan and card are put back where one was lost.
        whole = all(is_intact(store / name, record, check_hash=False) for name, record in made.files.items())
        if config.license in (UNKNOWN_LICENSE, made.license) and failed <= allowed and whole:
            return made
    _copy_tokenizers(tokenizers, store)
    if missing:
        (store / MANIFEST_FILE).delete()  # what it says may not be true any more while shards are made again
        _make(missing, config, splits=splits, plan=plan, spec=spec, tokenizers=tokenizers, out=store)
    return _finish(plan, spec, config, splits, store)


def _make(
    missing: MissingShards,
    config: TokenizeConfig,
    *,
    splits: Mapping[str, Split],
    plan: Plan,
    spec: ShardSpec,
    tokenizers: Mapping[str, Path],
    out: Store,
) -> None:
    """Make the missing shards on Ray; whatever ends it, no half file stays."""
    plan_hash, events, arrivals = plan.hash, EventLog(out / EVENTS_FILE), _Arrivals(out)

    def task_of(shard: PlannedShard) -> ShardTask:
        samples = splits[shard.split].subset(plan.sample_indices(shard))
        return ShardTask(shard=shard, plan_hash=plan_hash, samples=samples)

    def failures_of(shard: PlannedShard, sidecar: Sidecar) -> dict[str, int]:
        arrivals.expect(shard)
        return dict(Counter(kind_of(failure.reason) for failure in sidecar.failures))

    device, folders = _device(config), {name: path.resolve() for name, path in tokenizers.items()}
    events.write(
        "start",
        plan_hash=plan_hash,
        shards=len(missing),
        samples=sum(shard.samples for shard in missing),
        settings=dataclasses.asdict(config),
    )
    end = "failed"
    try:
        run_shards(
            missing,
            task_of,
            _Worker,
            (config, spec, folders, out, device),
            name="tokenize",
            device=device,
            workers=config.workers,
            threads=config.threads,
            decode_threads=config.decode_threads,
            max_attempts=config.max_attempts,
            shards_at_once=2,
            events=events,
            on_done=failures_of,
        )
        end = "made"
    except (KeyboardInterrupt, SystemExit):
        end = "stopped"
        log.warning("stopped: finished shards are kept, the same command resumes from there")
        raise
    finally:
        events.write(end)
        events.close()
        remove_temps(plan, out)  # of a job that succeeded too: workers may have died in it


class _Arrivals:
    """Shards that workers say they have made must be seen here: else their disk is another, and all work is lost.

    Not at once, for network file systems show new files late.
    """

    def __init__(self, out: Store, patience_s: float = 300.0) -> None:
        self._out, self._patience_s = out, patience_s
        self._unseen: deque[tuple[float, PlannedShard]] = deque()

    def expect(self, shard: PlannedShard) -> None:
        """Remember a shard that is done, and look for those before it.

        Raises:
            ShardError: one has not come for too long.
        """
        if self._out.local is None:
            return
        self._unseen.append((time.monotonic(), shard))
        while self._unseen:
            since_s, first = self._unseen[0]
            if not sidecar_path(self._out, first).exists():
                if time.monotonic() - since_s > self._patience_s:
                    raise ShardError(
                        f"{first.split}/{first.name} was made {self._patience_s:.0f} s ago and is not in {self._out}: "
                        "nodes must share that folder (a network file system), or --out be a URL of an object store"
                    )
                return
            self._unseen.popleft()


def _finish(
    plan: Plan,
    spec: ShardSpec,
    config: TokenizeConfig,
    splits: Mapping[str, Split],
    out: Store,
) -> Manifest:
    """Commit the dataset: all shards are there and enough of their samples are good."""
    about = {
        name: {"folder": _folder_name(name), "fingerprint": grid.fingerprint} for name, grid in _grids(spec).items()
    }
    manifest = Manifest.build(
        plan=plan,
        sidecars=close_job(plan, out, config.max_failure_rate),
        spec=spec,
        class_names=next(iter(splits.values())).class_names,
        tokenizer=about.pop(IMAGE),
        conditions=about,
        license=config.license,
    )
    manifest.save(out)
    return manifest


def _check_fit(models: Mapping[str, ModelConfig], splits: Mapping[str, Split]) -> None:
    """Refuse tokenizers of the wrong modality or size, and conditions that a split lacks."""
    if IMAGE not in models:
        raise ShardError(f"tokenizers has no {IMAGE!r} (found {', '.join(models) or 'none'}): name the image tokenizer")
    for name, model in models.items():
        wanted = "rgb" if name == IMAGE else name
        if model.modality != wanted:
            raise ShardError(f"tokenizer {name!r} encodes {model.modality}, wanted {wanted}")
        if model.resolution != models[IMAGE].resolution:
            sizes = f"{model.resolution} and {models[IMAGE].resolution} pixels"
            raise ShardError(f"tokenizers {name!r} and {IMAGE!r} differ in resolution ({sizes}): train both at one")
        if model.geometry != models[IMAGE].geometry:
            both = f"{model.geometry} and {models[IMAGE].geometry}"
            raise ShardError(f"tokenizers {name!r} and {IMAGE!r} differ in geometry ({both}): train both with one")
        for split, samples in splits.items():
            if name != IMAGE and not any(name in item.conditions for item in samples.items):
                raise ShardError(f"no sample of split {split!r} has {name}: leave its tokenizer out, or make the maps")


def _reading(models: Mapping[str, ModelConfig]) -> dict[str, str]:
    """How pictures become what is encoded, for the plan; what earlier versions did goes without saying."""
    found: dict[str, str] = {}
    if models[IMAGE].geometry != "crop":
        found["geometry"] = models[IMAGE].geometry
    if "depth" in models:
        found["depth"] = "stretched over the whole map"
    return found


def _spec(config: TokenizeConfig, models: Mapping[str, ModelConfig], fingerprints: Mapping[str, str]) -> ShardSpec:
    grids = {
        name: GridSpec(
            height=model.grid, width=model.grid, codebook_size=model.codebook_size, fingerprint=fingerprints[name]
        )
        for name, model in models.items()
    }
    return ShardSpec(image=grids.pop(IMAGE), orders=config.orders, scales=config.scales, conditions=grids)


def _grids(spec: ShardSpec) -> dict[str, GridSpec]:
    """Tokenizer's name → the grid of its codes."""
    return {IMAGE: spec.image, **spec.conditions}


def _device(config: TokenizeConfig) -> Literal["cpu", "cuda"]:
    if config.device != "auto":
        return config.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _folder_name(name: str) -> str:
    return "tokenizer" if name == IMAGE else f"tokenizer-{name}"


@patient
def _copy_tokenizers(tokenizers: Mapping[str, Path], out: Store) -> None:
    """Put config and weights beside the shards, so that whoever has the codes can decode them."""
    for name, source in tokenizers.items():
        target = out / _folder_name(name)
        for file in ("config.json", "model.safetensors"):
            with atomic_write(target / file) as copy, (source / file).open("rb") as original:
                shutil.copyfileobj(original, copy)


class _Worker:
    """The actor: loads the tokenizers once, then encodes shards, reading one while it encodes another."""

    def __init__(
        self,
        config: TokenizeConfig,
        spec: ShardSpec,
        folders: Mapping[str, Path],
        out: Store,
        device: Literal["cpu", "cuda"],
    ) -> None:
        from vqgan.tokenizer import Tokenizer

        fix_arithmetic(config.threads)
        self._config, self._spec, self._out = config, spec, out
        self._lanes = Lanes(config.decode_threads or max(2, assigned_cores()))
        self._tokenizers = {
            name: Tokenizer.load(folder, device=device, precision=config.precision, compiled=config.compile)
            for name, folder in folders.items()
        }

    @property
    def samples_done(self) -> int:
        """Samples done since the process started."""
        return self._lanes.samples_done

    def run(self, task: ShardTask) -> Sidecar:
        """Encode one shard."""
        return encode_shard(
            task,
            tokenizers=self._tokenizers,
            spec=self._spec,
            config=self._config,
            out=self._out,
            lanes=self._lanes,
        )
