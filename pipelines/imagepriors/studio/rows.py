"""Rows of token shards, with the pictures that their codes decode to.

Axes: N rows, h × w the grid of codes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeshards.format import ShardDataset
from imagepriors.decode.rows import read_codes
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.pictures import decode_few, uris
from runkit.configs import check_fields, require
from runkit.errors import UserError

_MOST = 60
"""Rows in one answer."""
_DECODED = 4
"""Rows that are decoded between two reports."""
_MOST_CODES = 256
"""Codes of a column that the details of a row list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsRequest:
    """Rows of a split to show."""

    shards: str
    """Name of the shards."""
    split: str
    """Name of the split."""
    first: int = 0
    """Index of the first row."""
    count: int = 24
    """Number of rows."""
    indices: list[int] | None = None
    """Ascending indices of the rows, in place of first and count."""
    decoded: bool = True
    """Whether their codes are decoded."""
    columns: bool = False
    """Whether all columns are sent."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.first >= 0, "first", self.first, "use 0 or more")
        require(1 <= self.count <= _MOST, "count", self.count, f"use 1 to {_MOST}")
        indices = self.indices or []
        require(len(indices) <= _MOST, "the number of indices", len(indices), f"use at most {_MOST}")
        require(indices == sorted(set(indices)), "indices", indices[:8], "send each once, in ascending order")

    def chosen(self, total: int) -> npt.NDArray[np.int64]:
        """Indices of the rows, of `total` rows."""
        if self.indices is None:
            return np.arange(min(self.first, total), min(self.first + self.count, total))
        return np.array([index for index in self.indices if 0 <= index < total], np.int64)


def rows(contents: Contents, request: RowsRequest) -> Event:
    """Read rows.

    Returns:
        ``total`` rows of the split, and ``rows`` with ``index``, ``key``, ``label`` (null where there is none),
        ``codes`` [h·w] in raster order, and the decoded ``picture`` (null where the tokenizer is unknown, or none is
        asked for). With `columns` also ``view``, the ``carried`` columns by name, and ``sequences``: other columns of
        codes by name, without long ones.

    Raises:
        UserError: There are no such shards or split, or a shard is damaged.
    """
    dataset = split_of(contents, request)
    spec, indices = dataset.spec, request.chosen(dataset.rows(request.split))
    listed = [name for name, grid in spec.code_grids.items() if grid.length <= _MOST_CODES]
    more = ["view", *spec.carried, *listed] if request.columns else []
    codes_Nhw, found = read_codes(dataset, request.split, indices, ["key", "label", *more])
    tokenizer = contents.fingerprints.get(spec.image.fingerprint) if request.decoded and len(indices) else None
    pictures = uris(decode_few(contents.tokenizer(tokenizer).loaded, codes_Nhw)) if tokenizer else None

    def values(i: int) -> Event:
        row: Event = {
            "index": int(indices[i]),
            "key": str(found["key"][i]),
            "label": None if (label := int(found["label"][i])) < 0 else label,
            "codes": codes_Nhw[i].reshape(-1).tolist(),
            "picture": pictures[i] if pictures else None,
        }
        if request.columns:
            row["view"] = int(found["view"][i])
            row["carried"] = {name: _plain(found[name][i]) for name in sorted(spec.carried)}
            row["sequences"] = {name: found[name][i].tolist() for name in listed}
        return row

    return {"total": dataset.rows(request.split), "rows": [values(i) for i in range(len(indices))]}


def split_of(contents: Contents, request: Any) -> ShardDataset:
    """Return the shards of a request with a split.

    Raises:
        UserError: There are no such shards or split.
    """
    dataset = contents.dataset(request.shards)
    if request.split not in dataset.splits:
        raise UserError(f"{request.shards} has no split {request.split!r}, but {', '.join(dataset.splits)}")
    return dataset


def row_of(contents: Contents, request: Any) -> tuple[ShardDataset, npt.NDArray[np.int64]]:
    """Return the shards of a request with a split and an index, and the index [1].

    Raises:
        UserError: There are no such shards, split or row.
    """
    dataset = split_of(contents, request)
    if not 0 <= request.index < dataset.rows(request.split):
        raise UserError(f"{request.shards} has no row {request.index} in the split {request.split!r}: choose another")
    return dataset, np.array([request.index])


def _plain(value: Any) -> Any:
    """A value of a carried column as JSON has it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def row_pictures(contents: Contents, request: RowsRequest, report: Report) -> Event:
    """Decode rows, a few at a time.

    Args:
        contents: What the page shows.
        request: The rows.
        report: Gets the rows that are decoded, the number of rows, and ``pictures``: those that are new, each with
            ``index``, ``picture`` (null where the tokenizer is unknown) and ``conditions``: name → picture.

    Raises:
        UserError: There are no such shards or split, or a shard is damaged.
    """
    dataset = split_of(contents, request)
    spec, indices = dataset.spec, request.chosen(dataset.rows(request.split))
    grids = {"image": spec.image, **spec.conditions}
    known = {name: grid for name, grid in grids.items() if grid.fingerprint in contents.fingerprints}
    if not known:
        return {}
    codes_Nhw, found = read_codes(
        dataset, request.split, indices, [f"cond_{name}" for name in known if name != "image"]
    )

    def decoded(name: str, few: slice) -> list[str]:
        grid = known[name]
        codes = codes_Nhw if name == "image" else found[f"cond_{name}"].reshape(-1, grid.height, grid.width)
        return uris(contents.codes_tokenizer(grid.fingerprint, name).loaded.decode(codes[few]))

    for start in range(0, len(indices), _DECODED):
        few = slice(start, start + _DECODED)
        conditions = {name: decoded(name, few) for name in known}
        images = conditions.pop("image", None)
        pictures = [
            {
                "index": int(index),
                "picture": images[i] if images else None,
                "conditions": {name: each[i] for name, each in conditions.items()},
            }
            for i, index in enumerate(indices[few])
        ]
        report(min(start + _DECODED, len(indices)), len(indices), pictures=pictures)
    return {}
