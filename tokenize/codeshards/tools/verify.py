"""Verify that a dataset is complete and unchanged. Requires no pixels; detects every flipped byte."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from codeshards.format.contents import EVENTS_FILE, REPORT_FILE
from codeshards.format.entries import ShardEntry
from codeshards.format.errors import ShardError
from codeshards.format.manifest import CARD_FILE, MANIFEST_FILE, Manifest, Sidecar, is_intact, sidecar_path
from codeshards.format.orders import inverse
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE, Plan, PlannedShard, load_plan
from codeshards.format.schema import ShardSpec, column_to_numpy, row_key
from codeshards.format.shardfile import read_table
from codeshards.tools.verify_added import added_problems
from runkit.codes import Codes
from runkit.places import Store, Where, open_store

UNCOVERED = (REPORT_FILE, EVENTS_FILE, ".gitattributes")
"""Files beside a dataset that differ between runs, or that a hub adds."""
_PLAN_FILES = (PLAN_FILE, SAMPLES_FILE)
_CACHE = ".cache"
"""Folder in which loaders keep decoded columns, under names with the fingerprint of the dataset."""
_THREADS = 4  # hashing and decoding release the GIL; each thread holds a shard in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Result of :func:`verify`."""

    problems: tuple[str, ...]
    """Problems, each with its file; empty: the dataset is as it was written."""
    files: int
    """Number of files whose bytes were checked."""
    rows: int
    """Number of rows whose codes were checked."""
    uncovered: tuple[str, ...] = ()
    """Existing files that no hash covers: they are about the job, not about the codes."""


def verify(dataset: Where, *, fingerprint_of: Callable[[Path, str], str] | None = None) -> Verification:
    """Check every byte of a dataset.

    Checks for unexpected files and folders; hashes, sizes and row counts; ranges of codes and labels; keys against the
    plan (which makes them unique); all orders against each other; Parquet against tar where both exist; and that plan,
    sidecars and manifest agree.

    Args:
        dataset: A dataset whose job has finished.
        fingerprint_of: Function of a tokenizer's folder and the recorded fingerprint that returns the actual
            fingerprint; None skips this check.

    Raises:
        ShardError: There is no dataset, or the object store cannot be read.
    """
    store = open_store(dataset)
    if not (store / MANIFEST_FILE).exists():
        Manifest.load(store)  # raises with the remedy
    try:
        manifest = Manifest.load(store)
    except ShardError as error:
        return Verification(problems=(str(error),), files=1, rows=0)
    found = _all_files(store)
    problems = list(_file_problems(store, manifest))
    plan_is_bad = any(name in problem.removeprefix(str(store)) for problem in problems for name in _PLAN_FILES)
    problems += _stray_problems(store, manifest, found)
    if plan_is_bad:  # the other checks compare with it
        return Verification(problems=tuple(problems), files=1 + len(manifest.files), rows=0)
    if fingerprint_of is not None:
        problems += _tokenizer_problems(store, manifest, fingerprint_of, problems)
    plan = load_plan(store)
    problems += _plan_problems(store, manifest, plan)
    entries = manifest.entries
    shards = [shard for shard in plan.shards if (shard.split, shard.name) in entries]

    def check(shard: PlannedShard) -> list[str]:
        return list(_shard_problems(store, manifest, plan, shard, entries[shard.split, shard.name]))

    with ThreadPoolExecutor(_THREADS) as pool:
        problems += [problem for found in pool.map(check, shards) for problem in found]
    problems += added_problems(store, manifest, plan)
    data_files = sum(len(entry.files) for entry in entries.values()) + 2 * len(manifest.added) * len(shards)
    return Verification(
        uncovered=tuple(name for name in UNCOVERED if name in found),
        problems=tuple(dict.fromkeys(problems)),
        files=1 + len(manifest.files) + len(shards) + data_files,
        rows=sum(entry.rows for entry in entries.values()),
    )


