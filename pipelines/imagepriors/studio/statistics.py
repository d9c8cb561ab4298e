"""Statistics of token shards: usage of codes, entropy per position, labels; what identifies them; what failed.

Axes: K entries of the codebook.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codeshards.format.manifest import UNKNOWN_LICENSE
from codeshards.tools.inspect import CodeStatistics, inspect
from imagepriors.reports.shards import failures_by_kind
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.rows import split_of
from runkit.configs import check_fields

_POINTS = 400
"""Points of the curve of frequencies."""
_NAMED = 50
"""Failed samples that are named per kind of failure."""
_MADE: dict[tuple[str, str], Event] = {}
"""Fingerprint of the dataset and split → its statistics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsRequest:
    """A split to count."""

    shards: str
    """Name of the shards."""
    split: str
    """Name of the split."""

    def __post_init__(self) -> None:
        check_fields(self)


def statistics(contents: Contents, request: StatisticsRequest, report: Report) -> Event:
    """Count the codes and labels of a split; once, later requests are answered from memory.

    Args:
        contents: What the page shows.
        request: The split.
        report: Gets the rows that are read, and the rows of the split.

    Returns:
        ``rows``; ``codes``: for the image and each scale and condition its ``name``, ``grid``, numbers, ``entropies``
        in bits in raster order, and ``curve``, the most frequent codes first; and ``labels`` [label, rows], -1 for rows
        without.

    Raises:
        UserError: There are no such shards or split, or a shard is damaged.
    """
    dataset = split_of(contents, request)
    known = (dataset.fingerprint, request.split)
    if known not in _MADE:
        found = inspect(dataset, splits=[request.split], progress=report)
        grids = dataset.spec.code_grids | {"image": dataset.spec.image}
        _MADE[known] = {
            "rows": dataset.rows(request.split),
            "codes": [
                {"name": name, "grid": [grids[name].height, grids[name].width], **_values(codes)}
                for name, codes in found.codes.items()
            ],
            "labels": sorted([label, count] for label, count in found.labels[request.split].items()),
        }
    return _MADE[known]


def _values(codes: CodeStatistics) -> Event:
    values = codes.to_json()
    return {
        **{name: values[name] for name in ("codes", "codebook_size", "used", "entropy_bits", "perplexity")},
        "entropies": values["entropy_bits_per_position"],
        "curve": curve(codes.counts_K),
    }


def curve(counts_K: npt.NDArray[np.int64]) -> list[list[int]]:
    """Return [rank from 1, occurrences] of codes, the most frequent first; of a large codebook evenly spaced ranks."""
    ranked_K = np.sort(counts_K)[::-1]
    ranks = np.unique(np.linspace(1, len(ranked_K), _POINTS).round().astype(int))
    return [[int(rank), int(ranked_K[rank - 1])] for rank in ranks]


@dataclass(frozen=True, kw_only=True, slots=True)
class AboutRequest:
    """Shards to describe."""

    shards: str
    """Name of the shards."""

    def __post_init__(self) -> None:
        check_fields(self)


def about(contents: Contents, request: AboutRequest) -> Event:
    """Describe shards.

    Returns:
        ``splits`` with ``rows``, ``samples``, ``failures``, ``shards`` and ``bytes``; ``columns`` with their type;
        ``orders``, ``license`` (empty where it is unknown), the ``fingerprint`` of the dataset and of the tokenizer of
        its image codes, and ``failures``: kinds with ``reason``, ``count`` and the first ``samples``.

    Raises:
        UserError: There are no such shards, or a sidecar is damaged.
    """
    dataset = contents.dataset(request.shards)
    manifest, spec = dataset.manifest, dataset.spec
    schema = spec.schema()
    kinds = failures_by_kind(dataset.path, manifest, _NAMED)
    return {
        "splits": [
            {
                "name": name, "rows": split.rows, "samples": split.samples, "failures": split.failures,
                "shards": len(split.shards), "bytes": manifest.data_bytes(name),
            }
            for name, split in manifest.splits.items()
        ],
        "columns": [[name, str(schema.field(name).type)] for name in spec.column_names],
        "orders": list(spec.orders),
        "formats": list(manifest.formats),
        "license": "" if manifest.license == UNKNOWN_LICENSE else manifest.license,
        "fingerprint": dataset.fingerprint,
        "codes_of": spec.image.fingerprint,
        "failures": [
            {
                "reason": kind,
                "count": count,
                "samples": [{"split": split, "key": one.key, "reason": one.reason} for split, one in samples],
            }
            for kind, (count, samples) in kinds.items()
        ],
    }  # fmt: skip
