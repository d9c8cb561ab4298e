"""Pictures and their codes: encode a picture of the person, decode codes that the person has changed.

Axes: N pictures, T codes of a picture, h × w the grid of codes, S the side of a coarser grid.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codeshards.format import ORDER_NAMES, defined_orders, order
from imagepriors.api.images import to_arrays
from imagepriors.decode.rows import read_rows
from imagepriors.studio.contents import Contents
from imagepriors.studio.jobs import Event
from imagepriors.studio.pictures import decode_few, read_picture, uris
from imagepriors.studio.rows import row_of
from runkit.configs import check_fields, require
from runkit.errors import UserError
from vqgan.config import ModelConfig

_MOST = 4
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
    tokenizer = contents.picture_tokenizer(request.tokenizer)
    seen, _ = to_arrays(read_picture(request.picture), tokenizer.config)
    codes_Nhw = tokenizer.loaded.encode(seen)
    return {
        "codes": codes_Nhw[0].reshape(-1).tolist(),
        "picture": uris(np.stack(seen), exact=True)[0],
        "decoded": uris(decode_few(tokenizer.loaded, codes_Nhw))[0],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRequest:
    """Codes to decode."""

    tokenizer: str
    """Name of the tokenizer."""
    codes: list[list[int]]
    """Grids of codes [N][h·w], each in raster order."""
    exact: bool = False
    """Whether the pictures must be without loss, to compare or save them."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(1 <= len(self.codes) <= _MOST, "the number of codes", len(self.codes), f"send 1 to {_MOST} grids")


def decode(contents: Contents, request: DecodeRequest) -> Event:
    """Decode grids of codes to ``pictures``.

    Raises:
        UserError: Their number is not that of the tokenizer's grid, or one is not in the codebook.
    """
    tokenizer = contents.tokenizer(request.tokenizer).loaded
    return {"pictures": uris(decode_few(tokenizer, grids(tokenizer.config, request.codes)), exact=request.exact)}


def grids(net: ModelConfig, codes: list[list[int]]) -> npt.NDArray[np.int64]:
    """Return grids of codes [N, h, w] of a tokenizer.

    Raises:
        UserError: Their number is not that of the tokenizer's grid, or one is not in the codebook.
    """
    height, width = net.grid
    if wrong := [len(grid) for grid in codes if len(grid) != height * width]:
        raise UserError(f"{wrong[0]} codes: a picture of this tokenizer has {height}×{width}")
    lowest, highest = min(map(min, codes)), max(map(max, codes))
    if lowest < 0 or highest >= net.codebook_size:
        wrong_code = lowest if lowest < 0 else highest
        raise UserError(f"code {wrong_code} is not in the codebook: use 0 to {net.codebook_size - 1}")
    return np.array(codes, np.int64).reshape(-1, height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrdersRequest:
    """A grid whose orders are shown."""

    tokenizer: str
    """Name of the tokenizer."""

    def __post_init__(self) -> None:
        check_fields(self)


def orders(contents: Contents, request: OrdersRequest) -> Event:
    """Return the ``orders`` of a tokenizer's grid, name → raster cells, and the names that are ``undefined`` on it."""
    height, width = contents.tokenizer(request.tokenizer).config.grid
    defined = defined_orders(height, width)
    return {
        "orders": {name: order(name, height, width).tolist() for name in defined},
        "undefined": [name for name in ORDER_NAMES if name not in defined],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalesRequest:
    """Codes whose coarser scales are shown."""

    tokenizer: str
    """Name of the tokenizer."""
    codes: list[int]
    """Codes [h·w] in raster order."""
    shards: str = ""
    """Name of the shards that hold the codes, where they are those of a row: scales that it has are shown as stored."""
    split: str = ""
    """Split of this row."""
    index: int = 0
    """Index of this row."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.index >= 0, "index", self.index, "use 0 or more")


def scales(contents: Contents, request: ScalesRequest) -> Event:
    """Decode the coarser scales of codes.

    Returns:
        ``scales``, coarse to fine, each with ``side``, ``codes``, ``picture`` and whether the codes are ``stored``; or
        none, and in ``why`` the reason.

    Raises:
        UserError: A name, the row or a code does not fit.
    """
    tokenizer = contents.tokenizer(request.tokenizer).loaded
    codes_1hw = grids(tokenizer.config, [request.codes])
    height, width = tokenizer.config.grid
    if height != width:
        return {"scales": [], "why": f"a grid of {height}×{width} codes has no coarser scales: only square grids have"}
    if tokenizer.config.kind:
        return {"scales": [], "why": f"{request.tokenizer} has no coarser scales: another package has its codebook"}
    found = _stored_scales(contents, request) if request.shards else {}
    stored = set(found)
    sides = {2**k for k in range(height.bit_length()) if height % 2**k == 0 and 2**k < height}
    found |= {side: tokenizer.rescale(codes_1hw, side).astype(np.int64) for side in sides - stored}
    return {
        "scales": [
            {
                "side": side,
                "codes": codes_1SS.reshape(-1).tolist(),
                "picture": uris(decode_few(tokenizer, codes_1SS), exact=True)[0],
                "stored": side in stored,
            }
            for side, codes_1SS in sorted(found.items())
        ],
        "why": "",
    }


def _stored_scales(contents: Contents, request: ScalesRequest) -> dict[int, npt.NDArray[np.int64]]:
    """Side → codes [1, S, S] that a row of shards has.

    Raises:
        UserError: There is no such row.
    """
    dataset, indices = row_of(contents, request)
    columns = [f"scale_{side}" for side in dataset.spec.scales]
    row = read_rows(dataset, request.split, columns, indices) if columns else {}
    return {side: row[f"scale_{side}"].astype(np.int64).reshape(1, side, side) for side in dataset.spec.scales}
