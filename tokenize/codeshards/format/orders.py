"""The five sequence orders: permutations of an H×W grid of codes.

``sequence[t] = raster[order[t]]`` with ``raster[r * W + c]``, and ``raster = sequence[inverse]``. The tables
equal the published permutations of the paper's later reference code, so that priors trained with both can be
compared.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from codeshards.format.errors import ShardError

OrderName = Literal["row_major", "spiral_out", "zcurve", "subsample", "alternate"]
"""Name of a sequence order of a grid of codes."""

ORDER_NAMES: tuple[OrderName, ...] = get_args(OrderName)
"""All orders, in the sequence of the shard's columns."""

Permutation = npt.NDArray[np.int64]


def order(name: str, height: int, width: int) -> Permutation:
    """The permutation of one order: ``sequence[t] = raster[order[t]]``.

    Args:
        name: One of ``ORDER_NAMES``.
        height: Rows of the grid.
        width: Columns of the grid.

    Returns:
        int64 [height * width], read-only and shared between callers.

    Raises:
        ShardError: The name is unknown, or the order is undefined on this grid (``spiral_out`` requires an
            even square, ``subsample`` a square with a power-of-two side).
    """
    checked = check_order_name(name)
    _check_grid(height, width)
    requirement = _missing_requirement(checked, height, width)
    if requirement:
        raise ShardError(
            f"order {name!r} is undefined on a {height}×{width} grid: it requires {requirement}. "
            f"Orders defined on this grid: {', '.join(defined_orders(height, width))}"
        )
    return _table(checked, height, width)


def inverse(name: str, height: int, width: int) -> Permutation:
    """The inverse permutation, ``argsort(order)``: ``raster[i] = sequence[inverse[i]]``.

    Returns:
        int64 [height * width], read-only and shared between callers.

    Raises:
        ShardError: As for :func:`order`.
    """
    order(name, height, width)  # checks that it is defined
    return _inverse_table(check_order_name(name), height, width)


def defined_orders(height: int, width: int) -> tuple[OrderName, ...]:
    """The orders that are defined on this grid; ``row_major``, ``zcurve`` and ``alternate`` always are."""
    _check_grid(height, width)
    return tuple(name for name in ORDER_NAMES if not _missing_requirement(name, height, width))


def check_order_name(name: str) -> OrderName:
    """Return ``name`` as an :data:`OrderName`, or raise a ShardError that lists the valid names."""
    if name not in ORDER_NAMES:
        raise ShardError(f"unknown order {name!r}. Choose one of: {', '.join(ORDER_NAMES)}")
    return name


def orders_hash(names: Iterable[str], height: int, width: int) -> str:
    """sha256 (hex) over the names, the grid and the tables of these orders, in the sequence given.

    It is part of every shard, so that a reader with other tables refuses the shard.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {height} {width}\n".encode())
        digest.update(order(name, height, width).astype("<i8").tobytes())
    return digest.hexdigest()


def _check_grid(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ShardError(f"a grid of codes requires at least one row and one column, found {height}×{width}")


def _missing_requirement(name: OrderName, height: int, width: int) -> str:
    """The requirement of an order that this grid does not meet; empty where the order is defined."""
    if name == "spiral_out" and (height != width or height % 2):
        return "a square grid with an even side"
    if name == "subsample" and (height != width or height & (height - 1)):
        return "a square grid whose side is a power of two"
    return ""


@functools.lru_cache(maxsize=128)
def _table(name: OrderName, height: int, width: int) -> Permutation:
    return _read_only(_BUILDERS[name](height, width))


@functools.lru_cache(maxsize=128)
def _inverse_table(name: OrderName, height: int, width: int) -> Permutation:
    return _read_only(np.argsort(_table(name, height, width)))


def _read_only(table: Permutation) -> Permutation:
    # All callers share the cached array, so it must not be writeable.
    table = np.ascontiguousarray(table, dtype=np.int64)
    table.flags.writeable = False
    return table


def _raster(height: int, width: int) -> Permutation:
    return np.arange(height * width, dtype=np.int64).reshape(height, width)


def _row_major(height: int, width: int) -> Permutation:
    return _raster(height, width).ravel()


def _spiral_out(height: int, width: int) -> Permutation:
    """From (H/2, W/2-1): 1 up, 1 right, 2 down, 2 left, 3 up, ... until the grid is full."""
    row, column = height // 2, width // 2 - 1
    path = [row * width + column]
    run = 1
    while len(path) < height * width:
        sign = -1 if run % 2 else 1  # odd runs go up and right, even runs down and left
        for d_row, d_column in ((sign, 0), (0, -sign)):
            # The last run is shortened because it would leave the grid.
            for _ in range(min(run, height * width - len(path))):
                row, column = row + d_row, column + d_column
                path.append(row * width + column)
        run += 1
    return np.array(path, dtype=np.int64)


def _zcurve(height: int, width: int) -> Permutation:
    """Ascending Morton code: column bit p goes to bit 2p, row bit p to bit 2p+1."""
    rows, columns = np.indices((height, width)).reshape(2, -1)
    morton = np.zeros(height * width, dtype=np.int64)
    for bit in range(max(height, width).bit_length()):
        morton |= ((columns >> bit) & 1) << (2 * bit)
        morton |= ((rows >> bit) & 1) << (2 * bit + 1)
    return np.argsort(morton)


def _subsample(height: int, width: int) -> Permutation:
    """Recursive 2×2 polyphase split: the four phases of a grid one after the other, each split again."""
    phases = _raster(height, width)[None]
    while phases.shape[1] > 1:
        count, side = phases.shape[0], phases.shape[1] // 2
        phases = phases.reshape(count, side, 2, side, 2).transpose(0, 2, 4, 1, 3).reshape(-1, side, side)
    return phases.ravel()


def _alternate(height: int, width: int) -> Permutation:
    """Row major with every odd row reversed."""
    grid = _raster(height, width)
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid.ravel()


_BUILDERS: dict[OrderName, Callable[[int, int], Permutation]] = {
    "row_major": _row_major,
    "spiral_out": _spiral_out,
    "zcurve": _zcurve,
    "subsample": _subsample,
    "alternate": _alternate,
}
