"""Two parts side by side: the figures of priors, and what tokenizers make of the same pictures.

Axes: N pictures, h × w the grid of codes.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codeshards.format.files import read_json
from imagepriors.api.images import to_arrays
from imagepriors.decode.rows import read_codes, select_rows
from imagepriors.reports.run_codes import psnr_db
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event, Report
from imagepriors.studio.pictures import read_picture, uris
from imagepriors.studio.rows import split_of
from runkit.configs import check_fields, require
from runkit.errors import UserError
from vqgan.config import ModelConfig

_MOST = 16
"""Pictures to reconstruct."""
_BATCH = 4
"""Pictures that are encoded and decoded between two reports."""
_MAGNIFIED = 4
"""Factor of the differences that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FiguresRequest:
    """A prior whose figures are known or not."""

    prior: str
    """Name of the prior."""

    def __post_init__(self) -> None:
        check_fields(self)


def figures(contents: Contents, request: FiguresRequest) -> Event:
    """Read what training and evaluation recorded about a prior.

    Returns:
        ``figures``: name → number.

    Raises:
        UserError: There is no such prior.
    """
    folder = contents.prior(request.prior).folder
    trained, evaluated = (_json(folder / name) for name in ("summary.json", "evaluation.json"))
    names = ("parameters", "steps", "train_rows", "train_seconds", "val_nll_nats", "val_bits_per_code")
    found = {name: trained.get(name) for name in names}
    if isinstance(figures := evaluated.get("figures"), dict):
        found |= figures
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {"figures": {name: value for name, value in numbers.items() if math.isfinite(value)}}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructRequest:
    """Pictures that a tokenizer encodes and decodes."""

    tokenizer: str
    """Name of a tokenizer of RGB pictures."""
    pictures: list[str] = field(default_factory=list)
    """Data URIs; without any, pictures of the shards are taken."""
    shards: str = ""
    """Name of the shards whose decoded rows are the pictures."""
    split: str = ""
    """Split of the shards."""
    first: int = 0
    """Number of rows by which the chosen ones are shifted."""
    n: int = 6
    """Number of rows, evenly spaced."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(len(self.pictures) <= _MOST, "the number of pictures", len(self.pictures), f"send at most {_MOST}")
        require(1 <= self.n <= _MOST, "n", self.n, f"use 1 to {_MOST}")
        require(self.first >= 0, "first", self.first, "use 0 or more")


def reconstruct(contents: Contents, request: ReconstructRequest, report: Report) -> Event:
    """Encode and decode pictures with a tokenizer.

    Args:
        contents: What the page shows.
        request: The tokenizer and the pictures.
        report: Gets the pictures that are done, and all.

    Returns:
        ``originals`` as the tokenizer sees them, ``reconstructions`` and ``differences``, magnified; ``psnr_db`` of
        each and their ``mean_psnr_db``; ``names``; the size of the codes, the codes ``used`` in all pictures, and
        ``seconds_per_picture``.

    Raises:
        UserError: The tokenizer is of another modality, a picture cannot be read, or there are no such shards.
    """
    tokenizer = contents.picture_tokenizer(request.tokenizer)
    seen, names = _seen(contents, request, tokenizer.config)
    network, codes, decoded = tokenizer.loaded, [], []
    started = time.monotonic()
    for start in range(0, len(seen), _BATCH):
        codes.append(network.encode(list(seen[start : start + _BATCH])))
        decoded.append(network.decode(codes[-1]))
        report(min(start + _BATCH, len(seen)), len(seen))
    seconds = (time.monotonic() - started) / len(seen)
    made = np.concatenate(decoded)
    each_db = [psnr_db(one[None], other[None]) for one, other in zip(seen, made, strict=True)]
    height, width = tokenizer.config.grid
    bits = height * width * math.log2(tokenizer.config.codebook_size)
    return {
        "names": names,
        "originals": uris(seen),
        "reconstructions": uris(made),
        "differences": uris(_differences(seen, made)),
        "psnr_db": each_db,
        "mean_psnr_db": float(np.mean(each_db)),
        "resolution": tokenizer.config.resolution,
        "grid": [height, width],
        "codebook_size": tokenizer.config.codebook_size,
        "bits": bits,
        "bits_per_pixel": bits / tokenizer.config.resolution**2,
        "used": len(np.unique(np.concatenate(codes))),
        "seconds_per_picture": seconds,
    }


def _differences(seen: npt.NDArray[np.uint8], made: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Absolute differences, magnified."""
    return np.asarray((np.abs(seen.astype(np.int16) - made) * _MAGNIFIED).clip(0, 255), np.uint8)


def _seen(
    contents: Contents, request: ReconstructRequest, config: ModelConfig
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """The pictures of a request as a tokenizer sees them, and the keys of those that are of shards."""
    if request.pictures:  # one after the other, because a large picture takes much memory
        return np.stack([to_arrays(read_picture(one), config)[0][0] for one in request.pictures]), []
    dataset = split_of(contents, request)
    total = dataset.rows(request.split)
    if not total:
        raise UserError(f"{request.shards} has no rows in the split {request.split!r}: open pictures of your own")
    made_by = contents.codes_tokenizer(dataset.spec.image.fingerprint, request.shards)
    indices = np.unique((select_rows(dataset, request.split, request.n) + request.first % total) % total)
    codes_Nhw, found = read_codes(dataset, request.split, indices, ["key"])
    return np.stack(to_arrays(made_by.decode(codes_Nhw), config)[0]), list(map(str, found["key"]))
