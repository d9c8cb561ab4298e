"""Columns that are carried along from the source of a dataset, such as captions, and never interpreted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from codeshards.format.errors import ShardError

CarriedType = Literal["string", "int64", "float64", "bool"]
"""Types of carried columns; every value may be null."""
CAPTION = "caption"
"""Name of the carried column that describes the picture; reports and previews show it."""
_TYPES: dict[CarriedType, Any] = {
    "string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()
}  # fmt: skip
_NAME = re.compile(r"(?!(key|view|label|orders)$|(codes|scale|cond)_)[A-Za-z_][A-Za-z0-9_]{0,63}")
"""Identifiers that are no column of codes and no field of a row in a tar."""


def check_carried(carried: Mapping[str, CarriedType]) -> None:
    """Refuse names and types that carried columns cannot have.

    Args:
        carried: Name → type.

    Raises:
        ShardError: One is not allowed.
    """
    if not isinstance(carried, Mapping):
        raise ShardError(f"carried is {carried!r}: give a mapping from the names of columns to their types")
    for name, kind in carried.items():
        if not _NAME.fullmatch(name):
            raise ShardError(
                f"column {name!r} cannot be carried: a name has letters, digits and underscores, and is none "
                "of every shard's (key, view, label, orders, codes_…, scale_…, cond_…). Rename it in the source"
            )
        if kind not in _TYPES:
            raise ShardError(f"column {name!r} has the type {kind!r}: choose out of {', '.join(_TYPES)}")


def carried_type(kind: CarriedType) -> Any:
    """The Arrow type of a carried column."""
    return _TYPES[kind]


def carried_column(name: str, values: Sequence[Any], kind: CarriedType) -> Any:
    """Values as an Arrow array of a carried column's type; None is null.

    Raises:
        ShardError: A value has another type.
    """
    try:
        return pa.array(values, _TYPES[kind])
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise ShardError(f"column {name!r} of {kind} has a value of another type ({error})") from error
