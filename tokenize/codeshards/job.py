"""The tokenize job: a dataset and tokenizers in, token shards out.

Whatever dies on the way, a shard is either whole (its sidecar is there) or made again, and its bytes depend on the
plan alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from codeshards.config import TokenizeConfig
from codeshards.encode import IMAGE, ShardTask, encode_shard, fix_arithmetic
from codeshards.format import (
    MANIFEST_FILE,
    GridSpec,
    Manifest,
    PlannedShard,
    ShardError,
    ShardSpec,
    atomic_write,
    build_plan,
)
from codeshards.pool import close_job, open_job, run_shards
from vqgan.checkpoint import fingerprint, load_config
from vqgan.config import ModelConfig
from vqgan.datasets import Split, open_splits


def tokenize(
    config: TokenizeConfig,
    *,
    dataset: str,
    data: Path,
    tokenizers: Mapping[str, Path],
    out: Path,
    overwrite: bool = False,
) -> Manifest:
    """Encode a dataset into token shards, or finish a job that was interrupted.

    Args:
        config: Settings of the job.
        dataset: Name of the dataset's reader.
        data: The dataset's folder; every node of a cluster must see it under this path.
        tokenizers: ``image`` and any of segmentation, depth, pose → folder of the trained tokenizer.
        out: Folder of the shards; every node must see it under this path.
        overwrite: Delete what `out` holds first.

    Returns:
        The manifest, which is also in `out`/dataset.json.

    Raises:
        ShardError: Tokenizers and dataset do not fit, `out` holds shards of another plan, a shard's workers kept
            dying, or more samples failed than `config.max_failure_rate` allows.
        InputError: The dataset or a tokenizer cannot be opened.
    """
    splits = open_splits(dataset, data)
    models = {name: load_config(folder).model for name, folder in tokenizers.items()}
    _check_fit(models, splits)
    spec = _spec(config, models, {name: fingerprint(folder) for name, folder in tokenizers.items()})
    plan = build_plan(
        samples={name: split.keys for name, split in splits.items()},
        source_hashes={name: split.source_hash() for name, split in splits.items()},
        settings={
            **config.plan_settings(_device(config)),
            "dataset": dataset,
            "resolution": models[IMAGE].resolution,
            "spec": spec.to_json(),
        },
        views=config.views,
        shard_rows=config.shard_rows,
        shuffle_seed=config.shuffle_seed,
    )
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    missing = open_job(plan, out)
    if not missing and (out / MANIFEST_FILE).is_file():
        return Manifest.load(out)
    _copy_tokenizers(tokenizers, out)
    if missing:
        plan_hash = plan.hash

        def task_of(shard: PlannedShard) -> ShardTask:
            samples = splits[shard.split].subset(plan.sample_indices(shard))
            return ShardTask(shard=shard, plan_hash=plan_hash, samples=samples)

        device, folders = _device(config), {name: path.resolve() for name, path in tokenizers.items()}
        run_shards(
            missing,
            task_of,
            _Worker,
            (config, spec, folders, out.resolve(), device),
            name="tokenize",
            device=device,
            workers=config.workers,
            threads=config.threads,
            decode_threads=config.decode_threads,
            max_attempts=config.max_attempts,
        )
    sidecars = close_job(plan, out, config.max_failure_rate)
    classes = next(iter(splits.values())).class_names
    about = {
        name: {"folder": _folder_name(name), "fingerprint": fingerprint(path)} for name, path in tokenizers.items()
    }
    manifest = Manifest.build(
        plan=plan,
        sidecars=sidecars,
        spec=spec,
        class_names=classes,
        tokenizer=about.pop(IMAGE),
        conditions=about,
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
        for split, samples in splits.items():
            if name != IMAGE and not any(name in item.conditions for item in samples.items):
                raise ShardError(f"no sample of split {split!r} has {name}: leave its tokenizer out, or make the maps")


def _spec(config: TokenizeConfig, models: Mapping[str, ModelConfig], fingerprints: Mapping[str, str]) -> ShardSpec:
    grids = {
        name: GridSpec(
            height=model.grid, width=model.grid, codebook_size=model.codebook_size, fingerprint=fingerprints[name]
        )
        for name, model in models.items()
    }
    return ShardSpec(image=grids.pop(IMAGE), orders=config.orders, conditions=grids)


def _device(config: TokenizeConfig) -> Literal["cpu", "cuda"]:
    if config.device != "auto":
        return config.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _folder_name(name: str) -> str:
    return "tokenizer" if name == IMAGE else f"tokenizer-{name}"


def _copy_tokenizers(tokenizers: Mapping[str, Path], out: Path) -> None:
    """Put config and weights beside the shards, so that whoever has the codes can decode them."""
    for name, source in tokenizers.items():
        target = out / _folder_name(name)
        target.mkdir(exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            with atomic_write(target / file) as copy, (source / file).open("rb") as original:
                shutil.copyfileobj(original, copy)


class _Worker:
    """The actor: loads the tokenizers once, then encodes one shard after another."""

    def __init__(
        self,
        config: TokenizeConfig,
        spec: ShardSpec,
        folders: Mapping[str, Path],
        out: Path,
        device: Literal["cpu", "cuda"],
    ) -> None:
        from vqgan.tokenizer import Tokenizer

        fix_arithmetic(config.threads)
        self._config, self._spec, self._out = config, spec, out
        self._tokenizers = {
            name: Tokenizer.load(folder, device=device, precision=config.precision) for name, folder in folders.items()
        }

    def run(self, task: ShardTask) -> int:
        """Encode one shard; returns its rows."""
        sidecar = encode_shard(task, tokenizers=self._tokenizers, spec=self._spec, config=self._config, out=self._out)
        return sidecar.rows
