"""Pictures and their codes: encode a picture of the person, decode codes that the person has changed."""

from dataclasses import dataclass

import numpy as np

from imagepriors.api.images import to_arrays
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event
from imagepriors.studio.pictures import read_picture, uris
from runkit.configs import check_fields, require
from runkit.errors import UserError

_MOST = 64
"""Grids of codes in one request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRequest:
    """A picture to encode."""

    tokenizer: str
    """Name of a tokenizer of RGB pictures."""
    picture: str
    """Data URI."""

    def __post_init__(self) -> None:
        check_fields(self)


def encode(contents: Contents, request: EncodeRequest) -> Event:
    """Encode a picture as the dataset of the tokenizer is encoded.

    Returns:
        ``codes`` [h·w] in raster order, the ``picture`` as the tokenizer sees it, and the ``decoded`` codes.

    Raises:
        UserError: The tokenizer is of another modality, or the picture cannot be read.
    """
    tokenizer = contents.tokenizer(request.tokenizer)
    if tokenizer.config.modality != "rgb":
        raise UserError(f"{request.tokenizer} encodes {tokenizer.config.modality}: choose a tokenizer of pictures")
    seen, _ = to_arrays(read_picture(request.picture), tokenizer.config)
    codes_Nhw = tokenizer.loaded.encode(seen)
    return {
        "codes": codes_Nhw[0].reshape(-1).tolist(),
        "picture": uris(np.stack(seen), exact=True)[0],
        "decoded": uris(tokenizer.loaded.decode(codes_Nhw))[0],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """Codes to decode."""

    tokenizer: str
    """Name of the tokenizer."""
    codes: list[list[int]]
    """Grids of codes [N][h·w], each in raster order."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(1 <= len(self.codes) <= _MOST, "the number of codes", len(self.codes), f"send 1 to {_MOST} grids")


def decode(contents: Contents, request: DecodeRequest) -> Event:
    """Decode grids of codes to ``pictures``.

    Raises:
        UserError: Their number is not that of the tokenizer's grid, or one is not in the codebook.
    """
    tokenizer = contents.tokenizer(request.tokenizer)
    height, width = tokenizer.config.grid
    if wrong := [len(codes) for codes in request.codes if len(codes) != height * width]:
        raise UserError(f"{wrong[0]} codes: a picture of {request.tokenizer} has {height}×{width}")
    codes_NT = np.array(request.codes, np.int64)
    if codes_NT.min() < 0:
        raise UserError(f"code {codes_NT.min()} is negative: use 0 to {tokenizer.config.codebook_size - 1}")
    return {"pictures": uris(tokenizer.loaded.decode(codes_NT.reshape(-1, height, width)))}
