"""Sidecars, one beside each shard, and the manifest ``dataset.json``, which completes a dataset.

Both contain a hash of themselves, and together the hashes of all other files, so that every changed byte is detected.

A sidecar is renamed into place after its shard's files, so that a shard with a sidecar is complete. The manifest is
written last. It is made from the plan and the sidecars alone, without times, so that its bytes do not depend on which
process encoded what and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from codeshards.format.column import with_columns
from codeshards.format.entries import (
    AddedColumn,
    ShardEntry,
    SplitEntry,
    files_from_json,
    files_json,
    split_from_json,
    split_json,
)
from codeshards.format.errors import ShardError
from codeshards.format.files import FileRecord, file_record, read_sealed_json, sha256_file, write_sealed_json
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE, Plan, PlannedShard
from codeshards.format.schema import FORMAT_VERSION, ShardSpec
from codeshards.format.shardfile import SHARD_FORMATS, ShardFormat, format_of
from runkit.names import plain_name, plain_path
from runkit.places import Listed, Store, Where, open_store

MANIFEST_FILE = "dataset.json"
CARD_FILE = "README.md"
UNKNOWN_LICENSE = "unknown"


class Failure(NamedTuple):
    """A sample that could not be encoded."""

    key: str
    """Key of the sample."""
    reason: str
    """What went wrong, as a readable message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """The result of one planned shard."""

    plan_hash: str
    """Hash of the plan that the shard was made from."""
    split: str
    """Split of the shard."""
    index: int
    """Number of the shard in its split."""
    rows: int
    """Rows written: encoded samples times views."""
    samples: int
    """Samples encoded, without failures."""
    failures: tuple[Failure, ...] = ()
    """Samples that failed, each with its reason; samples + failures = planned samples."""
    files: dict[str, FileRecord]
    """File name → sha256 and size, for each data file of the shard."""
    durations_s: dict[str, float] = field(default_factory=dict)
    """Step → seconds. Not in the manifest, because it differs between runs."""

    def save(self, path: Where) -> None:
        """Write the sidecar atomically; call it after the shard's data files are in place."""
        value = {
            name: getattr(self, name) for name in ("plan_hash", "split", "index", "rows", "samples", "durations_s")
        }
        value["failures"] = [failure._asdict() for failure in self.failures]
        value["files"] = files_json(self.files)
        write_sealed_json(path, value)

    @classmethod
    def load(cls, path: Where, *, check_name: Callable[[str], object] | None = None) -> Sidecar:
        """Read a sidecar.

        Args:
            path: The file.
            check_name: Raises for a file name that leads out of the folder; None allows plain names only.

        Raises:
            ShardError: It is missing, changed, or not a sidecar.
        """
        value = read_sealed_json(path)
        try:
            plain_name(value["split"], path, ShardError)
            for name in value["files"]:
                check_name(name) if check_name else plain_name(name, path, ShardError)
            failures = tuple(Failure(**failure) for failure in value.pop("failures"))
            return cls(**{**value, "failures": failures, "files": files_from_json(value["files"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{path} is not a sidecar of a shard ({error!r}). Delete it and resume the job") from error


def sidecar_path(dataset: Where, shard: PlannedShard) -> Store:
    """``DATASET/<split>/shard-000000.json``."""
    return shard.path(dataset, ".json")


def finished_sidecar(
    dataset: Where,
    plan_hash: str,
    shard: PlannedShard,
    *,
    listing: Mapping[str, Listed] | None = None,
    check_hash: bool = False,
    check_name: Callable[[str], object] | None = None,
) -> Sidecar | None:
    """The sidecar of a shard that was made from this plan and whose data files have the recorded sizes, else None.

    Args:
        dataset: Folder of the dataset.
        plan_hash: Hash of the plan, given because it takes time to compute.
        shard: The shard.
        listing: The files in the split's folder; None looks up each file.
        check_hash: Also read the data files and compare their sha256.
        check_name: As :meth:`Sidecar.load`.
    """
    folder = open_store(dataset) / shard.split
    name = f"{shard.name}.json"
    if listing is not None and name not in listing:
        return None
    try:
        sidecar = Sidecar.load(folder / name, check_name=check_name)
    except ShardError:
        return None  # missing or damaged: the shard must be made again
    if (sidecar.plan_hash, sidecar.split, sidecar.index) != (plan_hash, shard.split, shard.index):
        return None
    for name, record in sidecar.files.items():
        found = listing[name].bytes if listing and name in listing else (folder / name).size()
        if found != record.bytes or (check_hash and sha256_file(folder / name) != record.sha256):
            return None
    return sidecar


def is_intact(store: Store, record: FileRecord, check_hash: bool = True) -> bool:
    """Whether a file exists with the recorded size and, if `check_hash`, the recorded sha256."""
    return store.size() == record.bytes and (not check_hash or sha256_file(store) == record.sha256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """``dataset.json``: the contents of a finished dataset."""

    spec: ShardSpec
    """Columns of every shard."""
    plan_hash: str
    """Hash of the plan that the shards were made from."""
    splits: dict[str, SplitEntry]
    """Split → its shards and counts."""
    class_names: tuple[str, ...] = ()
    """Name of each label; empty where the dataset has no classes."""
    label_names: tuple[str, ...] = ()
    """Name of each label of the masks in ``cond_segmentation``, from 0; empty where they are unknown."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """JSON about the image tokenizer: its folder and its fingerprint."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Condition name → the same for its tokenizer."""
    license: str = UNKNOWN_LICENSE
    """Licence of the pictures as an SPDX or Hugging Face identifier, which the codes inherit."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    """File name → sha256 and size of the other files: card, plan and tokenizers."""
    added: tuple[AddedColumn, ...] = ()
    """Columns that were added to the finished shards, in this sequence; :attr:`whole` has them in its spec."""

    @classmethod
    def build(
        cls,
        *,
        plan: Plan,
        sidecars: Iterable[Sidecar],
        spec: ShardSpec,
        class_names: Iterable[str] = (),
        label_names: Iterable[str] = (),
        tokenizer: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
        license: str = UNKNOWN_LICENSE,
    ) -> Manifest:
        """Make the manifest from the sidecars of all planned shards, in any sequence.

        Raises:
            ShardError: The sidecar of a planned shard is missing, belongs to another plan, or misses samples.
        """
        plan_hash = plan.hash
        builders = {split: _SplitBuilder([None] * plan.shard_count(split)) for split in plan.splits}
        for sidecar in sidecars:
            if sidecar.split not in builders or not 0 <= sidecar.index < len(builders[sidecar.split].entries):
                raise ShardError(f"a sidecar of {sidecar.split}/{sidecar.index}, which is not in the plan: delete it")
            builders[sidecar.split].add(sidecar, plan.shard(sidecar.split, sidecar.index), plan_hash)
        return cls(
            spec=spec,
            plan_hash=plan_hash,
            splits={split: builder.build(split) for split, builder in builders.items()},
            class_names=tuple(class_names),
            label_names=tuple(label_names),
            tokenizer=dict(tokenizer or {}),
            conditions=dict(conditions or {}),
            license=license,
        )

    @property
    def formats(self) -> tuple[ShardFormat, ...]:
        """The file formats of every shard."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        found = {frozenset(map(format_of, shard.files)) for shard in shards}
        return tuple(name for name in SHARD_FORMATS if found and all(name in formats for formats in found))

    @property
    def entries(self) -> dict[tuple[str, str], ShardEntry]:
        """(split, name of the shard) → the shard, for all splits."""
        return {(name, shard.name): shard for name, split in self.splits.items() for shard in split.shards}

    @property
    def whole(self) -> Manifest:
        """The manifest with the added columns in its spec, and with the rows that all columns have."""
        if not self.added:
            return self
        splits = {}
        for name, last in self.added[-1].splits.items():
            own = self.splits[name]
            shards = zip(own.shards, last.shards, strict=True)
            splits[name] = SplitEntry(
                rows=last.rows,
                samples=last.samples,
                failures=own.failures + own.samples - last.samples,
                shards=tuple(replace(shard, rows=side.rows) for shard, side in shards),
            )
        conditions = {a.spec.name.removeprefix("cond_"): a.tokenizer for a in self.added if a.tokenizer}
        spec = with_columns(self.spec, [column.spec for column in self.added])
        return replace(self, spec=spec, splits=splits, conditions={**self.conditions, **conditions})

    def data_bytes(self, split: str) -> int:
        """Bytes of the data files of a split, side-car shards included."""
        splits = [self.splits, *(column.splits for column in self.added)]
        shards = [shard for found in splits for shard in found[split].shards]
        return sum(record.bytes for shard in shards for record in shard.files.values())

    @property
    def tokenizer_folders(self) -> tuple[str, ...]:
        """Folders of the tokenizers in the dataset."""
        about = [self.tokenizer, *self.whole.conditions.values()]
        return tuple(str(one["folder"]) for one in about if "folder" in one)

    def save(self, dataset: Where) -> None:
        """Write ``dataset.json``, which completes the dataset; all other files are written before.

        Raises:
            WriteError: It cannot be written.
        """
        store = open_store(dataset)
        names = [CARD_FILE, PLAN_FILE, SAMPLES_FILE]
        for folder in self.tokenizer_folders:
            names += [f"{folder}/{name}" for name in (store / folder).files()]
        files = {name: file_record(store / name) for name in names if (store / name).exists()}
        value = {
            "format_version": FORMAT_VERSION,
            "spec": self.spec.to_json(),
            "plan_hash": self.plan_hash,
            "splits": {name: split_json(split) for name, split in self.splits.items()},
            "class_names": list(self.class_names),
            "tokenizer": self.tokenizer,
            "conditions": self.conditions,
            "license": self.license,
            "files": files_json(files),
        }
        if self.label_names:
            value["label_names"] = list(self.label_names)
        if self.added:
            value["added"] = [column.to_json() for column in self.added]
        write_sealed_json(store / MANIFEST_FILE, value)

    @classmethod
    def load(cls, dataset: Where) -> Manifest:
        """Read ``dataset.json``.

        Raises:
            ShardError: It is missing (the tokenize job has not finished), damaged, or of another version.
        """
        store = open_store(dataset)
        path = store / MANIFEST_FILE
        if store.local is not None and not store.local.is_dir():
            raise ShardError(f"there are no shards in {store}: the folder does not exist. Tokenize a dataset first")
        if not path.exists():
            raise ShardError(
                f"{path} is missing: the tokenize job did not finish, or this is not a dataset of shards. "
                "Run the job again with the same settings; it resumes"
            )
        value = read_sealed_json(path)
        try:
            _check_names(value, path)
            return cls(
                spec=ShardSpec.from_json(value["spec"]),
                plan_hash=value["plan_hash"],
                splits={name: split_from_json(split) for name, split in value["splits"].items()},
                class_names=tuple(value["class_names"]),
                label_names=tuple(value.get("label_names", ())),
                tokenizer=value["tokenizer"],
                conditions=value["conditions"],
                license=value["license"],
                files=files_from_json(value["files"]),
                added=_added_from_json(value),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{path} is not a manifest of a dataset ({error!r})") from error


def _check_names(value: Mapping[str, Any], where: Store) -> None:
    """Check every name in a manifest that becomes a path: splits, shards and their files, tokenizers, other files."""
    added = value.get("added", [])
    for split, found in (item for part in (value, *added) for item in part["splits"].items()):
        plain_name(split, where, ShardError)
        for shard in found["shards"]:
            if type(shard["rows"]) is not int:
                raise ShardError(f"{where} is not a manifest of a dataset: a shard has {shard['rows']!r} rows")
            for name in (shard["name"], *shard["files"]):
                plain_name(name, where, ShardError)
    for about in (value["tokenizer"], *value["conditions"].values(), *(part["tokenizer"] for part in added)):
        if "folder" in about:
            plain_name(about["folder"], where, ShardError)
    for name in value["files"]:
        plain_path(name, where, ShardError)


@dataclass(slots=True)
class _SplitBuilder:
    """Collects the sidecars of a split; of a sidecar only what the manifest contains is kept."""

    entries: list[ShardEntry | None]
    rows: int = 0
    samples: int = 0
    failures: int = 0

    def add(self, sidecar: Sidecar, shard: PlannedShard, plan_hash: str) -> None:
        what = f"{shard.split}/{shard.name}"
        if sidecar.plan_hash != plan_hash:
            raise ShardError(f"{what} was made from another plan. Delete its sidecar and resume the job")
        if sidecar.samples + len(sidecar.failures) != shard.samples:
            raise ShardError(
                f"{what}: {shard.samples} samples were planned, but {sidecar.samples} encoded and "
                f"{len(sidecar.failures)} failures are recorded. Delete its sidecar and resume the job"
            )
        self.entries[shard.index] = ShardEntry(name=shard.name, rows=sidecar.rows, files=dict(sidecar.files))
        self.rows += sidecar.rows
        self.samples += sidecar.samples
        self.failures += len(sidecar.failures)

    def build(self, split: str) -> SplitEntry:
        shards = tuple(entry for entry in self.entries if entry is not None)
        if len(shards) < len(self.entries):
            index = self.entries.index(None)
            raise ShardError(f"{split}/shard-{index:06d} has no sidecar: it is not made yet. Resume the job")
        return SplitEntry(rows=self.rows, samples=self.samples, failures=self.failures, shards=shards)


def _added_from_json(value: Mapping[str, Any]) -> tuple[AddedColumn, ...]:
    """The added columns, each new and with a side-car shard for every shard."""
    added = tuple(AddedColumn.from_json(entry) for entry in value.get("added", ()))
    names = [column.spec.name for column in added]
    shards = {name: [shard["name"] for shard in split["shards"]] for name, split in value["splits"].items()}
    for column in added:
        found = {name: [shard.name for shard in split.shards] for name, split in column.splits.items()}
        if found != shards or names.count(column.spec.name) > 1:
            raise ShardError(f"{MANIFEST_FILE} lists other side-car shards of {column.spec.name} than shards")
    return added
