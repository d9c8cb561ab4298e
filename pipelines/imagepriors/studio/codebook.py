"""Codes of a tokenizer: how often they occur in shards, what they look like, and which are nearest in the codebook.

Axes: N pictures, T codes of a picture, K codes of the codebook, h × w the grid of codes.
"""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from codeshards.format import ShardDataset
from imagepriors.decode.rows import read_codes, select_rows
from imagepriors.reports.figures import Pixels, colorize
from imagepriors.reports.run_codes import mean_patches
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.pictures import decode_few, uris
from runkit.configs import check_fields, require
from runkit.errors import UserError
from vqgan.config import ModelConfig
from vqgan.tokenizer import Tokenizer

_DECODED_PIXELS, _MOST_PICTURES = 2**20, 256
"""Limits of the pictures whose patches are averaged."""
_BATCH_PIXELS = 2**17
"""Pixels that are decoded between two reports of the progress."""
_NEAREST = 8
_ALONE = 2
"""Side of the grid that is filled with a code to see it alone: on trained tokenizers its patch is nearer to those of
pictures than that of a whole grid, which also takes longer."""


@dataclass(frozen=True, slots=True)
class CodeUsage:
    """Frequencies and typical patches of the codes of shards."""

    counts_K: npt.NDArray[np.int64]
    """Number of occurrences in all rows."""
    pictures: int
    """Number of pictures whose patches are averaged."""
    patches: dict[int, Pixels]
    """Code → mean of the pixels [H, W, 3] at its cells of these pictures; empty where codes have no cells."""
    places: dict[int, int]
    """Code → number of these cells."""


_USAGE: WeakKeyDictionary[ShardDataset, CodeUsage] = WeakKeyDictionary()
"""What has been counted. A thread of an answer may read it while the job writes it."""


