"""Class labels in lists and tables: numbers are labels, words become classes."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from vqgan.errors import InputError

_MAX_LABELS = 1_000_000
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MAX_DIGITS = 30
_NO_LABEL = frozenset({"", "nan", "na", "n/a", "<na>", "null", "none"})
"""Spellings of a missing number."""


def read_labels(
    values: Iterable[tuple[str, object]], where: object, names: Sequence[str] = ()
) -> tuple[tuple[str, ...], Iterator[int | None]]:
    """Return the class names, and an iterator over the labels of the values.

    Whole numbers, also as text or with a fraction of zero (`2`, ` 2`, `2.0`), are labels. Negative numbers, NaN and
    empty text mean no label. Words are classes, labelled in the order of their sorted names.

    Args:
        values: Name in messages and value of each sample of all splits.
        where: File or folder, for messages.
        names: Names of the labels, if the dataset gives them; words are looked up in them.

    Raises:
        InputError: a value is neither a whole number nor a word, is too large or has no name, or words and numbers are
            mixed.
    """
    meaning: dict[object, int | str | None] = {}
    first: dict[object, str] = {}
    listed: list[object] = []
    for sample, value in values:
        listed.append(value)
        try:
            if value not in meaning:
                meaning[value], first[value] = _meaning(value), sample
        except TypeError as error:  # it is not hashable
            raise InputError(f"{where}: label {_short(value)} of {sample} is neither a number nor a name") from error
        except ValueError as error:
            raise InputError(f"{where}: label {_short(value)} of {sample} {error}") from error
    if any(isinstance(found, int) for found in meaning.values()):
        meaning = {value: None if str(found).lower() in _NO_LABEL else found for value, found in meaning.items()}
    words = {value: found for value, found in meaning.items() if isinstance(found, str)}
    highest = max((found for found in meaning.values() if isinstance(found, int)), default=-1)
    if words and highest >= 0 and not names:
        value = next(iter(words))
        raise InputError(f"{where}: label {_short(value)} of {first[value]} is a word, while others are numbers")
    class_names = tuple(names or sorted(set(words.values())) or map(str, range(highest + 1)))
    label_of: dict[object, int] = {name: label for label, name in enumerate(class_names)}
    label_of |= {} if words and not names else {label: label for label in range(len(class_names))}
    for value, found in meaning.items():
        if found is not None and found not in label_of:
            raise InputError(
                f"{where}: label {_short(value)} of {first[value]} is not one of the {len(class_names)} named classes"
            )
    label_of_value = {value: None if found is None else label_of[found] for value, found in meaning.items()}
    return class_names, map(label_of_value.__getitem__, listed)


def _short(value: object) -> str:
    return repr(value)[:50]


def _meaning(value: object) -> int | str | None:
    """Return a value as a number, a word, or None for no label.

    Raises:
        ValueError: it is none of these; the message completes a sentence.
    """
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return text or None
        if len(text) > _MAX_DIGITS:
            raise ValueError("is too large for a label")
        value = Decimal(text)
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if not isinstance(value, int | float | Decimal):
        raise ValueError(f"is a {type(value).__name__}, neither a number nor a name")
    if not -_MAX_LABELS <= value < _MAX_LABELS:
        raise ValueError(f"is too large or too small: labels count from 0 to {_MAX_LABELS - 1:,} without gaps")
    if value != int(value):
        raise ValueError("is not a whole number")
    return int(value) if value >= 0 else None
