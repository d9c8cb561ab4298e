"""Checks of config dataclasses against their annotations, whether they are built from Python, TOML or JSON."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runkit.errors import UserError
from runkit.suggestions import choose_one_of, did_you_mean

_MAX_INT = 2**63 - 1


def check_fields(config: Any, error: type[UserError] = UserError) -> None:
    """Refuse fields of a config dataclass whose values are not of their annotated types.

    Literals must be one of their choices, integers must fit 64 bits, and floats must be finite. An infinity would pass
    a check such as `value > 0`, and fail when it is first written as JSON.

    Args:
        config: The dataclass.
        error: Class of the error.

    Raises:
        UserError: A value is of another type; the message names the field, the value and what is allowed.
    """
    for name, kind in get_type_hints(type(config)).items():
        check_value(name, getattr(config, name), kind, error)


def from_dict(cls: type[Any], values: Mapping[str, Any], error: type[UserError] = UserError) -> Any:
    """Build a config dataclass from plain values, as TOML and JSON have them, strictly.

    Args:
        cls: The dataclass.
        values: Field → value; nested dataclasses are tables.
        error: Class of the error.

    Raises:
        UserError: A field is unknown, is missing, or has a value of another type; or the dataclass itself refuses one.
    """
    import dacite

    try:
        check_table(cls, values)
    except UserError as problem:
        raise error(f"{cls.__module__}.{cls.__name__}: {problem}") from problem
    # JSON has no tuples, and writes the float 1.0 of a config that was given as 1 without its point.
    options = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _as_float})
    try:
        return dacite.from_dict(cls, values, options)
    except dacite.DaciteError as problem:
        raise error(f"{cls.__module__}.{cls.__name__}: {problem}; its docstring lists the fields") from problem


def check_table(cls: type[Any], values: Mapping[str, Any], others: Iterable[str] = (), prefix: str = "") -> None:
    """Refuse plain values that do not fit the fields of a config dataclass and of the dataclasses in it.

    Args:
        cls: The dataclass.
        values: Field → value; nested dataclasses are tables.
        others: Further names that may have been meant.
        prefix: Where the dataclass is in another one, for the message.

    Raises:
        UserError: A field is unknown, and the message names the nearest one, or the table that it belongs to; or a
            value is of another type.
    """
    kinds = get_type_hints(cls)
    tables: dict[str, Any] = {name: kind for name, kind in kinds.items() if dataclasses.is_dataclass(kind)}
    for name, value in values.items():
        if name in tables and isinstance(value, Mapping):
            check_table(tables[name], value, (), f"{prefix}{name}.")
        elif name in kinds:
            if not any(map(dataclasses.is_dataclass, get_args(kinds[name]))):  # such as a tuple of tables
                check_value(f"{prefix}{name}", value, kinds[name])
        else:
            parents = [parent for parent, kind in tables.items() if name in get_type_hints(kind)]
            remedy = did_you_mean(name, [*kinds, *others]) or choose_one_of(name, kinds)
            if parents:
                remedy = f"it is a field of {parents[0]}: pass {parents[0]}={{{name!r}: {value!r}}}"
            raise UserError(f"unknown field {prefix}{name} = {value!r}: {remedy}")


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int and abs(value) <= sys.float_info.max else value


def check_value(name: str, value: object, kind: Any, error: type[UserError] = UserError) -> None:
    """Refuse a value that is not of a type, such as an argument that is not a choice of its Literal.

    Args:
        name: Its name in messages.
        value: The value.
        kind: Its annotation.
        error: Class of the error.

    Raises:
        UserError: It is of another type; the message names the value and what is allowed.
    """
    if (remedy := _problem(kind, value)) is not None:
        raise error(f"{name} is {value!r}: {remedy}")


def require(ok: bool, name: str, value: object, remedy: str, error: type[UserError] = UserError) -> None:
    """Refuse the value of a field unless it satisfies a condition.

    Args:
        ok: Whether the condition holds.
        name: Name of the field.
        value: Its value.
        remedy: What to choose instead.
        error: Class of the error.

    Raises:
        UserError: The condition does not hold.
    """
    if not ok:
        raise error(f"{name} is {value!r}: {remedy}")


def _problem(kind: Any, value: Any) -> str | None:
    """Return what to do about a value that is not of a type; None if it is."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in inner)
        return None if fits else choose_one_of(value, inner)
    if origin in (Union, types.UnionType):
        problems = [_problem(part, value) for part in inner]
        return None if None in problems else next(problem for problem in problems if problem)
    if origin is tuple:
        return _tuple_problem(inner, value)
    if origin is list:
        return _tuple_problem((inner[0], Ellipsis), value) if isinstance(value, list) else "pass a list of values"
    if origin is dict:
        fits = isinstance(value, dict) and all(
            _problem(part, item) is None for pair in value.items() for part, item in zip(inner, pair, strict=True)
        )
        return None if fits else "pass a table of names and values"
    if kind is float:
        # Compared, not converted: NaN compares false, and 10**400 cannot be converted.
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return None if fits else "choose a finite number"
    if kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INT
        return None if fits else "choose a whole number of at most 64 bits"
    if kind is type(None):
        return None if value is None else "leave it out"
    if kind in (bool, str) or dataclasses.is_dataclass(kind):
        return None if isinstance(value, kind) else f"pass a {kind.__name__}"
    return None


def _tuple_problem(inner: tuple[Any, ...], value: Any) -> str | None:
    if not isinstance(value, tuple | list):
        return "pass a list of values"
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        return f"pass {len(kinds)} values"
    return next((problem for part, item in zip(kinds, value, strict=True) if (problem := _problem(part, item))), None)
