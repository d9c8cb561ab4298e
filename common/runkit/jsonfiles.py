"""Reading of JSON that may be damaged or malicious."""

from __future__ import annotations

import json
import math
from typing import Any

from runkit.errors import UserError


def parse_json(text: str | bytes, where: object, error: type[UserError] = UserError) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text; bytes are UTF-8.
        where: Its source, for the message.
        error: Class of the error.

    Raises:
        UserError: It is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise error(
            f"{where} cannot be read as JSON (it is nested too deep): it is damaged, or another kind of file"
        ) from None
    except ValueError as problem:
        raise error(f"{where} cannot be read as JSON ({problem})") from problem


def parse_object(text: str | bytes, where: object, error: type[UserError] = UserError) -> dict[str, Any]:
    """Return the object of a JSON text; arguments as :func:`parse_json`.

    Raises:
        UserError: As :func:`parse_json`, or the value is not an object.
    """
    value = parse_json(text, where, error)
    if not isinstance(value, dict):
        raise error(f"{where} holds a JSON {type(value).__name__}, expected an object")
    return value


def finite_or_none(value: Any) -> Any:
    """Return a JSON value with every NaN and infinity, which JSON cannot represent, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite_or_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value