def _file_problems(store: Store, manifest: Manifest) -> Iterator[str]:
    """Problems of the files that are neither shards nor sidecars."""
    for name in (CARD_FILE, PLAN_FILE, SAMPLES_FILE):
        if name not in manifest.files:
            yield f"{store / MANIFEST_FILE} does not list {name}"
    for name, record in manifest.files.items():
        try:
            intact = is_intact(store / name, record)
        except (ShardError, OSError) as error:
            yield f"{store / name}: {error}"
            continue
        if not intact:
            yield f"{store / name} is missing, or its sha256 is not the one of {MANIFEST_FILE}"


def _all_files(store: Store) -> list[str]:
    """All files below a dataset, including hidden ones, and empty folders, marked by a final slash."""
    if store.local is None:
        return [name for name in store.files() if not name.startswith(f"{_CACHE}/")]
    found = []
    for place, folders, names in os.walk(store.local):
        within = os.path.relpath(place, store.local)
        prefix = "" if within == os.curdir else f"{within}/"
        if not prefix and _CACHE in folders:
            folders.remove(_CACHE)
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [prefix + name for name in [*names, *links]]
        if not names and not folders:
            found.append(prefix)
    return sorted(found)


def _stray_problems(store: Store, manifest: Manifest, found: list[str]) -> Iterator[str]:
    """Unexpected files: those who read a folder by a pattern would read them too."""
    known = {MANIFEST_FILE, CARD_FILE, PLAN_FILE, SAMPLES_FILE, *manifest.files, *UNCOVERED}
    columns = {"": manifest.splits, **{f"{column.spec.name}/": column.splits for column in manifest.added}}
    for prefix, splits in columns.items():
        for split, entries in splits.items():
            names = [name for entry in entries.shards for name in (*entry.files, f"{entry.name}.json")]
            known |= {f"{prefix}{split}/{name}" for name in names}
    own_folders = {*manifest.splits, *(folder.partition("/")[0] for folder in manifest.tokenizer_folders)}
    own_folders |= {prefix.rstrip("/") for prefix in columns if prefix}
    strays = Counter[str]()
    for name in found:
        top, slash, _ = name.partition("/")
        if not name or name in known or name.rstrip("/") in own_folders or _is_lock(name):
            continue
        strays[f"{top}/" if slash and top not in own_folders else name] += not name.endswith("/")
    for name, files in strays.items():
        count = f" ({files} files)" if name.endswith("/") else ""
        yield f"{store / name.rstrip('/')}{count} is not part of the dataset"


def _is_lock(name: str) -> bool:
    """Whether a file is the lock of a command on the dataset's folder."""
    return name.startswith(".") and name.endswith(".lock") and "/" not in name


def _tokenizer_problems(
    store: Store, manifest: Manifest, fingerprint_of: Callable[[Path, str], str], problems: list[str]
) -> Iterator[str]:
    """Tokenizers with another fingerprint, among those whose files have no problems."""
    whole = manifest.whole
    grids = {"image": whole.spec.image, **whole.spec.conditions}
    for name, about in {"image": whole.tokenizer, **whole.conditions}.items():
        if "folder" not in about:
            continue
        place = store / about["folder"]
        if any(problem.startswith(f"{place}/") for problem in problems):
            continue
        try:
            with place.as_folder() as folder:
                found = fingerprint_of(folder, grids[name].fingerprint)
        except (OSError, ValueError) as error:
            yield f"{place} cannot be read as a tokenizer ({error})"
            continue
        if found != grids[name].fingerprint:
            yield f"{place} has fingerprint {found}, the codes were made by {grids[name].fingerprint}"


