"""Columns that a dataset has beside its images, such as captions: where the values of a sample are, and their types.

Values are carried along and never interpreted.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from runkit.jsonfiles import parse_object
from runkit.suggestions import choose_one_of
from vqgan.data.sources import Source, remote_state
from vqgan.errors import InputError

ColumnType = Literal["string", "int64", "float64", "bool"]
COLUMN_TYPES: tuple[ColumnType, ...] = get_args(ColumnType)
"""Types of a carried column; every value may be null."""
CAPTION = "caption"
"""Name of the column in a text file or member beside an image."""
_MAX_BYTES = 1 << 20
"""Largest text or JSON beside an image: a caption is far smaller, and a shard holds thousands."""
_MAX_DIGITS = 20
_TRUE, _FALSE = ("true", "True", "1"), ("false", "False", "0")


class Columns(Protocol):
    """The values of one sample. It is small and picklable; only `read` reads them."""

    def read(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Return name → value, of these names at least; a name may be missing.

        Raises:
            OSError: they cannot be read.
            ValueError: they are damaged.
        """

    def available(self) -> Sequence[str]:
        """Return the names of all columns of the sample; errors as `read`."""

    def stamp(self, names: Sequence[str]) -> str:
        """Return what changes with these values, as far as it is known without reading them."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Values in a list, in memory."""

    values: Mapping[str, Any]

    def read(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Return the values."""
        return self.values

    def available(self) -> Sequence[str]:
        """Return the names of the list's columns."""
        return tuple(self.values)

    def stamp(self, names: Sequence[str]) -> str:
        """Return the values as JSON."""
        return json.dumps([self.values.get(name) for name in names], default=str)


@dataclass(frozen=True, slots=True)
class Beside:
    """Files or members beside an image: a text, which is its caption, and a JSON object."""

    text: Source | None = None
    about: Source | None = None

    def read(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Return the fields of the JSON object, and the text as caption."""
        found = parse_object(_content(self.about), self.about.name, InputError) if self.about else {}
        return {**found, CAPTION: _content(self.text).rstrip("\r\n")} if self.text else found

    def available(self) -> Sequence[str]:
        """Return the fields of the JSON object, and caption where there is a text."""
        return tuple(self.read(()))

    def stamp(self, names: Sequence[str]) -> str:
        """Return the sizes in bytes, and the states of remote files."""
        return " ".join(
            f"{source.nbytes()}{remote_state(source)}" if source else "" for source in (self.text, self.about)
        )


def _content(source: Source) -> str:
    with source.open() as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{source.name} has more than {_MAX_BYTES:,} bytes")
    return data.decode("utf-8-sig")


def parse_columns(texts: Sequence[str]) -> dict[str, ColumnType | None]:
    """Return name → type of columns written as NAME or NAME:TYPE; a text may have several, divided by commas.

    Args:
        texts: Such as "caption" or "caption,width:int64"; the type None is inferred from values.

    Raises:
        InputError: A name occurs twice, is empty, or a type is unknown.
    """
    found: dict[str, ColumnType | None] = {}
    for text in (part.strip() for one in texts for part in one.split(",")):
        name, _, kind = text.partition(":")
        if not name or name in found:
            raise InputError(f"columns: {text!r}: name each column once, as NAME or NAME:TYPE")
        if kind and kind not in COLUMN_TYPES:
            raise InputError(f"columns: type {kind!r} of {name}: {choose_one_of(kind, COLUMN_TYPES)}")
        found[name] = kind or None
    return found


def typed(value: Any, kind: ColumnType) -> Any:
    """Return a value as a column's type; None and NaN are null.

    Lists and objects become their JSON text in a column of strings.

    Raises:
        ValueError: It has another type.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)) or (value == "" and kind != "string"):
        return None
    if (converted := _CONVERT[kind](value)) is None:
        raise ValueError(f"{value!r:.80} is no {kind}")
    return converted


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _int(value: Any) -> int | None:
    if isinstance(value, str):
        digits = value.strip()
        written = digits.removeprefix("-").isdecimal() and digits.isascii() and len(digits) <= _MAX_DIGITS
        value = int(digits) if written else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and -(2**63) <= value < 2**63 else None


def _float(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _bool(value: Any) -> bool | None:
    if isinstance(value, str) and value in (*_TRUE, *_FALSE):
        return value in _TRUE
    return value if isinstance(value, bool) else None


_CONVERT: dict[ColumnType, Callable[[Any], Any]] = {"string": _string, "int64": _int, "float64": _float, "bool": _bool}


def infer_type(values: Iterable[Any]) -> ColumnType | None:
    """Return the type that holds all values; None if all are null.

    Texts are numbers only where they are written as the number is, so that 007 stays a text.
    """
    known = [value for value in values if value is not None and value != ""]
    if not known:
        return None
    for kind in ("bool", "int64", "float64"):
        if all(_is_written_as(value, kind) for value in known):
            return kind
    return "string"


def _is_written_as(value: Any, kind: ColumnType) -> bool:
    try:
        converted = typed(value, kind)
    except ValueError:
        return False
    if not isinstance(value, str):
        return not (kind == "bool" and not isinstance(value, bool))
    plain = value.lstrip("-")
    padded = plain.startswith("0") and plain[1:2].isdigit()
    return converted is not None and not padded and (kind != "bool" or value.lower() in ("true", "false"))
