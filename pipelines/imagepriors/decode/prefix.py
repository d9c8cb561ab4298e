"""Prefixes of code sequences: the first codes of a picture, which a prior completes."""

import math

import numpy as np
import numpy.typing as npt
import torch

from codeprior.config import SequenceSpec
from codeprior.sample import prefix_of_region, to_grids
from codeshards.format import ShardError
from imagepriors.reports.figures import Pixels, colorize
from vqgan.tokenizer import Tokenizer

Codes = npt.NDArray[np.int64]


def prefix_length(sequence: SequenceSpec, given: str) -> int:
    """Number of codes that a description of a prefix denotes.

    Args:
        sequence: Layout of the prior's sequences.
        given: A number of codes; `upper` half, upper left `corner` (a quarter), or `centre` (a quarter) of the picture;
            or `scales-K`, the first K scales of a multiscale prior.

    Raises:
        ShardError: the description is unknown, or the prior has fewer scales.
        PriorError: the prior's order does not begin with this region.
    """
    if given.isdecimal():
        return int(given)
    if given.startswith("scales-") and given[7:].isdecimal():
        if not 0 < int(given[7:]) <= len(sequence.scales):
            raise ShardError(f"given = {given!r}: this prior has {len(sequence.scales)} scales before the full grid")
        return sum(math.prod(grid) for grid in sequence.grids[: int(given[7:])])
    height, width = sequence.height, sequence.width
    regions = {
        "upper": np.s_[: height // 2, :],
        "corner": np.s_[: height // 2, : width // 2],
        "centre": np.s_[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2],
    }
    if given not in regions:
        raise ShardError(f"given = {given!r}: use a number of codes, {', '.join(regions)}, or scales-K")
    region_HW = torch.zeros(height, width, dtype=torch.bool)
    region_HW[regions[given]] = True
    return prefix_of_region(sequence, torch.zeros(1, height, width, dtype=torch.int64), region_HW).shape[1]


def decode_prefix(
    tokenizer: Tokenizer, sequence: SequenceSpec, codes_NT: Codes, whole_NT: Codes | None = None
) -> Pixels:
    """Decode the first T codes of sequences: cells without a code are grey, and coarse scales are enlarged.

    Codes in a row, of a 1-D tokenizer, have no cells on the picture: it is decoded with zeros for the codes to come.

    A decoder's receptive field covers all cells, so wrong codes tint their neighbours. Pass the whole sequences where
    they are known: they are decoded, and the cells outside the prefix are covered.
    """
    full = tokenizer.config.resolution
    padded_NT = np.zeros((len(codes_NT), sequence.length), np.int64) if whole_NT is None else whole_NT.copy()
    padded_NT[:, : codes_NT.shape[1]] = codes_NT
    scale, known = 0, codes_NT.shape[1]
    while known > (size := math.prod(sequence.grids[scale])):
        scale, known = scale + 1, known - size
    height, width = sequence.grids[scale]
    pictures = colorize(tokenizer.decode(to_grids(sequence, torch.from_numpy(padded_NT))[scale].numpy()))
    if height != width and 1 in (height, width):
        return pictures
    known_HW = np.zeros(height * width, bool)
    known_HW[sequence.permutation(height, width)[:known]] = True
    pictures = pictures.repeat(full // pictures.shape[1], 1).repeat(full // pictures.shape[2], 2)
    pixels = np.arange(full)  # of which a cell need not have a whole number
    mask = known_HW.reshape(height, width)[pixels * height // full][:, pixels * width // full]
    return np.where(mask[None, :, :, None], pictures, np.uint8(128))
