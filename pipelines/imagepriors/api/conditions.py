"""Conditions of samples, as they are passed to the methods of a prior.

Axes: N samples, C tokens of a condition.
"""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from codeprior.config import PriorError, SequenceSpec

Codes = npt.NDArray[np.int64]


def condition_tokens(sequence: SequenceSpec, condition: Any, n: int) -> dict[str, Codes]:
    """The condition of each sample by name: class ids [N], or codes [N, C].

    Raises:
        PriorError: It is not the condition of the prior.
    """
    parts = {part.name: part for part in sequence.conditions}
    if condition is None and "class" in parts:
        condition = np.arange(n) % parts["class"].vocabulary
    if condition is None:
        return {}
    if not parts:
        raise PriorError("this prior was trained without a condition: leave condition out")
    if not isinstance(condition, Mapping):
        if len(parts) > 1:
            raise PriorError(f"this prior has the conditions {', '.join(parts)}: pass a mapping with each of them")
        condition = {next(iter(parts)): condition}
    return {
        name: class_ids(sequence, values, n) if name == "class" else np.asarray(values, np.int64)
        for name, values in condition.items()
    }


def classes_alone(sequence: SequenceSpec, condition: Any, n: int, given: Any) -> Codes:
    """The class [N] of each sample of a prior that is conditioned on the class alone and completes nothing.

    Raises:
        PriorError: The prior has another condition, or a part of validation pictures is given.
    """
    if str(given) != "0" or sequence.condition != "class":
        raise PriorError("condition: only classes of a class-conditional prior can be chosen, with given = 0")
    return class_ids(sequence, condition, n)


def class_ids(sequence: SequenceSpec, classes: Any, n: int) -> Codes:
    """The classes [N] that one name or number, or one for each sample, denotes.

    Raises:
        PriorError: A class is unknown, or their number is wrong.
    """
    names = sequence.class_names
    listed = [classes] * n if np.ndim(classes) == 0 else list(classes)
    found = []
    for value in listed:
        if isinstance(value, str) and value not in names:
            raise PriorError(f"condition = {value!r}: choose a class among {', '.join(names) or 'numbers'}")
        if not isinstance(value, str) and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise PriorError(f"condition = {value!r}: pass names or whole numbers of classes")
        found.append(names.index(value) if isinstance(value, str) else operator.index(value))
    if len(found) != n:
        raise PriorError(f"condition has {len(found)} classes for n = {n} samples: pass one, or {n}")
    return np.array(found, np.int64)