def has_cells(net: ModelConfig) -> bool:
    """Whether each code has a cell on the picture; those of a 1-D tokenizer, which are in a row, have none."""
    height, width = net.grid
    return height == width or 1 not in (height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageRequest:
    """Shards whose codes are counted."""

    shards: str
    """Name of the shards, whose tokenizer is on the page."""

    def __post_init__(self) -> None:
        check_fields(self)


def usage(contents: Contents, request: UsageRequest, report: Report) -> Event:
    """Count the codes of shards, and average the patches of evenly spaced pictures; only the first time.

    Returns:
        ``rows`` and ``codes`` (their number), ``used`` of the ``codebook_size``, ``pictures``, and ``colours``: code →
        mean colour of its typical patch, red, green and blue.

    Raises:
        UserError: There are no such shards, their tokenizer is unknown, or a shard is damaged.
    """
    dataset = contents.dataset(request.shards)
    found = _USAGE.get(dataset)
    if found is None:
        tokenizer = contents.codes_tokenizer(dataset.spec.image.fingerprint, request.shards)
        found = _USAGE[dataset] = _measure(dataset, tokenizer.loaded, report)
    return {
        "rows": sum(dataset.rows(split) for split in dataset.splits),
        "codes": int(found.counts_K.sum()),
        "used": int((found.counts_K > 0).sum()),
        "codebook_size": len(found.counts_K),
        "pictures": found.pictures,
        "colours": {code: patch.mean((0, 1)).round().astype(int).tolist() for code, patch in found.patches.items()},
    }


def _measure(dataset: ShardDataset, tokenizer: Tokenizer, report: Report) -> CodeUsage:
    """Half of the progress is counting, half is decoding, of whichever rows there are."""
    net = tokenizer.config
    column, total = f"codes_{dataset.spec.orders[0]}", sum(dataset.rows(split) for split in dataset.splits)
    counts_K, done = np.zeros(net.codebook_size, np.int64), 0
    for split in dataset.splits:
        for batch in dataset.batches(split, [column]):
            counts_K += np.bincount(batch[column].reshape(-1), minlength=net.codebook_size)
            done += len(batch[column])
            report(done, 2 * total)
    shown = "val" if "val" in dataset.splits and dataset.rows("val") else dataset.splits[0]
    most = min(_MOST_PICTURES, max(4, _DECODED_PIXELS // net.resolution**2))
    codes_Nhw, _ = read_codes(dataset, shown, select_rows(dataset, shown, most))
    if not has_cells(net) or not len(codes_Nhw):
        return CodeUsage(counts_K, 0, {}, {})
    decoded, step = [], max(1, _BATCH_PIXELS // net.resolution**2)
    for first in range(0, len(codes_Nhw), step):
        decoded.append(colorize(tokenizer.decode(codes_Nhw[first : first + step])))
        report(total + total * min(first + step, len(codes_Nhw)) // len(codes_Nhw), 2 * total)
    codes, patches = mean_patches(codes_Nhw.astype(np.int64), np.concatenate(decoded))
    numbers, places = np.unique(codes_Nhw, return_counts=True)
    return CodeUsage(
        counts_K=counts_K,
        pictures=len(codes_Nhw),
        patches=dict(zip(codes.tolist(), patches.round().astype(np.uint8), strict=True)),
        places=dict(zip(numbers.tolist(), places.tolist(), strict=True)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeRequest:
    """A code to look at."""

    tokenizer: str
    """Name of the tokenizer."""
    code: int
    """Its number in the codebook."""
    shards: str = ""
    """Name of shards whose frequencies and patches are shown, if they have been counted."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.code >= 0, "code", self.code, "use 0 or more")


def code(contents: Contents, request: CodeRequest) -> Event:
    """Describe a code of the codebook.

    Returns:
        ``patch``, its typical patch (null where codes have no cells), which is the mean of the pixels at ``places``
        cells; where that is 0, it is a patch of a picture of this code alone. ``count``, ``rank``, ``used`` and
        ``share`` of the codes in the shards (null unless they have been counted). The ``nearest`` codes, each with
        ``code``, ``distance``, ``patch``, ``places`` and ``count``, and the ``measure`` of the distance; or none, and
        in ``why`` the reason.

    Raises:
        UserError: There is no such tokenizer, code or shards.
    """
    tokenizer = contents.tokenizer(request.tokenizer).loaded
    net = tokenizer.config
    if request.code >= net.codebook_size:
        raise UserError(f"code {request.code} is not in the codebook: use 0 to {net.codebook_size - 1}")
    dataset = contents.dataset(request.shards) if request.shards else None
    found = None if dataset is None else _USAGE.get(dataset)
    nearest, distances, why = _nearest(tokenizer, request.code)
    looks = _looks(tokenizer, [request.code, *nearest], found)
    product = net.quantizer == "ibq"
    shown = [-float(d) if product else math.sqrt(max(0.0, float(d))) for d in distances]
    return {
        **looks[0],
        **_frequency(request.code, found),
        "measure": "dot product" if product else "distance",
        "nearest": [look | {"distance": distance} for look, distance in zip(looks[1:], shown, strict=True)],
        "why": why,
    }


def _nearest(tokenizer: Tokenizer, number: int) -> tuple[list[int], npt.NDArray[np.float32], str]:
    """The nearest codes with their distances, or why there are none."""
    try:
        codes, distances = tokenizer.nearest_codes(number, _NEAREST)
    except UserError as error:
        return [], np.empty(0, np.float32), str(error)
    return codes.tolist(), distances, ""


def _frequency(number: int, found: CodeUsage | None) -> dict[str, Any]:
    if found is None:
        return {"count": None, "rank": None, "used": None, "share": None}
    counts_K = found.counts_K
    count = int(counts_K[number])
    return {
        "count": count,
        "rank": int((counts_K > count).sum()) + 1,
        "used": int((counts_K > 0).sum()),
        "share": count / max(1, int(counts_K.sum())),
    }


def _looks(tokenizer: Tokenizer, codes: list[int], found: CodeUsage | None) -> list[dict[str, Any]]:
    """Typical patches of codes, with their numbers of places and counts."""
    known = {} if found is None else found.patches
    alone = [number for number in codes if number not in known] if has_cells(tokenizer.config) else []
    patches = known | dict(zip(alone, _alone(tokenizer, alone), strict=True))
    return [
        {
            "code": number,
            "patch": uris(patches[number][None], exact=True)[0] if number in patches else None,
            "places": 0 if found is None else found.places.get(number, 0),
            "count": None if found is None else int(found.counts_K[number]),
        }
        for number in codes
    ]


def _alone(tokenizer: Tokenizer, codes: list[int]) -> list[Pixels]:
    """A patch in the middle of a picture of each code alone."""
    if not codes:
        return []
    net = tokenizer.config
    height, width = net.grid if net.kind else (min(_ALONE, side) for side in net.grid)
    pictures = colorize(decode_few(tokenizer, np.array(codes)[:, None, None].repeat(height, 1).repeat(width, 2)))
    top, bottom = (row * pictures.shape[1] // height for row in (height // 2, height // 2 + 1))
    left, right = (column * pictures.shape[2] // width for column in (width // 2, width // 2 + 1))
    return list(pictures[:, top : max(bottom, top + 1), left : max(right, left + 1)])
