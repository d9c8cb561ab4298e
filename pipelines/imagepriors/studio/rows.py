"""Rows of token shards, with the pictures that their codes decode to.

Axes: N rows, h × w the grid of codes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeshards.format import GridSpec, ShardDataset, ShardSpec, inverse
from imagepriors.decode.rows import read_rows
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.pictures import uris
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
    image = f"codes_{spec.orders[0]}"
    listed = [name for name, grid in spec.code_grids.items() if grid.length <= _MOST_CODES]
    more = ["view", *spec.carried, *listed] if request.columns else []
    found = read_rows(dataset, request.split, list(dict.fromkeys(["key", "label", image, *more])), indices)
    codes_Nhw = _raster(spec, found[image])
    decodable = request.decoded and len(indices) and spec.image.fingerprint in contents.fingerprints
    pictures = uris(_tokenizer(contents, spec.image).decode(codes_Nhw)) if decodable else None

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
    image = f"codes_{spec.orders[0]}"
    grids = {image: spec.image} | {f"cond_{name}": grid for name, grid in spec.conditions.items()}
    known = {name: grid for name, grid in grids.items() if grid.fingerprint in contents.fingerprints}
    if not known:
        return {}
    found = read_rows(dataset, request.split, list(known), indices)
    if image in found:
        found[image] = _raster(spec, found[image])
    for start in range(0, len(indices), _DECODED):
        few = slice(start, start + _DECODED)
        decoded = {
            name: uris(_tokenizer(contents, grid).decode(found[name][few].reshape(-1, grid.height, grid.width)))
            for name, grid in known.items()
        }
        pictures = [
            {
                "index": int(index),
                "picture": decoded[image][i] if image in decoded else None,
                "conditions": {name.removeprefix("cond_"): each[i] for name, each in decoded.items() if name != image},
            }
            for i, index in enumerate(indices[few])
        ]
        report(min(start + _DECODED, len(indices)), len(indices), pictures=pictures)
    return {}


def _raster(spec: ShardSpec, codes_NT: Any) -> npt.NDArray[Any]:
    """Image codes in the spec's first order as grids [N, h, w]."""
    grid = spec.image
    raster_NT = codes_NT.reshape(-1, grid.length)[:, inverse(spec.orders[0], grid.height, grid.width)]
    return np.asarray(raster_NT.reshape(-1, grid.height, grid.width))


def _tokenizer(contents: Contents, grid: GridSpec) -> Any:
    return contents.tokenizer(contents.fingerprints[grid.fingerprint]).loaded
