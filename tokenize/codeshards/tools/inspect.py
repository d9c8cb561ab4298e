"""Statistics of a finished dataset's codes and labels. Requires no pixels.

Axes: N rows, L codes of a picture in raster order, K entries of the codebook.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeshards.format.dataset import ShardDataset
from codeshards.format.manifest import Manifest
from codeshards.format.orders import inverse
from runkit.codes import Codes
from runkit.places import Where


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeStatistics:
    """Distribution of the codes of one column over the rows of the splits."""

    counts_K: npt.NDArray[np.int64]
    """Number of occurrences of each code."""
    entropy_bits_L: npt.NDArray[np.float64]
    """Entropy of the codes at each position, in raster order; too small where there are few rows."""

    def to_json(self) -> dict[str, Any]:
        """Usage, perplexity and entropies as JSON values."""
        entropy_bits = float(_entropy_bits(self.counts_K[None])[0])
        return {
            "codes": int(self.counts_K.sum()),
            "codebook_size": len(self.counts_K),
            "used": int((self.counts_K > 0).sum()),
            "entropy_bits": entropy_bits,
            "perplexity": 2.0**entropy_bits,
            "entropy_bits_per_position": [round(float(bits), 4) for bits in self.entropy_bits_L],
        }


@dataclass(kw_only=True, slots=True)
class CarriedStatistics:
    """What a carried column holds over the rows of all splits."""

    nulls: int = 0
    """Number of rows without a value."""
    first: Any = None
    """The first value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Contents of a dataset."""

    manifest: Manifest
    """The manifest of the dataset."""
    codes: dict[str, CodeStatistics]
    """``image`` and each scale and condition → statistics of its codes."""
    labels: dict[str, Counter[int]]
    """Split → rows of each label; -1 counts the rows without one."""
    carried: dict[str, CarriedStatistics]
    """Carried column → its nulls and first value."""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        manifest = self.manifest
        schema = manifest.spec.schema()
        return {
            "spec": manifest.spec.to_json(),
            "schema": {name: str(schema.field(name).type) for name in schema.names},
            "formats": list(manifest.formats),
            "license": manifest.license,
            "plan_hash": manifest.plan_hash,
            "splits": {
                name: {
                    "rows": split.rows,
                    "samples": split.samples,
                    "failures": split.failures,
                    "shards": len(split.shards),
                    "bytes": manifest.data_bytes(name),
                    "labels": {str(label): count for label, count in sorted(self.labels[name].items())},
                }
                for name, split in manifest.splits.items()
            },
            "class_names": list(manifest.class_names),
            "label_names": list(manifest.label_names),
            "codes": {name: statistics.to_json() for name, statistics in self.codes.items()},
            "carried": {name: asdict(statistics) for name, statistics in self.carried.items()},
        }


def inspect(
    dataset: Where | ShardDataset,
    *,
    splits: Sequence[str] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Inspection:
    """Count the codes and labels of a dataset; reads each row once.

    Args:
        dataset: The dataset or its path.
        splits: Splits to read; None reads all.
        progress: Called with the number of rows that are read, and that there are.

    Raises:
        ShardError: It is not a finished dataset, or a shard is missing or damaged.
    """
    shards = dataset if isinstance(dataset, ShardDataset) else ShardDataset.open(dataset)
    splits, done = shards.splits if splits is None else splits, 0
    total = sum(map(shards.rows, splits))
    spec, grids = shards.spec, shards.spec.code_grids
    columns = {"image": f"codes_{spec.orders[0]}"}
    columns |= {name: name for name in grids if not name.startswith("codes_")}
    to_raster = inverse(spec.orders[0], spec.image.height, spec.image.width)
    counts = {
        name: np.zeros((grids[column].length, grids[column].codebook_size), np.uint32)
        for name, column in columns.items()
    }
    labels: dict[str, Counter[int]] = {split: Counter() for split in shards.splits}
    carried = {name: CarriedStatistics() for name in sorted(spec.carried)}
    for split in splits:
        for batch in shards.batches(split, ["label", *columns.values(), *carried]):
            values, numbers = np.unique(batch["label"], return_counts=True)
            labels[split].update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
            for name, found in carried.items():
                known = [value for value in batch[name] if value is not None]
                found.nulls += len(batch[name]) - len(known)
                found.first = found.first if found.first is not None else next(iter(known), None)
            for name, column in columns.items():
                codes = batch[column][:, to_raster] if name == "image" else batch[column]
                _add_counts(counts[name], codes)
            done += len(batch["label"])
            progress(done, total)
    statistics = {
        name: CodeStatistics(counts_K=counts_LK.sum(0, np.int64), entropy_bits_L=_entropy_bits(counts_LK))
        for name, counts_LK in counts.items()
    }
    return Inspection(manifest=shards.manifest, codes=statistics, labels=labels, carried=carried)


def _add_counts(counts_LK: npt.NDArray[np.uint32], codes_NL: Codes) -> None:
    """Count in place, because 256 positions of a codebook of 262,144 entries have 2^26 counts."""
    offsets_L = np.arange(len(counts_LK), dtype=np.int64) * counts_LK.shape[1]
    np.add.at(counts_LK.reshape(-1), (codes_NL + offsets_L).ravel(), np.uint32(1))


def _entropy_bits(counts_LK: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.array([_entropy_of(counts_K[counts_K > 0]) for counts_K in counts_LK])


def _entropy_of(counts: npt.NDArray[Any]) -> float:
    p = counts / max(counts.sum(), 1)
    return float(-(p * np.log2(p)).sum())
