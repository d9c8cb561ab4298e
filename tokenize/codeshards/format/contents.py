"""Which files of a folder belong to a dataset: where a job may start, what is saved last, what may be deleted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from codeshards.format.card import card, is_card
from codeshards.format.checked import CACHE_FOLDER, CHECKED_FILES
from codeshards.format.column import ADDABLE
from codeshards.format.errors import ShardError
from codeshards.format.files import FileRecord, read_json
from codeshards.format.manifest import CARD_FILE, MANIFEST_FILE, Manifest, Sidecar, is_intact
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE, SAMPLES_SCHEMA, Plan, differences, load_plan, write_plan
from codeshards.format.schema import CONDITION_NAMES, METADATA_KEY
from codeshards.format.shardfile import SUFFIXES
from codeshards.format.tar import SPEC_MEMBER
from runkit.names import listed
from runkit.places import Store, Where, open_store

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
"""Log of all runs of a job, one event per line; not part of the dataset."""
REPORT_FILE = "report.html"
"""A page about the dataset; not part of it."""
TOKENIZER_FOLDERS = ("tokenizer", *(f"tokenizer-{name}" for name in CONDITION_NAMES))
"""Folders of the tokenizers in a dataset: the image tokenizer, then one for each condition."""

_TOP = (PLAN_FILE, SAMPLES_FILE, MANIFEST_FILE, CARD_FILE, EVENTS_FILE, REPORT_FILE)
_TOKENIZER_FILES = ("config.json", "model.safetensors")
_SHARD = re.compile(
    rf"(?P<split>[^/]+)/shard-(?P<index>\d{{6,}})(?P<suffix>\.json|{'|'.join(map(re.escape, SUFFIXES.values()))})"
)
_CACHED = re.compile(
    rf"{re.escape(CACHE_FOLDER)}/"
    rf"([a-z0-9_]+-(codes|scale|cond|label|view|key)[a-z0-9_]*-[0-9a-f]{{16}}\.npy|{CHECKED_FILES})"
)


def save_or_match(plan: Plan, dataset: Where) -> bool:
    """Write the plan into a dataset's folder, or check that the plan there is equal.

    ``samples.parquet`` with the keys is written first and ``plan.json`` last, so that both exist where the latter does.
    A lost plan is written again.

    Returns:
        True if the folder had an equal plan (the job resumes), False if the plan was written.

    Raises:
        ShardError: The folder has another plan (the message names each setting that differs), or files that do not
            belong to the plan: a dataset requires a folder of its own.
    """
    folder = open_store(dataset)
    if not has_plan(plan, folder):
        write_plan(plan, folder)
        return False
    if not _is_sample_list(folder / SAMPLES_FILE):  # it was lost
        write_plan(plan, folder)
    return True


def has_plan(plan: Plan, folder: Store) -> bool:
    """Return whether a dataset's folder has this plan; False if nothing is there. Nothing is written.

    Raises:
        ShardError: As :func:`save_or_match`.
    """
    if not (folder / PLAN_FILE).exists():
        _check_unused(plan, folder)
        return False
    try:
        found = read_json(folder / PLAN_FILE)
    except ShardError as error:
        raise ShardError(f"{error}. If a job made it, move it away and run again: it is written again") from error
    if found.get("hash") == plan.hash:
        return True
    if not isinstance(found.get("plan"), dict):
        raise ShardError(f"{folder / PLAN_FILE} is not a plan of a job: choose another output folder")
    differing = "\n".join(f"  {line}" for line in differences(found.get("plan"), plan.to_json()))
    raise ShardError(
        f"{folder} holds shards of another plan:\n{differing}\nChoose another output folder, or restore these settings"
    )


def save_dataset(manifest: Manifest, dataset: Where) -> None:
    """Write the card and then the manifest, which completes the dataset. An edited card is kept.

    Raises:
        WriteError: They cannot be written.
    """
    path = open_store(dataset) / CARD_FILE
    if not path.exists() or is_card(path.read_bytes()):
        path.write_bytes(card(manifest.whole).encode())
    else:
        log.warning("%s is not the card that was made for this dataset, and is kept", path)
    manifest.save(dataset)


def delete_dataset(dataset: Where) -> None:
    """Delete every file of a dataset, finished or not, and nothing else; does nothing in an empty folder.

    The files of a dataset are known from its plan (names), its sidecars and its manifest (hashes; in an object store
    only sizes are compared). The plan is deleted last, so that an interrupted deletion can be repeated.

    Raises:
        ShardError: The folder holds other files, or a file was changed since it was written; then nothing is deleted.
    """
    store = open_store(dataset)
    if not (names := check_deletable(store)):
        return
    cached = (f"{CACHE_FOLDER}/{name}" for name in (store / CACHE_FOLDER).listing()) if store.local else ()
    names += [name for name in cached if _CACHED.fullmatch(name)]
    for name in sorted(names, key=_deletion_rank):
        (store / name).delete()
    store.remove_empty_folders()


def check_deletable(store: Store) -> list[str]:
    """Return the names of the files of a dataset, none in an empty folder.

    Raises:
        ShardError: As :func:`delete_dataset`.
    """
    names = _visible_files(store)
    if _is_empty(store, names):
        return []
    if PLAN_FILE not in names:
        raise ShardError(
            f"{store} is not empty and has no {PLAN_FILE}, so it is no dataset of shards ({listed(names)}): choose "
            "another output folder. Nothing was deleted"
        )
    try:
        plan = load_plan(store)
    except ShardError as error:
        raise ShardError(
            f"{store} cannot be overwritten, because its plan does not say what a job has made there ({error}): choose "
            "another output folder. Nothing was deleted"
        ) from error
    foreign = [name for name in names if not _is_planned(name, plan)]
    foreign = foreign or list(_changed(store, plan, names))
    if foreign:
        raise ShardError(
            f"{store} has files that its job did not make or that were changed since ({listed(foreign)}): move "
            "them away, or choose another output folder. Nothing was deleted"
        )
    return names


def _deletion_rank(name: str) -> tuple[int, str]:
    """Sort key: manifest, data files, their sidecars, and last the plan and its samples."""
    last = {MANIFEST_FILE: 0, PLAN_FILE: 3, SAMPLES_FILE: 4}
    return last.get(name, 2 if name.endswith(".json") else 1), name


def _check_unused(plan: Plan, folder: Store) -> None:
    """Refuse a folder without a plan that holds files which this plan has not made."""
    names = _visible_files(folder)
    if _is_empty(folder, names):
        return
    foreign = [name for name in names if not _is_planned(name, plan)]
    started = SAMPLES_FILE in names and _is_sample_list(folder / SAMPLES_FILE)
    if not foreign and (started or any(_is_sidecar_of(plan, folder, name) for name in names)):
        return
    raise ShardError(
        f"{folder} is not empty and holds no {PLAN_FILE} of this job ({listed(foreign or names)}): choose another "
        "output folder, because a dataset requires one of its own"
    )


def _is_empty(store: Store, names: list[str]) -> bool:
    """Whether a folder has no files, or only the sample list that a job writes before its plan."""
    return not names or (names == [SAMPLES_FILE] and _is_sample_list(store / SAMPLES_FILE))


def _visible_files(store: Store) -> list[str]:
    return [name for name in store.files() if not any(part.startswith(".") for part in name.split("/"))]


def _is_planned(name: str, plan: Plan) -> bool:
    """Whether a job of this plan may write a file of this name."""
    folder, _, file = name.rpartition("/")
    if name in _TOP or (folder in TOKENIZER_FOLDERS and file in _TOKENIZER_FILES):
        return True
    found = _SHARD.fullmatch(_within_column(name))
    if not found or found["split"] not in plan.splits:
        return False
    if name != found.string and found["suffix"] not in (".json", SUFFIXES["parquet"]):
        return False
    return int(found["index"]) < plan.shard_count(found["split"])


def _within_column(name: str) -> str:
    """The part of a file's name below the folder of an added column."""
    folder, _, rest = name.partition("/")
    return rest if folder in ADDABLE else name


