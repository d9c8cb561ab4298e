"""Verify that a dataset is complete and unchanged. Requires no pixels; detects every flipped byte."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codeshards.format.checked import CACHE_FOLDER, CheckedShards
from codeshards.format.contents import EVENTS_FILE, REPORT_FILE
from codeshards.format.errors import ShardError
from codeshards.format.files import sha256_file
from codeshards.format.manifest import CARD_FILE, MANIFEST_FILE, Manifest, is_intact
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE, Plan, PlannedShard, load_plan
from codeshards.tools.verify_added import added_problems
from codeshards.tools.verify_shards import Expected, ShardToCheck, check_shards
from runkit.places import Store, Where, absolute, open_store

UNCOVERED = (REPORT_FILE, EVENTS_FILE, ".gitattributes")
"""Files beside a dataset that differ between runs, or that a hub adds."""
_PLAN_FILES = (PLAN_FILE, SAMPLES_FILE)


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
    earlier: int = 0
    """Number of shards that an earlier call has found intact and that were not read again."""


def verify(
    dataset: Where,
    *,
    fingerprint_of: Callable[[Path, str], str] | None = None,
    workers: int = 1,
    resume: bool = False,
) -> Verification:
    """Check every byte of a dataset.

    Checks for unexpected files and folders; hashes, sizes and row counts; ranges of codes and labels; keys against the
    plan (which makes them unique); all orders against each other; Parquet against tar where both exist; and that plan,
    sidecars and manifest agree.

    Args:
        dataset: A dataset whose job has finished.
        fingerprint_of: Function of a tokenizer's folder and the recorded fingerprint that returns the actual
            fingerprint; None skips this check.
        workers: Processes on Ray, on this machine or the cluster RAY_ADDRESS, whose nodes must see the dataset; 0: one
            per core, 1: this process, without Ray.
        resume: Do not read the shards again that an interrupted call, or one that found problems elsewhere, found
            intact, unless their files have changed since. They are recorded in the folder of cached columns until the
            whole dataset is found intact.

    Raises:
        ShardError: There is no dataset, the object store cannot be read, or a shard's workers died repeatedly.
        UserError: Ray cannot start, or has died.
    """
    if workers < 0:
        raise ShardError(f"workers is {workers}: choose 1 or more, or 0 for one per core")
    store = absolute(dataset) if workers != 1 else open_store(dataset)
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
    record = CheckedShards(store, "verified", sha256_file(store / MANIFEST_FILE)).read() if resume else None
    of_shards, earlier = _check_shards(store, manifest, plan, record, workers)
    problems += of_shards
    problems += added_problems(store, manifest, plan)
    if record is not None and not problems:
        record.delete()
    entries = manifest.entries.values()
    return Verification(
        uncovered=tuple(name for name in UNCOVERED if name in found),
        problems=tuple(dict.fromkeys(problems)),
        files=1 + len(manifest.files) + sum(1 + len(entry.files) + 2 * len(manifest.added) for entry in entries),
        rows=sum(entry.rows for entry in entries),
        earlier=earlier,
    )


def _check_shards(
    store: Store, manifest: Manifest, plan: Plan, record: CheckedShards | None, workers: int
) -> tuple[list[str], int]:
    """The problems of all shards in planned order, and the number of shards that the record knows to be intact."""
    entries, problems = manifest.entries, dict[PlannedShard, list[str]]()
    listings = {split: (store / split).listing() if record else {} for split in plan.splits}
    shards = [shard for shard in plan.each_shard() if (shard.split, shard.name) in entries]
    waiting = [shard for shard in shards if not (record and record.get(shard, listings[shard.split]))]

    def task_of(shard: PlannedShard) -> ShardToCheck:
        return ShardToCheck(shard, entries[shard.split, shard.name], plan.sample_keys(shard))

    def on_done(shard: PlannedShard, found: list[str]) -> None:
        if found:
            problems[shard] = found
        elif record:
            files = (f"{shard.name}.json", *entries[shard.split, shard.name].files)
            record.add(shard, files, listings[shard.split])

    spec, classes = manifest.spec, len(manifest.class_names)
    expected = Expected(store=store, spec=spec, plan_hash=manifest.plan_hash, views=plan.views, classes=classes)
    try:
        check_shards(waiting, task_of, expected, on_done, workers)
    finally:
        if record:
            record.close()
    return [problem for shard in waiting for problem in problems.get(shard, ())], len(shards) - len(waiting)


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
        return [name for name in store.files() if not name.startswith(f"{CACHE_FOLDER}/")]
    found = []
    for place, folders, names in os.walk(store.local):
        within = os.path.relpath(place, store.local)
        prefix = "" if within == os.curdir else f"{within}/"
        if not prefix and CACHE_FOLDER in folders:
            folders.remove(CACHE_FOLDER)
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
