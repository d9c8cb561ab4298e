"""Columns of codes that are added to finished shards, in side-car shards of their own.

Axes: N rows of a shard, L codes of the column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codeshards.format.errors import ShardError
from codeshards.format.files import compact_json
from codeshards.format.orders import ORDER_NAMES
from codeshards.format.schema import (
    CONDITION_NAMES,
    FORMAT_VERSION,
    METADATA_KEY,
    SCALE_SIDES,
    GridSpec,
    ShardSpec,
    check_rows,
    codes_column,
    codes_type,
)
from runkit.jsonfiles import parse_json

ADDABLE = (
    *(f"codes_{name}" for name in ORDER_NAMES),
    *(f"scale_{side}" for side in SCALE_SIDES),
    *(f"cond_{name}" for name in CONDITION_NAMES),
)
"""Columns that can be added, each in a folder of its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnSpec:
    """The columns of side-car shards: ``key``, ``view`` and one column of codes."""

    name: str
    """Name of the column of codes, one of :data:`ADDABLE`."""
    grid: GridSpec
    """Grid of its codes."""

    def __post_init__(self) -> None:
        if self.name not in ADDABLE:
            raise ShardError(f"column {self.name!r} cannot be added. Choose out of: {', '.join(ADDABLE)}")

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of a side-car shard in file order."""
        return ("key", "view", self.name)

    def check_rows(self, rows: int) -> int:
        """Return `rows` if a side-car shard may have this many; see :meth:`ShardSpec.check_rows`."""
        return check_rows(rows, (self.grid,))

    def schema(self) -> pa.Schema:
        """The Arrow schema of a side-car shard, with this spec in its metadata."""
        fields: list[pa.Field[Any]] = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.uint8(), nullable=False),
            pa.field(self.name, codes_type(self.grid), nullable=False),
        ]
        return pa.schema(fields, metadata={METADATA_KEY: compact_json(self.to_json()).encode()})

    def to_table(self, keys: Any, views: Any, codes_NL: npt.NDArray[Any]) -> pa.Table:
        """Make the table of a side-car shard.

        Raises:
            ShardError: The codes have another shape, or are not in the codebook.
        """
        expected = (len(keys), self.grid.length)
        if codes_NL.shape != expected or (codes_NL.size and int(codes_NL.max()) >= self.grid.codebook_size):
            raise ShardError(
                f"{self.name}: expected codes {expected} below {self.grid.codebook_size}, found {codes_NL.shape} up to "
                f"{codes_NL.max(initial=0)}. Is this the tokenizer that the column describes?"
            )
        arrays = [pa.array(keys, pa.string()), pa.array(np.asarray(views, np.uint8)), codes_column(codes_NL, self.grid)]
        return pa.Table.from_arrays(arrays, schema=self.schema())

    def to_json(self) -> dict[str, Any]:
        """This spec as a JSON object."""
        return {"format_version": FORMAT_VERSION, "name": self.name, "grid": asdict(self.grid)}

    @classmethod
    def from_json(cls, value: Any) -> ColumnSpec:
        """The spec in the value of :meth:`to_json`.

        Raises:
            ShardError: Another format version, or not a column.
        """
        try:
            if value["format_version"] != FORMAT_VERSION:
                raise ShardError(
                    f"an added column of format version {value['format_version']!r} cannot be read here, expected "
                    f"{FORMAT_VERSION}. Use the matching version of this package"
                )
            return cls(name=value["name"], grid=GridSpec(**value["grid"]))
        except (KeyError, TypeError) as error:
            raise ShardError(f"the description of an added column is incomplete ({error!r})") from error

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> ColumnSpec:
        """The spec in the metadata of a side-car shard's schema.

        Raises:
            ShardError: The file is not a side-car shard, or its columns differ from its metadata.
        """
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            raise ShardError(f"not a side-car shard: its schema has no {METADATA_KEY.decode()!r} metadata")
        spec = cls.from_json(parse_json(text, f"the shard's {METADATA_KEY.decode()!r} metadata", ShardError))
        if not spec.schema().equals(schema):
            raise ShardError(f"a side-car shard of {spec.name} has the columns {', '.join(schema.names)}")
        return spec


def with_columns(spec: ShardSpec, columns: Iterable[ColumnSpec]) -> ShardSpec:
    """The spec of a dataset with further columns; orders have the sequence of :data:`ORDER_NAMES` then.

    Raises:
        ShardError: A column does not fit the grid.
    """
    added: dict[str, dict[str, GridSpec]] = {"codes": {}, "scale": {}, "cond": {}}
    for column in columns:
        kind, _, rest = column.name.partition("_")
        added[kind][rest] = column.grid
    names = {*spec.orders, *added["codes"]}
    return replace(
        spec,
        orders=tuple(name for name in ORDER_NAMES if name in names) if added["codes"] else spec.orders,
        scales=tuple(sorted({*spec.scales, *map(int, added["scale"])})),
        conditions={**spec.conditions, **added["cond"]},
    )


def new_columns(spec: ShardSpec, names: Sequence[str]) -> tuple[ColumnSpec, ...]:
    """The columns of orders and scales with these names that `spec` does not have yet.

    Raises:
        ShardError: One does not fit the grid.
    """
    image, found = spec.image, list[ColumnSpec]()
    for name in names:
        if name not in spec.code_grids:
            side = int(name.removeprefix("scale_")) if name.startswith("scale_") else 0
            grid = replace(image, height=side, width=side) if side else image
            found.append(ColumnSpec(name=name, grid=grid))
    with_columns(spec, found)
    return tuple(found)
