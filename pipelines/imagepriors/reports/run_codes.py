"""The parts of a run's page about pictures and their codes: data, reconstructions, codebook, orders.

Axes: N pictures, H × W the code grid, K codes of the codebook, T codes of a sequence.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeprior.config import SequenceSpec
from codeprior.given import given_prefix
from codeshards.format import ShardDataset, ShardError, defined_orders, inverse, order
from imagepriors.decode.partial import decode_partial
from imagepriors.decode.rows import read_rows
from imagepriors.reports.charts import line_chart
from imagepriors.reports.figures import Pixels, colorize
from imagepriors.reports.page import Picture, embed
from imagepriors.reports.run_folder import RunFolder, summary
from runkit.places import as_typed
from vqgan.data import Split, spread
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer

log = logging.getLogger(__name__)
_SHOWN = 12
_DECODED_PIXELS = 48 * 64 * 64
"""Pixels of the validation pictures that are decoded for the codebook's picture."""
_ATLAS = (32, 512, 8)
"""Columns and maximum number of cells of the codebook's picture, and maximum side of a cell in pixels."""
_DRAWN_CODES = 1 << 14  # points of a chart of the codebook
_DRAWN_CELLS = 1024
_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Parts of a sequence whose decoded prefixes are shown."""


@dataclass(frozen=True, slots=True)
class Coded:
    """Validation pictures with their codes and reconstructions."""

    names: list[str]
    """Class names, or keys where there are no classes."""
    originals: Pixels
    """[N, H, W, 3]."""
    codes_NHW: npt.NDArray[np.int64]
    """Raster order."""
    decoded: Pixels
    """[N, H, W, 3]."""
    colours_K: npt.NDArray[np.uint8]
    """Mean colour of each code's patches [K, 3]; grey for codes that these pictures do not have."""
    example: int
    """The most colourful of the pictures that are shown."""

    @property
    def example_colours(self) -> Pixels:
        """The example's codes as their mean colours [H, W, 3]."""
        return np.asarray(self.colours_K[self.codes_NHW[self.example]])