def _plan_problems(store: Store, manifest: Manifest, plan: Plan) -> Iterator[str]:
    path = store / PLAN_FILE
    if plan.hash != manifest.plan_hash:
        yield f"{path} has hash {plan.hash}, {MANIFEST_FILE} says {manifest.plan_hash}"
    if plan.settings.get("spec", manifest.spec.to_json()) != manifest.spec.to_json():
        yield f"{path} plans other columns than {MANIFEST_FILE} has"
    if manifest.tokenizer.get("fingerprint", manifest.spec.image.fingerprint) != manifest.spec.image.fingerprint:
        yield f"{store / MANIFEST_FILE}: fingerprint of the tokenizer and of the spec differ"
    planned = {split: [s.name for s in plan.shards if s.split == split] for split in plan.splits}
    listed = {split: [entry.name for entry in found.shards] for split, found in manifest.splits.items()}
    if planned != listed:
        yield f"{store / MANIFEST_FILE} lists other shards than {PLAN_FILE} plans"
    for split, found in manifest.splits.items():
        if found.rows != sum(entry.rows for entry in found.shards):
            yield f"{store / MANIFEST_FILE}: the rows of the shards of {split} do not add up to {found.rows}"


def _shard_problems(
    store: Store, manifest: Manifest, plan: Plan, shard: PlannedShard, entry: ShardEntry
) -> Iterator[str]:
    """Problems of one shard: its sidecar, the bytes of its files, and their contents."""
    path = sidecar_path(store, shard)
    if not path.exists():
        yield f"{path} is missing, or no file"
        return
    try:
        sidecar = Sidecar.load(path)
    except ShardError as error:
        yield str(error)
        return
    made = (sidecar.plan_hash, sidecar.split, sidecar.index, sidecar.rows, sidecar.files)
    if made != (manifest.plan_hash, shard.split, shard.index, entry.rows, entry.files):
        yield f"{path} and {MANIFEST_FILE} differ about this shard"
        return
    failed = {failure.key for failure in sidecar.failures}
    keys = [row_key(key, v) for key in plan.sample_keys(shard) if key not in failed for v in range(plan.views)]
    tables: dict[Store, pa.Table] = {}
    for name, record in entry.files.items():
        file = store / shard.split / name
        try:
            if not is_intact(file, record):
                yield f"{file} is missing, or its sha256 is not the one of {MANIFEST_FILE}"
                continue
            tables[file] = read_table(file, manifest.spec, entry.rows)
        except (ShardError, OSError) as error:  # a failing disk is a problem to report
            yield f"{file}: {error}"
            continue
        for problem in _table_problems(tables[file], manifest, plan, keys):
            yield f"{file}: {problem}"
    if any(not table.equals(next(iter(tables.values()))) for table in tables.values()):
        yield f"{' and '.join(map(str, tables))} hold different rows"


def _table_problems(table: pa.Table, manifest: Manifest, plan: Plan, keys: list[str]) -> Iterator[str]:
    spec = manifest.spec
    columns = {name: column_to_numpy(table.column(name).combine_chunks()) for name in spec.column_names}
    if columns["key"].tolist() != keys:
        yield "keys are not those of the plan without the failures"
    if columns["view"].tolist() != [row % plan.views for row in range(len(keys))]:
        yield f"views are not 0 … {plan.views - 1} for each sample in turn"
    if manifest.class_names and columns["label"].max(initial=0) >= len(manifest.class_names):
        yield f"label {columns['label'].max()} is beyond the {len(manifest.class_names)} classes"
    for name, grid in spec.code_grids.items():
        if columns[name].max(initial=0) >= grid.codebook_size:
            yield f"{name} has code {columns[name].max()}, beyond the codebook of {grid.codebook_size}"
    rasters = {name: _raster(columns, spec, name) for name in spec.orders}
    first = spec.orders[0]
    for name, raster_NL in rasters.items():
        wrong = np.flatnonzero((raster_NL != rasters[first]).any(1))
        if len(wrong):
            key = columns["key"][wrong[0]]
            yield f"codes_{name} and codes_{first} show different pictures in {len(wrong)} rows, first {key!r}"


def _raster(columns: dict[str, Any], spec: ShardSpec, name: Any) -> Codes:
    return np.asarray(columns[f"codes_{name}"][:, inverse(name, spec.image.height, spec.image.width)])