def _is_sidecar_of(plan: Plan, folder: Store, name: str) -> bool:
    found = _SHARD.fullmatch(name)
    if not found or found["suffix"] != ".json":
        return False
    try:
        return Sidecar.load(folder / name).plan_hash == plan.hash
    except ShardError:
        return False


def _changed(store: Store, plan: Plan, names: list[str]) -> Iterator[str]:
    """Files of a dataset whose content differs from the record."""
    there, recorded = set(names), dict[str, FileRecord]()
    if MANIFEST_FILE in there:
        try:
            recorded |= Manifest.load(store).files
        except ShardError:
            yield MANIFEST_FILE
    elif CARD_FILE in there and not is_card((store / CARD_FILE).read_bytes()):
        yield CARD_FILE
    columns = sorted({name.partition("/")[0] for name in names} & {*ADDABLE})
    for prefix, shard in (
        (prefix, shard) for prefix in ("", *(f"{c}/" for c in columns)) for shard in plan.each_shard()
    ):
        stem = f"{prefix}{shard.split}/{shard.name}"
        sidecar, data = f"{stem}.json", {f"{stem}{suffix}" for suffix in SUFFIXES.values()} & there
        if sidecar in there:
            try:
                files = Sidecar.load(store / sidecar).files
            except ShardError:
                yield sidecar
                continue
            recorded |= {f"{prefix}{shard.split}/{name}": record for name, record in files.items()}
        # A shard whose job was killed before its sidecar has no recorded hash, but identifies itself.
        yield from (name for name in sorted(data - recorded.keys()) if not _is_shard(store / name))
    for name, record in recorded.items():
        if name in there and not is_intact(store / name, record, check_hash=store.local is not None):
            yield name


def _is_shard(store: Store) -> bool:
    """Whether a file starts like a shard."""
    try:
        with store.open() as file:
            if store.name.endswith(".tar"):
                return file.read(len(SPEC_MEMBER)) == SPEC_MEMBER.encode()
            return METADATA_KEY in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _is_sample_list(store: Store) -> bool:
    """Whether a file is the sample list that a job writes before its plan."""
    try:
        with store.open() as file:
            return bool(pq.read_schema(file).equals(SAMPLES_SCHEMA))
    except (OSError, pa.ArrowException):
        return False
