"""Written JSON has the bytes that the standard library gives."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runkit.files import pretty_json

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers() | st.booleans(), inner)
    ),
)


@given(_VALUES)
def test_pretty_json_equals_the_standard_library(value: Any) -> None:
    try:
        expected = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            pretty_json(value)
        return
    assert pretty_json(value) == expected


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_numbers_that_json_cannot_represent_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pretty_json(value)


@pytest.mark.parametrize("value", [{(1, 2): 3}, {"a": object()}])
def test_values_that_json_cannot_represent_are_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        pretty_json(value)