def data_tiles(run: RunFolder) -> list[list[Picture]]:
    """Training pictures, each with its conditions, evenly spaced over the split."""
    net, split = run.tokenizer.config, run.splits["train"]
    tiles = []
    for i in spread(len(split), _SHOWN // 2 if split.conditions else _SHOWN):
        sample = split.read_good(i, net.resolution, conditions=split.conditions, geometry=net.geometry)
        name = _label(run, sample.label) or sample.key
        pictures = [embed(sample.image, f"training picture: {name}", name)]
        for condition in split.conditions:
            pixels = colorize(np.asarray(sample.picture(condition))[None])[0]
            pictures.append(embed(pixels, f"{condition} of the picture above", condition))
        tiles.append(pictures)
    return tiles


def _label(run: RunFolder, label: int | None) -> str:
    names = run.class_names
    return "" if label is None else names[label] if 0 <= label < len(names) else f"class {label}"


def read_coded(run: RunFolder) -> Coded:
    """Validation pictures, evenly spaced, with the codes of the shards, or of the tokenizer if there are no shards.

    Raises:
        ShardError: The shards are of other pictures than the dataset.
    """
    split, net = run.splits["val"], run.tokenizer.config
    count = max(_SHOWN, min(48, _DECODED_PIXELS // net.resolution**2))
    found = None if run.shards is None else _shard_codes(run.shards, count)
    if found is None:
        keys, codes_NHW = [split.keys[i] for i in spread(len(split), count)], None
    else:
        keys, codes_NHW = found
    index_of = {key: index for index, key in enumerate(split.keys)}
    if missing := [key for key in keys if key not in index_of]:
        raise ShardError(
            f"{missing[0]!r} of {run.path / 'shards'} is not a picture of {as_typed(run.data)}: "
            "pass the shards' --dataset and --data"
        )
    indices = [index_of[key] for key in keys]
    originals = np.stack([_original(split, index, run) for index in indices])
    if codes_NHW is None:
        codes_NHW = run.tokenizer.encode(list(originals)).astype(np.int64)
    decoded = colorize(run.tokenizer.decode(codes_NHW))
    names = [_label(run, split.items[index].label) or split.keys[index] for index in indices]
    colours_K = np.full((net.codebook_size, 3), 128, np.uint8)
    codes, patches = mean_patches(codes_NHW, decoded)
    colours_K[codes] = patches.mean((1, 2)).round()
    return Coded(names, originals, codes_NHW, decoded, colours_K, _most_colourful(originals[:_SHOWN]))


def _most_colourful(pictures: Pixels) -> int:
    """Index of the picture whose opponent colours, red-green and yellow-blue, vary most."""
    red, green, blue = np.moveaxis(pictures.astype(np.float32), -1, 0)
    variances = (red - green).var((1, 2)) + ((red + green) / 2 - blue).var((1, 2))
    return int(variances.argmax())


def _shard_codes(shards: ShardDataset, count: int) -> tuple[list[str], npt.NDArray[np.int64]] | None:
    """Keys and codes [N, H, W] of whole validation pictures; None if the shards have none."""
    if "val" not in shards.splits:
        return None
    whole = np.flatnonzero(read_rows(shards, "val", ["view"], 0)["view"] == 0)
    if not len(whole):
        return None
    name, grid = shards.spec.orders[0], shards.spec.image
    rows = read_rows(shards, "val", ["key", f"codes_{name}"], whole[spread(len(whole), count)])
    codes_NT = rows[f"codes_{name}"][:, inverse(name, grid.height, grid.width)].astype(np.int64)
    return list(rows["key"]), codes_NT.reshape(-1, grid.height, grid.width)


def _original(split: Split, index: int, run: RunFolder) -> Pixels:
    """A picture in the tokenizer's input format; grey if it cannot be read any more."""
    net = run.tokenizer.config
    try:
        return split.read(index, net.resolution, geometry=net.geometry).image
    except InputError as error:
        log.warning("skipped: %s", error)
        return np.full((net.resolution, net.resolution, 3), 128, np.uint8)


def mean_patches(
    codes_NHW: npt.NDArray[np.int64], decoded: Pixels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the codes that occur, most frequent first, and the mean of the pixels [K, h, w, 3] at their cells."""
    blocks = _blocks(decoded, *codes_NHW.shape[1:])
    patches = blocks.swapaxes(2, 3).reshape(-1, *blocks.shape[2::2], 3)
    codes, cell_code, counts = np.unique(codes_NHW, return_inverse=True, return_counts=True)
    sums = np.zeros((len(codes), *patches.shape[1:]), np.float32)
    np.add.at(sums, cell_code.ravel(), patches)
    frequent = np.argsort(-counts, kind="stable")
    sums /= counts[:, None, None, None]
    return codes[frequent], sums[frequent]


def _blocks(pictures: Pixels, height: int, width: int) -> Pixels:
    """The pixels of each cell of a grid of codes, [N, height, h, width, w, 3]; a cell has one pixel or more."""
    n, side, _, _ = pictures.shape
    h, w = max(1, side // height), max(1, side // width)
    rows, columns = (np.arange(cells * size) * side // (cells * size) for cells, size in ((height, h), (width, w)))
    return pictures[:, rows][:, :, columns].reshape(n, height, h, width, w, 3)


def reconstruction_pairs(coded: Coded) -> list[tuple[Picture, Picture]]:
    """Originals and reconstructions, with the PSNR of each."""
    return [
        (embed(original, f"original: {name}", name), embed(decoded, f"reconstruction: {name}", f"{psnr:.1f} dB"))
        for name, original, decoded in zip(coded.names[:_SHOWN], coded.originals, coded.decoded, strict=False)
        for psnr in [psnr_db(original[None], decoded[None])]
    ]


def psnr_db(originals: Pixels, decoded: Pixels) -> float:
    """Mean peak signal-to-noise ratio of pictures [N, H, W, 3]."""
    errors = np.square(originals.astype(np.float32) - decoded).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-3))))


def block_means(originals: Pixels, height: int, width: int) -> Pixels:
    """The pictures with each cell of the code grid filled with its mean colour, a scale for reconstructions."""
    cells = _blocks(originals, height, width).mean((2, 4)).round().astype(np.uint8)
    pixels = np.arange(originals.shape[1])
    rows, columns = (pixels * cells // len(pixels) for cells in (height, width))
    return np.asarray(cells[:, rows][:, :, columns])


def codebook(run: RunFolder, coded: Coded) -> dict[str, Any]:
    """Picture of the codebook, and its frequencies in the validation split if the training recorded them."""
    columns, most, largest = _ATLAS
    _, patches = mean_patches(coded.codes_NHW, coded.decoded)
    every, across = (max(1, side // largest) for side in patches.shape[1:3])
    whole_rows = max(columns, len(patches) // columns * columns)
    cells = patches[: min(most, whole_rows), ::every, ::across].round().astype(np.uint8)
    height, width = cells.shape[1:3]
    rows = math.ceil(len(cells) / columns)
    atlas = np.zeros((rows * columns, height, width, 3), np.uint8)
    atlas[: len(cells)] = cells
    pixels = atlas.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    alt = f"mean patch of the {len(cells)} most frequent codes"
    counts = sorted(summary(run.path / "tokenizer").get("code_counts", ()), reverse=True)
    share = [100 * count / max(1, sum(counts)) for count in counts]
    return {
        "atlas": embed(pixels, alt, crisp=True), "shown": len(cells), "pictures": len(coded.decoded),
        "usage": usage_chart(share),
    }  # fmt: skip


def usage_chart(share_K: list[float]) -> Any:
    """Chart of the share of each code in per cent, most frequent first; None without codes."""
    step = -(-len(share_K) // _DRAWN_CODES)
    ranks = list(range(1, len(share_K) + 1, step or 1))
    curves = {"share of all codes": (ranks, share_K[:: step or 1])}
    return line_chart("% of all codes", curves, x_label="code, by frequency", from_zero=True, area=True)


def path_grid(run: RunFolder) -> tuple[int, int]:
    """The code grid, halved until its cells are few enough to draw."""
    height, width = run.grid
    while height * width > _DRAWN_CELLS:
        height, width = max(1, height // 2), max(1, width // 2)
    return height, width


def order_cards(run: RunFolder, coded: Coded) -> list[dict[str, Any]]:
    """For each order: its path over the grid of the example, and decoded prefixes of the example's codes."""
    height, width = run.grid
    rows, columns = path_grid(run)
    raster_T = coded.codes_NHW[coded.example].reshape(-1)
    cards = []
    for name in defined_orders(rows, columns) if run.shards is None else run.shards.spec.orders:
        if name not in defined_orders(rows, columns):
            continue
        cells = order(name, height, width)
        sequence = SequenceSpec(
            height=height, width=width, codebook_size=run.tokenizer.config.codebook_size, order=name,
            fingerprint=run.tokenizer.fingerprint,
        )  # fmt: skip
        prefixes = []
        for length in [max(1, round(part * len(cells))) for part in _FRACTIONS]:
            pixels = decode_beginning(run.tokenizer, sequence, raster_T[cells][None, :length])[0]
            prefixes.append(embed(pixels, f"the first {length} codes in {name}, decoded", f"{length} codes"))
        path = [(int(cell % columns), int(cell // columns)) for cell in order(name, rows, columns)]
        cards.append({"name": name, "cells": path, "prefixes": prefixes})
    return cards


def decode_beginning(tokenizer: Tokenizer, sequence: SequenceSpec, codes_NT: npt.NDArray[np.int64]) -> Pixels:
    """Decode the first codes of sequences. Cells without a code are grey.

    The decoder reads a code in every cell. In these it reads that of the nearest cell with one, which tints the others
    least.
    """
    start = 0
    for height, width in sequence.grids:  # the grid of the last code
        if start + height * width >= codes_NT.shape[1]:
            break
        start += height * width
    cells = sequence.permutation(height, width)
    rows, columns = cells // width, cells % width
    known = codes_NT.shape[1] - start
    distance = np.abs(rows[:, None] - rows[:known]) + np.abs(columns[:, None] - columns[:known])
    whole_NT = np.zeros((len(codes_NT), sequence.length), np.int64)
    whole_NT[:, :start] = codes_NT[:, :start]
    whole_NT[:, start : start + len(cells)] = codes_NT[:, start + distance.argmin(1)]
    given_NT = given_prefix(sequence, torch.from_numpy(codes_NT)).numpy()
    return decode_partial(tokenizer, sequence, given_NT, whole_NT)


def sequences(run: RunFolder, coded: Coded) -> Pixels:
    """The example's codes as mean colours in each order, a row of pixels per order [orders, T, 3]."""
    height, width = run.grid
    raster_TC = coded.example_colours.reshape(-1, 3)
    names = () if run.shards is None else run.shards.spec.orders
    return np.stack([raster_TC[order(name, height, width)] for name in names])
