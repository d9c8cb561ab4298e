"""Reading JSON that may be damaged or hostile."""

from __future__ import annotations

import json
import math
from typing import Any

from runkit.errors import UserError


def parse_json(text: str | bytes, where: object, error: type[UserError] = UserError) -> Any:
    """The value of a JSON text.

    Args:
        text: The text, UTF-8 where it is bytes.
        where: What it was read from, for the message.
        error: Class of the error.

    Raises:
        UserError: it is no JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise error(
            f"{where} cannot be read as JSON (it is nested too deep): it is damaged, or no file of ours"
        ) from None
    except ValueError as problem:
        raise error(f"{where} cannot be read as JSON ({problem})") from problem


def parse_object(text: str | bytes, where: object, error: type[UserError] = UserError) -> dict[str, Any]:
    """The object of a JSON text; arguments as :func:`parse_json`.

    Raises:
        UserError: as :func:`parse_json`, or it holds something else than an object.
    """
    value = parse_json(text, where, error)
    if not isinstance(value, dict):
        raise error(f"{where} holds a JSON {type(value).__name__}, expected an object")
    return value


def finite_or_none(value: Any) -> Any:
    """A JSON value with every NaN and infinity replaced by None, which JSON has no other word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite_or_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value
