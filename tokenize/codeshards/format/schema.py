"""The schema of shards: their columns, how rows become a table, and their metadata.

Axes: N rows of a shard, H×W the grid of codes, L = H·W its codes, S a scale's side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codeshards.format.carried import CarriedType, carried_column, carried_type, check_carried
from codeshards.format.errors import ShardError
from codeshards.format.files import compact_json
from codeshards.format.keys import check_keys
from codeshards.format.orders import ORDER_NAMES, OrderName, check_order_name, order, orders_hash
from runkit.codes import MAX_CODEBOOK_SIZE, Codes, code_dtype
from runkit.jsonfiles import parse_json

FORMAT_VERSION = 1
"""Increased when older versions of this package cannot read new shards."""

METADATA_KEY = b"imagepriors"
"""Key of the schema metadata that describes a shard, as one line of JSON."""

ConditionName = Literal["segmentation", "depth", "pose"]
CONDITION_NAMES: tuple[ConditionName, ...] = get_args(ConditionName)
"""Conditions that a shard may hold beside the image, each encoded by its own tokenizer."""

SCALE_SIDES = (1, 2, 4, 8)
"""Possible sides of the coarser scales of the multiscale prior (paper section 3)."""

NO_LABEL = -1
"""Value of a null label in numpy arrays."""

NO_TOKENIZER = "none: "
"""Start of the fingerprint of codes that were imported without their tokenizer; the rest names them."""

MAX_GRID_CODES = 1 << 20
"""Most codes per image, 1024×1024, because the tables of the orders have this size."""

MAX_SHARD_BYTES = 1 << 30
"""Most bytes of a shard's decoded codes, because loaders hold several whole shards in memory. It allows 419,430 rows of
16×16 codes in five orders."""


def row_key(sample_key: str, view: int) -> str:
    """The key of one view of a sample: the sample's own for view 0, ``KEY-vN`` for the others.

    A key names one row of its split, so that each view of a sample requires its own key.
    """
    return sample_key if view == 0 else f"{sample_key}-v{view}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSpec:
    """The grid of codes of one tokenizer."""

    height: int
    """Rows of the grid, H."""
    width: int
    """Columns of the grid, W."""
    codebook_size: int
    """Number of codebook entries, at most 2^24; every code is smaller."""
    fingerprint: str
    """Identifies the tokenizer: sha256 over its config and weights."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "codebook_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ShardError(f"GridSpec.{name} must be a positive int, found {value!r}")
        if self.codebook_size > MAX_CODEBOOK_SIZE:
            raise ShardError(
                f"GridSpec.codebook_size is {self.codebook_size}: use a codebook of at most {MAX_CODEBOOK_SIZE} entries"
            )
        if self.length > MAX_GRID_CODES:
            raise ShardError(f"the grid is {self.height}×{self.width}: at most {MAX_GRID_CODES:,} codes are possible")
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise ShardError("GridSpec.fingerprint is empty: give the sha256 of the tokenizer's config and weights")

    @property
    def length(self) -> int:
        """Codes per image, H·W."""
        return self.height * self.width

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Type of a stored code: uint16, or uint32 for a codebook above 65,536 entries."""
        return code_dtype(self.codebook_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """Columns of every shard of a dataset; shards with equal specs can be concatenated."""

    image: GridSpec
    """Grid of the image codes."""
    orders: tuple[OrderName, ...] = ORDER_NAMES
    """Sequence orders, one column ``codes_<order>`` each."""
    scales: tuple[int, ...] = ()
    """Sides S of the coarser scales, ascending, out of 1, 2, 4, 8; one column ``scale_<S>`` each."""
    conditions: dict[str, GridSpec] = field(default_factory=dict)
    """Condition name → grid of its own tokenizer; one column ``cond_<name>`` each, always row_major."""
    carried: dict[str, CarriedType] = field(default_factory=dict)
    """Column of the source that is carried along, such as caption → its type; values may be null."""

    def __post_init__(self) -> None:
        if not self.orders or len(set(self.orders)) != len(self.orders):
            raise ShardError(f"ShardSpec.orders must name each order once and at least one, found {self.orders}")
        for name in self.orders:
            order(name, self.image.height, self.image.width)
        allowed = tuple(s for s in SCALE_SIDES if self._is_scale(s))
        if list(self.scales) != sorted(set(self.scales) & set(allowed)):
            raise ShardError(
                f"ShardSpec.scales is {self.scales}, but must be ascending and out of {allowed}: sides that "
                f"divide the {self.image.height}×{self.image.width} grid and are smaller than it"
            )
        for condition in self.conditions:
            if condition not in CONDITION_NAMES:
                raise ShardError(f"unknown condition {condition!r}. Choose out of: {', '.join(CONDITION_NAMES)}")
        check_carried(self.carried)

    def _is_scale(self, side: int) -> bool:
        height, width = self.image.height, self.image.width
        return height % side == 0 and width % side == 0 and side < min(height, width)

    @property
    def code_grids(self) -> dict[str, GridSpec]:
        """Each column of codes → its grid, which gives its length and the bound of its codes."""
        image = self.image
        grids = {f"codes_{name}": image for name in self.orders}
        for side in self.scales:
            # A pooled latent is quantized with the image's own codebook (paper section 3).
            grids[f"scale_{side}"] = GridSpec(
                height=side, width=side, codebook_size=image.codebook_size, fingerprint=image.fingerprint
            )
        for condition in CONDITION_NAMES:  # a fixed sequence, because equal specs must give equal bytes
            if condition in self.conditions:
                grids[f"cond_{condition}"] = self.conditions[condition]
        return grids

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of a shard in file order."""
        return ("key", "view", "label", *self.code_grids, *sorted(self.carried))

    def check_rows(self, rows: int) -> int:
        """Return `rows` if a shard of this spec may have this many.

        Raises:
            ShardError: It is not a count, or the decoded rows exceed :data:`MAX_SHARD_BYTES`.
        """
        return check_rows(rows, self.code_grids.values())

    def schema(self) -> pa.Schema:
        """The Arrow schema of a shard, with this spec as JSON under the metadata key ``imagepriors``."""
        fields: list[pa.Field[Any]] = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.uint8(), nullable=False),
            pa.field("label", pa.int32(), nullable=True),
        ]
        fields += [pa.field(name, codes_type(grid), nullable=False) for name, grid in self.code_grids.items()]
        fields += [pa.field(name, carried_type(self.carried[name])) for name in sorted(self.carried)]
        return pa.schema(fields, metadata={METADATA_KEY: compact_json(self.to_json()).encode()})

    def to_json(self) -> dict[str, Any]:
        """This spec as a JSON object, with the format version and the hash of the order tables."""
        return {
            "format_version": FORMAT_VERSION,
            "image": asdict(self.image),
            "orders": list(self.orders),
            "orders_hash": orders_hash(self.orders, self.image.height, self.image.width),
            "scales": list(self.scales),
            "conditions": {name: asdict(grid) for name, grid in self.conditions.items()},
            **({"carried": self.carried} if self.carried else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardSpec:
        """The spec in the value of :meth:`to_json`.

        Raises:
            ShardError: Another format version, other order tables, or not a spec.
        """
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise ShardError(
                f"shard format version {version!r} cannot be read here, expected {FORMAT_VERSION}. "
                "Use the matching version of this package, or encode the dataset again"
            )
        try:
            spec = cls(
                image=GridSpec(**value["image"]),
                orders=tuple(check_order_name(name) for name in value["orders"]),
                scales=tuple(value["scales"]),
                conditions={name: GridSpec(**grid) for name, grid in value["conditions"].items()},
                carried=dict(**value.get("carried", {})),
            )
            found_hash = value["orders_hash"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"the shard's own description is incomplete ({error!r})") from error
        if found_hash != spec.to_json()["orders_hash"]:
            raise ShardError(
                f"the shard's order tables (sha256 {str(found_hash)[:12]}…) are not the ones of this package: "
                "its sequences would be scrambled. Encode the dataset again"
            )
        return spec

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> ShardSpec:
        """The spec in the metadata of a shard's schema.

        Raises:
            ShardError: The file is not a shard, has another version or other order tables, or its columns differ from
                its metadata.
        """
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            raise ShardError(
                f"not a shard of codes: its schema has no {METADATA_KEY.decode()!r} metadata. "
                f"Columns found: {', '.join(schema.names) or 'none'}"
            )
        value = parse_json(text, f"the shard's {METADATA_KEY.decode()!r} metadata", ShardError)
        if not isinstance(value, dict):
            raise ShardError(f"the shard's {METADATA_KEY.decode()!r} metadata is not a JSON object")
        spec = cls.from_json(value)
        if not spec.schema().equals(schema):
            differing = _differing_columns(spec.schema(), schema)
            raise ShardError(f"the shard's columns are not what its metadata promises: {differing}")
        return spec

    def rows_to_table(
        self,
        keys: Sequence[str],
        views: npt.ArrayLike,
        labels: npt.ArrayLike | None,
        codes_NHW: npt.NDArray[Any],
        scales: Mapping[int, npt.NDArray[Any]] | None = None,
        conditions: Mapping[str, npt.NDArray[Any]] | None = None,
        carried: Mapping[str, Sequence[Any]] | None = None,
    ) -> pa.Table:
        """Make the table of a shard, with the image codes once in every order.

        Args:
            keys: N row keys, unique, see :func:`check_key` and :func:`row_key`.
            views: N view numbers, 0..255.
            labels: N class indices, negative for unknown, or None for a dataset without classes.
            codes_NHW: Integer [N, H, W], raster layout, below the codebook's size.
            scales: Side S → integer [N, S, S], for exactly this spec's scales.
            conditions: Name → integer [N, h, w], for exactly this spec's conditions.
            carried: Name → N values, None for null, for exactly this spec's carried columns.

        Returns:
            A table with :meth:`schema`.

        Raises:
            ShardError: Codes out of range, arrays of another shape, bad or repeated keys, missing columns.
        """
        scales, conditions = scales or {}, conditions or {}
        _same_names("scales", scales, self.scales)
        _same_names("conditions", conditions, self.conditions)
        count, grids = len(keys), self.code_grids
        codes_NL = _checked_codes("codes", codes_NHW, count, self.image)
        columns = {
            f"codes_{name}": codes_NL[:, order(name, self.image.height, self.image.width)] for name in self.orders
        }
        sides = {f"scale_{side}": codes for side, codes in scales.items()}
        others = sides | {f"cond_{name}": codes for name, codes in conditions.items()}
        columns |= {name: _checked_codes(name, codes, count, grids[name]) for name, codes in others.items()}
        return self.columns_to_table(keys, views, labels, columns, carried)

    def columns_to_table(
        self,
        keys: Sequence[str],
        views: npt.ArrayLike,
        labels: npt.ArrayLike | None,
        columns: Mapping[str, Codes],
        carried: Mapping[str, Sequence[Any]] | None = None,
    ) -> pa.Table:
        """Make the table of a shard from codes that are already in their orders, e.g. those of another shard.

        Args:
            keys: As :meth:`rows_to_table`.
            views: As :meth:`rows_to_table`.
            labels: As :meth:`rows_to_table`.
            columns: Each of :attr:`code_grids` → codes of its type [N, L].
            carried: As :meth:`rows_to_table`.

        Raises:
            ShardError: Bad or repeated keys, codes out of range, missing columns, a value of another type.
        """
        count, grids, carried = len(keys), self.code_grids, carried or {}
        _same_names("columns", columns, grids)
        _same_names("carried columns", carried, self.carried)
        key_column = pa.array(keys, pa.string())
        check_keys(key_column, "these rows")
        arrays: list[Any] = [key_column, _view_column(views, count), _label_column(labels, count)]
        for name, grid in grids.items():
            _check_range(name, columns[name], grid)
            arrays.append(codes_column(columns[name], grid))
        arrays += [carried_column(name, carried[name], self.carried[name]) for name in sorted(carried)]
        return pa.Table.from_arrays(arrays, schema=self.schema())


def check_rows(rows: int, grids: Iterable[GridSpec]) -> int:
    """Return `rows` if a shard with columns of these grids may have this many; see :meth:`ShardSpec.check_rows`."""
    most = MAX_SHARD_BYTES // sum(grid.dtype.itemsize * grid.length for grid in grids)
    if type(rows) is not int or not 0 <= rows <= most:
        raise ShardError(f"a shard of {rows!r} rows: with these columns it has 0 to {most:,}. Make smaller shards")
    return rows


def codes_type(grid: GridSpec) -> Any:
    """The Arrow type of a column of codes."""
    return pa.list_(pa.field("element", pa.from_numpy_dtype(grid.dtype), nullable=False), grid.length)


def codes_column(codes_NL: Codes, grid: GridSpec) -> Any:
    """Codes [N, L] as an Arrow column."""
    values = pa.array(np.ascontiguousarray(codes_NL, grid.dtype).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, type=codes_type(grid))


def _checked_codes(name: str, codes: npt.NDArray[Any], count: int, grid: GridSpec) -> Codes:
    """Codes [N, H, W] in the grid's type as [N, L]; raises if they do not fit the grid or its codebook."""
    expected = (count, grid.height, grid.width)
    if codes.shape != expected or not np.issubdtype(codes.dtype, np.integer):
        raise ShardError(f"{name}: expected integers of shape {expected}, found {codes.dtype} {codes.shape}")
    _check_range(name, codes, grid)
    return codes.reshape(count, grid.length).astype(grid.dtype, copy=False)


def _check_range(name: str, codes: npt.NDArray[Any], grid: GridSpec) -> None:
    if codes.size and (codes.min() < 0 or codes.max() >= grid.codebook_size):
        raise ShardError(
            f"{name}: codes {codes.min()}..{codes.max()} do not fit a codebook of {grid.codebook_size}. "
            "Is this the tokenizer that the spec describes?"
        )


def column_to_numpy(column: Any) -> npt.NDArray[Any]:
    """A shard's Arrow column as numpy, codes without a copy; a null label is -1, a null carried value None."""
    if pa.types.is_fixed_size_list(column.type):
        # flatten() respects the slice and does not copy; lists and codes are never null.
        return np.asarray(column.flatten().to_numpy(zero_copy_only=True)).reshape(len(column), column.type.list_size)
    if pa.types.is_int32(column.type):
        return np.asarray(column.fill_null(NO_LABEL).to_numpy(zero_copy_only=True))
    if pa.types.is_uint8(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    found = np.empty(len(column), object)
    found[:] = column.to_pylist()
    return found


def _view_column(views: npt.ArrayLike, count: int) -> Any:
    array = np.asarray(views, dtype=np.int64)
    if array.shape != (count,) or (count and (array.min() < 0 or array.max() > np.iinfo(np.uint8).max)):
        raise ShardError(f"views: expected {count} numbers in 0..255, found shape {array.shape}: {array[:8]}…")
    return pa.array(array.astype(np.uint8))


def _label_column(labels: npt.ArrayLike | None, count: int) -> Any:
    if labels is None:
        return pa.nulls(count, pa.int32())
    array = np.asarray(labels, dtype=np.int64)
    if array.shape != (count,) or (count and array.max() > np.iinfo(np.int32).max):
        raise ShardError(f"labels: expected {count} class indices of 32 bits, found shape {array.shape}")
    return pa.array(array.astype(np.int32), mask=array < 0)


def _same_names(what: str, found: Iterable[object], expected: Iterable[object]) -> None:
    if set(found) != set(expected):
        raise ShardError(f"{what}: the spec asks for {list(expected)}, found {list(found)}")


def _differing_columns(expected: pa.Schema, found: pa.Schema) -> str:
    wanted = {name: str(expected.field(name).type) for name in expected.names}
    given = {column.name: str(column.type) for column in cast(Iterable[Any], found)}
    names = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    return "; ".join(f"{n}: expected {wanted.get(n, 'none')}, found {given.get(n, 'none')}" for n in names) or (
        "same columns in another sequence or with other nullability"
    )
