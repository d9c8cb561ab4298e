"""The five orders: golden tables, properties, and naive references written from their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeshards.format import ORDER_NAMES, ShardError, defined_orders, inverse, order
from codeshards.format.orders import check_order_name, orders_hash

GOLDEN_4X4 = {
    "row_major": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    "spiral_out": [9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15],
    "zcurve": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
    "alternate": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
}
SIDES = st.integers(1, 24)
EVEN_SIDES = st.integers(1, 16).map(lambda half: 2 * half)
POWERS = st.integers(0, 5)


@pytest.mark.parametrize("name", ORDER_NAMES)
def test_golden_4x4(name: str) -> None:
    assert order(name, 4, 4).tolist() == GOLDEN_4X4[name]


def test_names_are_the_five_of_the_contract() -> None:
    assert tuple(GOLDEN_4X4) == ORDER_NAMES


# -- independent references, one step at a time ------------------------------------------------------------


def naive_spiral_out(side: int) -> list[int]:
    """Walk with a turtle that turns right whenever the cell on its right is still free."""
    row, column = side // 2, side // 2 - 1
    seen = [(row, column)]
    heading = (-1, 0)
    while len(seen) < side * side:
        row, column = row + heading[0], column + heading[1]
        seen.append((row, column))
        right = (heading[1], -heading[0])
        if (row + right[0], column + right[1]) not in seen:
            heading = right
    return [r * side + c for r, c in seen]


def naive_zcurve(height: int, width: int) -> list[int]:
    """Sort cells by the string of interleaved binary digits, row digit before column digit."""

    def digits(cell: int) -> str:
        row, column = divmod(cell, width)
        return "".join(a + b for a, b in zip(f"{row:016b}", f"{column:016b}", strict=True))

    return sorted(range(height * width), key=digits)


def naive_subsample(cells: list[list[int]]) -> list[int]:
    if len(cells) == 1:
        return cells[0]
    phases = ([row[c::2] for row in cells[r::2]] for r in (0, 1) for c in (0, 1))
    return [cell for phase in phases for cell in naive_subsample(phase)]


def naive_alternate(height: int, width: int) -> list[int]:
    return [r * width + (width - 1 - c if r % 2 else c) for r in range(height) for c in range(width)]


def test_16x16_against_naive_references() -> None:
    raster = [[r * 16 + c for c in range(16)] for r in range(16)]
    assert order("row_major", 16, 16).tolist() == list(range(256))
    assert order("spiral_out", 16, 16).tolist() == naive_spiral_out(16)
    assert order("zcurve", 16, 16).tolist() == naive_zcurve(16, 16)
    assert order("subsample", 16, 16).tolist() == naive_subsample(raster)
    assert order("alternate", 16, 16).tolist() == naive_alternate(16, 16)


@given(SIDES, SIDES)
def test_zcurve_and_alternate_on_any_grid_against_naive_references(height: int, width: int) -> None:
    assert order("zcurve", height, width).tolist() == naive_zcurve(height, width)
    assert order("alternate", height, width).tolist() == naive_alternate(height, width)


# -- laws --------------------------------------------------------------------------------------------------


@given(SIDES, SIDES)
def test_every_defined_order_is_a_permutation_with_its_inverse(height: int, width: int) -> None:
    raster = np.arange(height * width)
    for name in defined_orders(height, width):
        forward, back = order(name, height, width), inverse(name, height, width)
        assert forward.dtype == back.dtype == np.int64
        assert np.array_equal(np.sort(forward), raster)
        assert np.array_equal(forward[back], raster)
        assert np.array_equal(back[forward], raster)


@given(POWERS)
def test_square_power_of_two_grids_have_the_square_orders(power: int) -> None:
    side = 2**power
    expected = [n for n in ORDER_NAMES if n != "spiral_out" or side % 2 == 0]
    assert list(defined_orders(side, side)) == expected


@given(POWERS, SIDES, SIDES)
def test_zcurve_prefixes_are_aligned_blocks(power: int, extra_rows: int, extra_columns: int) -> None:
    """The first 4^k cells are the 2^k × 2^k block in the corner, on every grid that contains it."""
    side = 2**power
    width = side + extra_columns - 1
    prefix = order("zcurve", side + extra_rows - 1, width)[: side * side]
    assert {divmod(cell, width) for cell in prefix.tolist()} == {(r, c) for r in range(side) for c in range(side)}


@given(POWERS)
def test_zcurve_runs_are_aligned_blocks_everywhere(power: int) -> None:
    side = 2**power
    for block in (2**k for k in range(power + 1)):
        runs = order("zcurve", side, side).reshape(-1, block * block)
        rows, columns = np.divmod(runs, side)
        assert (np.ptp(rows // block, axis=1) == 0).all()
        assert (np.ptp(columns // block, axis=1) == 0).all()


@given(POWERS)
def test_subsample_prefixes_are_even_subgrids(power: int) -> None:
    side = 2**power
    for k in range(power + 1):
        stride = side // 2**k
        expected = {r * side + c for r in range(0, side, stride) for c in range(0, side, stride)}
        assert set(order("subsample", side, side)[: 4**k].tolist()) == expected


@given(SIDES, SIDES)
def test_alternate_moves_one_step_at_a_time(height: int, width: int) -> None:
    assert_single_steps(order("alternate", height, width), width)


@given(EVEN_SIDES)
def test_spiral_out_moves_one_step_at_a_time_and_outwards(side: int) -> None:
    table = order("spiral_out", side, side)
    assert_single_steps(table, side)
    rows, columns = np.divmod(table, side)
    centre = (side - 1) / 2
    ring = np.maximum(np.abs(rows - centre), np.abs(columns - centre))
    assert (np.diff(ring) >= 0).all()


def assert_single_steps(table: np.ndarray, width: int) -> None:
    rows, columns = np.divmod(table, width)
    assert (np.abs(np.diff(rows)) + np.abs(np.diff(columns)) == 1).all()


# -- refusals, sharing, hash -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "height", "width", "requirement"),
    [
        ("spiral_out", 5, 5, "even side"),
        ("spiral_out", 4, 6, "even side"),
        ("subsample", 6, 6, "power of two"),
        ("subsample", 4, 8, "power of two"),
    ],
)
def test_undefined_grids_are_refused_by_name(name: str, height: int, width: int, requirement: str) -> None:
    for function in (order, inverse):
        with pytest.raises(
            ShardError, match=f"'{name}' is undefined on a {height}×{width} grid.*{requirement}"
        ) as error:
            function(name, height, width)
        listed = str(error.value).split("Orders defined on this grid: ")[1].split(", ")
        assert listed == list(defined_orders(height, width))
        assert name not in listed


def test_unknown_names_list_the_valid_ones() -> None:
    for call in (lambda: check_order_name("hilbert"), lambda: order("hilbert", 4, 4)):
        with pytest.raises(ShardError, match="unknown order 'hilbert'") as error:
            call()
        assert all(name in str(error.value) for name in ORDER_NAMES)


def test_empty_grids_are_refused() -> None:
    with pytest.raises(ShardError, match="0×4"):
        order("row_major", 0, 4)


def test_tables_are_shared_and_read_only() -> None:
    table = order("zcurve", 8, 8)
    assert order("zcurve", 8, 8) is table
    for shared in (table, inverse("zcurve", 8, 8)):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = 1


def test_hash_tells_orders_names_and_grids_apart() -> None:
    hashes = [
        orders_hash(ORDER_NAMES, 4, 4),
        orders_hash(ORDER_NAMES[::-1], 4, 4),
        orders_hash(ORDER_NAMES, 8, 8),
        orders_hash(["row_major"], 4, 4),
        orders_hash(["row_major"], 2, 8),
    ]
    assert len(set(hashes)) == len(hashes)
    # Shards in the world carry this value: a change of the tables must not go unseen.
    assert hashes[0] == "80c48a6edeac68756e93d19c0fd9e490b1158a5eaebb812fe3efeb5591e2c6d3"
