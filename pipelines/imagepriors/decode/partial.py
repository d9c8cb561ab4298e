"""Pictures of which a part is known: descriptions of the part, and its picture.

Axes: N pictures, T codes of a sequence, h × w the grid of codes, H × W a mask.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeprior.config import SequenceSpec
from codeprior.given import UNKNOWN, check_known
from codeprior.sample import to_grids
from codeshards.format import ShardError
from imagepriors.reports.figures import Pixels, colorize
from vqgan.tokenizer import Tokenizer

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
REGIONS = ("upper", "left", "corner", "centre", "checkerboard")
"""Regions that have a name."""


def known_codes(sequence: SequenceSpec, given: Any) -> Mask:
    """The codes that a description denotes, bool [T] in the prior's order.

    Args:
        sequence: Layout of the prior's sequences.
        given: What is known of a picture: a number of first codes; the `upper` or `left` half, the upper left `corner`
            (a quarter), the `centre` (a quarter), or every second cell (`checkerboard`); a rectangle
            LEFT,TOP,RIGHT,BOTTOM in fractions of the picture; the path of a PNG, or an array [H, W], in which the known
            part is white or true; `not-` before a region or rectangle for all but it; or `scales-K`, the first K scales
            of a multiscale prior. A cell is known if it is wholly inside.

    Raises:
        ShardError: The description is unknown, no cell is inside, or the prior has fewer scales.
        PriorError: The prior has one order that does not begin with this part.
    """
    if isinstance(given, str) and given.startswith("scales-") and given[7:].isdecimal():
        if not 0 < int(given[7:]) <= len(sequence.scales):
            raise ShardError(f"given = {given!r}: this prior has {len(sequence.scales)} scales before the full grid")
        given = sum(math.prod(grid) for grid in sequence.grids[: int(given[7:])])
    if isinstance(given, int | np.integer) or (isinstance(given, str) and given.isdecimal()):
        known_T: Mask = np.arange(sequence.length) < int(given)
        if int(given) < 0 or known_T.all():
            raise _nothing_to_draw(given, sequence)
        return known_T
    if 1 in (sequence.height, sequence.width) and sequence.height != sequence.width:
        raise ShardError(f"given = {given!r}: codes in a row have no cells on the picture; use a number of codes")
    if sequence.scales:
        raise ShardError(f"given = {given!r}: a multiscale prior completes a number of codes, or scales-K")
    known_hw = _known_cells(given, sequence.height, sequence.width)
    if not known_hw.any():
        raise ShardError(f"given = {given!r}: no cell of the {sequence.height}×{sequence.width} grid is wholly inside")
    if known_hw.all():
        raise _nothing_to_draw(given, sequence)
    known_T = known_hw.reshape(-1)[sequence.permutation(*known_hw.shape)]
    check_known(sequence, torch.from_numpy(known_T))
    return known_T


def _nothing_to_draw(given: Any, sequence: SequenceSpec) -> ShardError:
    return ShardError(f"given = {given}: this prior's sequences have {sequence.length} codes; leave some to draw")


def _known_cells(given: Any, height: int, width: int) -> Mask:
    """The cells [h, w] that a region, a rectangle or a mask denotes."""
    if not isinstance(given, str | Path):
        return _wholly_inside(np.asarray(given), height, width)
    text = str(given)
    if text.lower().endswith(".png") and (not text.startswith("not-") or Path(text).exists()):
        return _wholly_inside(_read_mask(Path(text)), height, width)
    if text.startswith("not-"):
        return ~_known_cells(text[4:], height, width)
    rows, columns = np.mgrid[:height, :width]
    if text == "checkerboard":
        return np.asarray((rows + columns) % 2 == 0)
    bounds = {
        "upper": (0, 0, width, height // 2),
        "left": (0, 0, width // 2, height),
        "corner": (0, 0, width // 2, height // 2),
        "centre": (width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2),
    }.get(text) or _rectangle(text, height, width)
    left, top, right, bottom = bounds
    return np.asarray((columns >= left) & (columns + 1 <= right) & (rows >= top) & (rows + 1 <= bottom))


def _rectangle(text: str, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in cells, of a rectangle that is described in fractions of the picture."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError
    except ValueError:
        raise ShardError(
            f"given = {text!r}: use a number of codes, {', '.join(REGIONS)}, a rectangle LEFT,TOP,RIGHT,BOTTOM in "
            "fractions of the picture such as 0.25,0.25,0.75,0.75, the path of a .png, not- before one of them, or "
            "scales-K"
        ) from None
    tolerance = 1e-9  # fractions such as 1/3 are not exact
    return (
        left * width - tolerance, top * height - tolerance, right * width + tolerance, bottom * height + tolerance
    )  # fmt: skip


def _read_mask(path: Path) -> npt.NDArray[Any]:
    """A picture as a mask [H, W]: true where it is rather white than black."""
    from vqgan.data.pictures import open_picture

    try:
        with path.open("rb") as file, open_picture(file) as picture:
            return np.asarray(picture.convert("L")) >= 128
    except FileNotFoundError:
        raise ShardError(f"given = {str(path)!r}: the file does not exist") from None
    except Exception as error:  # decoders raise anything on broken files
        raise ShardError(f"given = {str(path)!r} cannot be read as a picture: {error}") from error


def _wholly_inside(mask_HW: npt.NDArray[Any], height: int, width: int) -> Mask:
    """The cells [h, w] whose pixels are all true."""
    if mask_HW.ndim != 2 or mask_HW.shape[0] < height or mask_HW.shape[1] < width:
        raise ShardError(f"given is a mask {list(mask_HW.shape)}: use [H, W], at least {height}×{width}")
    missing = np.zeros((height, width), bool)
    rows, columns = np.nonzero(~mask_HW.astype(bool))
    missing[rows * height // mask_HW.shape[0], columns * width // mask_HW.shape[1]] = True
    return ~missing


def decode_partial(
    tokenizer: Tokenizer, sequence: SequenceSpec, codes_NT: Codes, whole_NT: Codes | None = None
) -> Pixels:
    """Decode sequences in which unknown codes are -1: cells without a code are grey, and coarse scales are enlarged.

    Codes in a row, of a 1-D tokenizer, have no cells on the picture: it is decoded with zeros for the unknown codes.

    A decoder's receptive field covers all cells, so wrong codes tint their neighbours. Pass the whole sequences where
    they are known: they are decoded, and the cells that are unknown in `codes_NT` are covered.
    """
    full = tokenizer.config.resolution
    known_grids = [grid.numpy() for grid in to_grids(sequence, torch.from_numpy(codes_NT) != UNKNOWN)]
    scale = max([0, *(index for index, known in enumerate(known_grids) if known.any())])
    codes_NT = np.where(codes_NT == UNKNOWN, 0, codes_NT) if whole_NT is None else whole_NT
    height, width = sequence.grids[scale]
    pictures = colorize(tokenizer.decode(to_grids(sequence, torch.from_numpy(codes_NT))[scale].numpy()))
    if height != width and 1 in (height, width):
        return pictures
    pictures = pictures.repeat(full // pictures.shape[1], 1).repeat(full // pictures.shape[2], 2)
    pixels = np.arange(full)  # of which a cell need not have a whole number
    mask = known_grids[scale][:, pixels * height // full][:, :, pixels * width // full]
    return np.where(mask[..., None], pictures, np.uint8(128))
