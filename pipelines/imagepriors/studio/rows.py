"""Rows of token shards, with the pictures that their codes decode to."""

from dataclasses import dataclass

import numpy as np

from imagepriors.decode.rows import read_codes
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event
from imagepriors.studio.pictures import uris
from runkit.configs import check_fields, require
from runkit.errors import UserError

_MOST = 60
"""Rows in one answer."""


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

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.first >= 0, "first", self.first, "use 0 or more")
        require(1 <= self.count <= _MOST, "count", self.count, f"use 1 to {_MOST}")


def rows(contents: Contents, request: RowsRequest) -> Event:
    """Read rows.

    Returns:
        ``total`` rows of the split, and ``rows`` with ``index``, ``key``, ``label`` (null where there is none),
        ``codes`` [h·w] in raster order, and the decoded ``picture`` (null where the tokenizer is unknown).

    Raises:
        UserError: There are no such shards or split, or a shard is damaged.
    """
    dataset = contents.dataset(request.shards)
    if request.split not in dataset.splits:
        raise UserError(f"{request.shards} has no split {request.split!r}, but {', '.join(dataset.splits)}")
    total = dataset.rows(request.split)
    indices = np.arange(request.first, min(request.first + request.count, total))
    codes_Nhw, found = read_codes(dataset, request.split, indices, ["key", "label"])
    tokenizer = contents.fingerprints.get(dataset.spec.image.fingerprint)
    pictures = uris(contents.tokenizer(tokenizer).loaded.decode(codes_Nhw)) if tokenizer and len(indices) else None
    return {
        "total": total,
        "rows": [
            {
                "index": int(index),
                "key": str(found["key"][i]),
                "label": None if (label := int(found["label"][i])) < 0 else label,
                "codes": codes_Nhw[i].reshape(-1).tolist(),
                "picture": pictures[i] if pictures else None,
            }
            for i, index in enumerate(indices)
        ],
    }
