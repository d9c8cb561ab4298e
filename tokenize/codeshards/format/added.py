"""Side-car shards of columns that are added to a finished dataset: their hash, their rows, and their commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from codeshards.format.column import ADDABLE, ColumnSpec
from codeshards.format.contents import save_dataset
from codeshards.format.entries import AddedColumn, ShardEntry, SplitEntry
from codeshards.format.errors import ShardError
from codeshards.format.files import compact_json
from codeshards.format.manifest import MANIFEST_FILE, Failure, Manifest, Sidecar, sidecar_path
from codeshards.format.plan import Plan, PlannedShard, load_plan
from codeshards.format.schema import row_key
from runkit.places import Store


def open_finished(store: Store) -> tuple[Manifest, Plan]:
    """The manifest and the plan of a dataset to which columns are added.

    Raises:
        ShardError: It is not finished, or its plan is another one.
    """
    manifest, plan = Manifest.load(store), load_plan(store)
    if plan.hash != manifest.plan_hash:
        raise ShardError(f"plan.json and {MANIFEST_FILE} of {store} belong to different jobs: verify the dataset")
    if taken := set(plan.splits) & set(ADDABLE):
        raise ShardError(f"{store} has a split named {min(taken)!r}, the folder of a column: nothing can be added")
    return manifest, plan


def whole_plan(plan: Plan, manifest: Manifest) -> Plan:
    """The plan of one job for all columns: that of a dataset with the added columns in its shards."""
    if not manifest.added:
        return plan
    settings = {**plan.settings, "spec": manifest.whole.spec.to_json()}
    for column in manifest.added:
        settings |= {name: value for name, value in column.settings.items() if name != "device"}
    return replace(plan, settings=settings)


def failures_of(store: Store, manifest: Manifest, plan: Plan, shard: PlannedShard, rows: int) -> list[Failure]:
    """The samples of a shard that have no row, in planned order, from the sidecars of the shard and of added columns.

    Args:
        store: The dataset.
        manifest: Its manifest.
        plan: Its plan.
        shard: The shard.
        rows: Rows that all of its columns have; no sidecar is read where none is missing.
    """
    if rows == shard.samples * plan.views:
        return []
    folders = [store, *(store / column.spec.name for column in manifest.added)]
    sidecars = [Sidecar.load(sidecar_path(folder, shard)) for folder in folders]
    found = {failure.key: failure for sidecar in sidecars for failure in sidecar.failures}
    return [found[key] for key in plan.sample_keys(shard) if key in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class SideCar:
    """A side-car shard to make, or to check."""

    shard: PlannedShard
    """The shard that it belongs to."""
    hash: str
    """Hash of all that determines its rows, in place of a plan hash."""
    left_out: frozenset[str]
    """Keys of the planned samples that had no row before."""

    def keys(self, plan: Plan, failed: Iterable[str] = ()) -> list[str]:
        """Keys of its rows, without those of samples whose map failed."""
        absent = self.left_out.union(failed)
        samples = [key for key in plan.sample_keys(self.shard) if key not in absent]
        return [row_key(key, view) for key in samples for view in range(plan.views)]


class SideCars:
    """The side-car shards of one column.

    Args:
        store: The dataset.
        plan: Its plan.
        manifest: Its manifest; the column follows the columns that it lists.
        spec: The column.
        settings: What determines its codes beside the plan.
    """

    def __init__(
        self, store: Store, plan: Plan, manifest: Manifest, spec: ColumnSpec, settings: Mapping[str, Any]
    ) -> None:
        self.folder, self.spec, self.settings = store / spec.name, spec, dict(settings)
        self._store, self._plan, self._manifest = store, plan, manifest
        self._entries, self._rows = manifest.entries, manifest.whole.entries

    def of(self, shard: PlannedShard) -> SideCar:
        """The side-car shard of a shard."""
        name = (shard.split, shard.name)
        left_out = failures_of(self._store, self._manifest, self._plan, shard, self._rows[name].rows)
        keys = sorted(failure.key for failure in left_out)
        content = {
            "column": self.spec.to_json(),
            "files": {file: record.sha256 for file, record in self._entries[name].files.items()},
            "left_out": keys,
            "plan_hash": self._manifest.plan_hash,
            "settings": self.settings,
        }
        digest = hashlib.sha256(compact_json(content).encode()).hexdigest()
        return SideCar(shard=shard, hash=digest, left_out=frozenset(keys))

    def commit(self, sidecars: Iterable[Sidecar], tokenizer: Mapping[str, Any]) -> Manifest:
        """Write the card and the manifest with this column; one write of the manifest completes it.

        Args:
            sidecars: Those of all side-car shards, in planned order.
            tokenizer: JSON about the tokenizer of a condition.

        Raises:
            ShardError: One belongs to other codes.
        """
        found: dict[str, list[Sidecar]] = {split: [] for split in self._plan.splits}
        for shard, sidecar in zip(self._plan.each_shard(), sidecars, strict=True):
            if sidecar.plan_hash != self.of(shard).hash:
                raise ShardError(f"{self.folder}/{shard.split}/{shard.name} was made for other codes: run again")
            found[shard.split].append(sidecar)
        splits = {split: _split_entry(each) for split, each in found.items()}
        added = AddedColumn(spec=self.spec, tokenizer=dict(tokenizer), settings=self.settings, splits=splits)
        manifest = replace(self._manifest, added=(*self._manifest.added, added))
        save_dataset(manifest, self._store)
        return manifest


def _split_entry(sidecars: list[Sidecar]) -> SplitEntry:
    shards = [ShardEntry(name=f"shard-{one.index:06d}", rows=one.rows, files=dict(one.files)) for one in sidecars]
    return SplitEntry(
        rows=sum(one.rows for one in sidecars),
        samples=sum(one.samples for one in sidecars),
        failures=sum(len(one.failures) for one in sidecars),
        shards=tuple(shards),
    )
