"""The rows of token shards that match a filter.

Rows are read in batches, of the columns that the filter requires; only the indices of those that match are kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeshards.format import ShardDataset
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.rows import split_of
from runkit.configs import check_fields

_MOST = 10_000
"""Rows that a filter finds at most."""
_BATCH_ROWS = 8192
"""Rows that are read between two reports."""
_Batch = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FindRequest:
    """Which rows of a split to find. Rows match that fulfil all of it."""

    shards: str
    """Name of the shards."""
    split: str
    """Name of the split."""
    label: int | None = None
    """Their label; -1 finds rows without a label."""
    view: int | None = None
    """Their view."""
    text: str = ""
    """Text in their key or in a carried column of text, such as the caption, in upper or lower case."""
    key: str = ""
    """Their whole key."""

    def __post_init__(self) -> None:
        check_fields(self)


def find(contents: Contents, request: FindRequest, report: Report) -> Event:
    """Find the rows that match, in one pass over the columns that this requires.

    Args:
        contents: What the page shows.
        request: What they match.
        report: Gets the rows that are read, and the rows of the split.

    Returns:
        ``indices`` of the first rows that match, ascending, and ``complete``: whether these are all.

    Raises:
        UserError: There are no such shards or split, or a shard is damaged.
    """
    dataset = split_of(contents, request)
    total, done = dataset.rows(request.split), 0
    indices: list[int] = []
    for batch in _batches(dataset, request):
        matches = np.flatnonzero(_matches(batch, request))
        indices += (done + matches).tolist()
        done += len(next(iter(batch.values())))
        report(done, total)
        if len(indices) > _MOST or (request.key and indices):
            return {"indices": indices[:_MOST], "complete": bool(request.key)}
    return {"indices": indices, "complete": True}


def _batches(dataset: ShardDataset, request: FindRequest) -> Iterator[_Batch]:
    columns = [name for name in ("label", "view") if getattr(request, name) is not None]
    columns += ["key"] if request.key or request.text or not columns else []
    columns += [name for name, kind in dataset.spec.carried.items() if kind == "string" and request.text]
    return dataset.batches(request.split, columns, _BATCH_ROWS)


def _matches(batch: _Batch, request: FindRequest) -> npt.NDArray[np.bool_]:
    """Which rows of a batch match; texts are compared of those only that match in the numbers."""
    found = np.ones(len(next(iter(batch.values()))), bool)
    for name in ("label", "view"):
        if (value := getattr(request, name)) is not None:
            found &= batch[name] == value
    if request.key:
        found &= batch["key"] == request.key
    if request.text:
        texts = [values for name, values in batch.items() if name not in ("label", "view")]
        wanted = request.text.casefold()
        for i in np.flatnonzero(found):
            found[i] = any(wanted in values[i].casefold() for values in texts if values[i] is not None)
    return found
