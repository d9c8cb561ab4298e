"""Remedies for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LEAST = 0.7
"""Similarity from which a name is close: "gpu" is not close to "cpu"."""


def did_you_mean(name: object, choices: Iterable[object]) -> str:
    """Return a question with the nearest of the choices; "" if none is close."""
    near = difflib.get_close_matches(str(name), map(str, choices), 1, _LEAST)
    return f"did you mean {near[0]}?" if near else ""


def choose_one_of(name: object, choices: Iterable[object]) -> str:
    """Return what to do about a name that is no choice: the nearest choice, if one is close, and all of them."""
    known = [str(choice) for choice in choices]
    listed = f"hoose one of {', '.join(known)}"
    return f"{near} C{listed}" if (near := did_you_mean(name, known)) else f"c{listed}"
