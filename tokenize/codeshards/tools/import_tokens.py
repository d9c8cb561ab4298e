"""Make shards of a published set of tokens. Requires no pixels.

Axes: A views of an image, H×W the grid of codes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from codeshards.config import ImportConfig
from codeshards.format.contents import save_dataset, save_or_match
from codeshards.format.errors import ShardError
from codeshards.format.manifest import Failure, Manifest, Sidecar, finished_sidecar, sidecar_path
from codeshards.format.orders import defined_orders
from codeshards.format.plan import Plan, PlannedShard, build_plan
from codeshards.format.schema import NO_TOKENIZER, GridSpec, ShardSpec, row_key
from codeshards.format.shardfile import write_shard
from codeshards.job.resume import close_job, locked_store, remove_temps
from codeshards.job.tokenizers import copy_tokenizers
from codeshards.tools.tokensets import TokenSet, open_token_set
from runkit.folders import check_apart
from runkit.hub import source_of
from runkit.places import Store, Where, open_store
from runkit.progress import tqdm
from vqgan.checkpoint import fingerprint, load_config

_PROBED = 100
"""Images that are tried for the number of views and codes, so that one broken image is no reason to stop."""


def import_tokens(source: Path, out: Where, config: ImportConfig, *, tokenizer: Path | None = None) -> Manifest:
    """Write the images of a set of tokens as a dataset; an interrupted import resumes.

    The memory holds the keys of all images and the rows of one shard. A broken image costs its rows and is named in the
    sidecar. Without a tokenizer, the fingerprint of the codes says so and names the source.

    Args:
        source: The file or folder.
        out: Folder or URL to write: empty, or the same import, unfinished.
        config: How it is read and divided.
        tokenizer: Folder of the tokenizer of the codes; it is copied into the dataset.

    Raises:
        UserError: `out` is, holds or is in the source, or another process uses it.
        ShardError: The source is no set of tokens, or does not fit the tokenizer; too many images failed; or `out`
            holds something else.
        WriteError: `out` cannot be written.
    """
    check_apart(out, source=source, tokenizer=[tokenizer] if tokenizer else [])
    kind, tokens = open_token_set(Path(source), config.kind, config.lines)
    views, length = _shape(tokens, source)
    image = _grid(config, tokenizer, length, f"{NO_TOKENIZER}{kind} tokens of {Path(source).name}")
    spec = ShardSpec(image=image, orders=config.orders or defined_orders(image.height, image.width))
    plan, indices = _plan(config, kind, tokens, spec, views)
    with locked_store(out, "shards-import"):
        store = open_store(out)
        save_or_match(plan, store)
        remove_temps(plan, store)
        about: dict[str, Any] = {"fingerprint": image.fingerprint}
        if tokenizer:
            copy_tokenizers({"image": tokenizer}, store)
            about |= {"folder": "tokenizer"} | ({"source": found} if (found := source_of(tokenizer.resolve())) else {})
        _write_shards(plan, tokens, indices, spec, config, store)
        sidecars = close_job(plan, store, config.max_failure_rate)
        manifest = Manifest.build(plan=plan, sidecars=sidecars, spec=spec, tokenizer=about, license=config.license)
        save_dataset(manifest, store)
    return manifest


def _shape(tokens: TokenSet, source: Path) -> tuple[int, int]:
    """Views and codes of the first image that can be read."""
    for index in range(min(_PROBED, len(tokens.keys))):
        try:
            views, length = tokens.read(index)[0].shape
            return views, length
        except ValueError as error:
            reason = error
    raise ShardError(f"{source}: none of the first images can be read ({reason})")


def _grid(config: ImportConfig, tokenizer: Path | None, length: int, placeholder: str) -> GridSpec:
    side = math.isqrt(length)
    height, width, size = config.height or side, config.width or config.height or side, config.codebook_size
    mark = placeholder
    if tokenizer:
        model = load_config(tokenizer).model
        if model.modality != "rgb":
            raise ShardError(f"{tokenizer} encodes {model.modality}, expected rgb: give the tokenizer of the codes")
        (height, width), mark = model.grid, fingerprint(tokenizer)
        if size not in (0, model.codebook_size):
            raise ShardError(f"codebook_size is {size}, but the tokenizer has {model.codebook_size} entries")
        size = model.codebook_size
    if not size:
        raise ShardError("codebook_size is 0: give the tokenizer of the codes, or the number of its codebook's entries")
    if height * width != length:
        raise ShardError(f"an image has {length} codes, not {height}×{width}: give height and width, or its tokenizer")
    return GridSpec(height=height, width=width, codebook_size=size, fingerprint=mark)


def _plan(
    config: ImportConfig, kind: str, tokens: TokenSet, spec: ShardSpec, views: int
) -> tuple[Plan, dict[str, list[int]]]:
    """The plan, and split → indices of its images in source order."""
    images = range(len(tokens.keys))
    held_out = images[config.val_every - 1 :: config.val_every]
    if not held_out:
        raise ShardError(f"val_every is {config.val_every}: there are only {len(images)} images; use at most that")
    indices = {"train": [i for i in images if (i + 1) % config.val_every], "val": list(held_out)}
    spec.check_rows(config.shard_rows)
    plan = build_plan(
        samples={split: [tokens.keys[index] for index in found] for split, found in indices.items()},
        source_hashes=dict.fromkeys(indices, tokens.source_hash),
        settings={
            "imported": kind, "val_every": config.val_every, "formats": list(config.formats), "spec": spec.to_json(),
        },
        views=views,
        shard_rows=config.shard_rows,
        shuffle_seed=config.shuffle_seed,
    )  # fmt: skip
    return plan, indices


def _write_shards(
    plan: Plan, tokens: TokenSet, indices: dict[str, list[int]], spec: ShardSpec, config: ImportConfig, out: Store
) -> None:
    plan_hash = plan.hash
    for shard in tqdm(plan.shards, desc="import", unit="shard", disable=None):
        if finished_sidecar(out, plan_hash, shard):
            continue
        chosen = [indices[shard.split][position] for position in plan.sample_indices(shard)]
        table, failures = _table(tokens, chosen, spec, plan.views)
        sidecar_path(out, shard).delete()
        files = write_shard(out, shard, table, config.formats)
        _sidecar(shard, plan_hash, table.num_rows, failures, files).save(sidecar_path(out, shard))


def _sidecar(shard: PlannedShard, plan_hash: str, rows: int, failures: list[Failure], files: Any) -> Sidecar:
    return Sidecar(
        plan_hash=plan_hash, split=shard.split, index=shard.index, rows=rows, samples=shard.samples - len(failures),
        failures=tuple(failures), files=files,
    )  # fmt: skip


def _table(tokens: TokenSet, chosen: list[int], spec: ShardSpec, views: int) -> tuple[Any, list[Failure]]:
    """The rows of these images, and those that failed."""
    grid, failures = spec.image, list[Failure]()
    keys, labels, codes = list[str](), list[int](), [np.empty((0, grid.height, grid.width), grid.dtype)]
    for index in chosen:
        try:
            codes_AL, label = tokens.read(index)
            if codes_AL.shape != (views, grid.length):
                raise ValueError(f"has codes {codes_AL.shape}, expected ({views}, {grid.length})")
            if codes_AL.min() < 0 or codes_AL.max() >= grid.codebook_size:
                raise ValueError(f"codes {codes_AL.min()}..{codes_AL.max()}: the codebook has {grid.codebook_size}")
            if not 0 <= label < 1 << 31:
                raise ValueError(f"label {label}: expected 0 to 2147483647")
        except ValueError as error:
            failures.append(Failure(tokens.keys[index], str(error)))
            continue
        keys += [row_key(tokens.keys[index], view) for view in range(views)]
        labels += [label] * views
        codes.append(codes_AL.astype(grid.dtype).reshape(views, grid.height, grid.width))
    numbers = np.tile(np.arange(views), len(keys) // views)
    return spec.rows_to_table(keys, numbers, np.array(labels, np.int64), np.concatenate(codes)), failures
