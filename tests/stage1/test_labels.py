"""Class labels of lists and tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqgan.data.labels import read_labels
from vqgan.errors import InputError


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([2, 0, "11", " 3", "4.0", 5.0, np.int64(6).item(), True], [2, 0, 11, 3, 4, 5, 6, 1], 12),
        ([-1, "-1", -7.0, None, "", " ", float("nan"), "NaN", 1], [None] * 8 + [1], 2),
        (["fox", "cat", "fox", None], [1, 0, 1, None], ("cat", "fox")),
        ([b"fox", "cat"], [1, 0], ("cat", "fox")),
        ([None, ""], [None, None], ()),
    ],
)
def test_numbers_are_labels_and_words_are_classes(values, labels, names):
    found = read_labels(((str(place), value) for place, value in enumerate(values)), "list")
    assert list(found[1]) == labels
    assert found[0] == (tuple(map(str, range(names))) if isinstance(names, int) else names)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1.5], "label 1.5 of 1 is not a whole number"),
        ([0, "0.5"], "not a whole number"),
        ([50_000_000], "too large"),
        ([-(10**30)], "too large or too small"),
        ([float("inf")], "too large"),
        ([0, "cat"], "label 'cat' of 1 is a word, while others are numbers"),
        ([[1, 2]], "neither a number nor a name"),
        ([{"a": 1}], "neither a number nor a name"),
        ([1j], "is a complex"),
    ],
)
def test_invalid_labels_are_refused_by_name(values, words):
    with pytest.raises(InputError, match=words):
        read_labels(((str(place), value) for place, value in enumerate(values)), "list")


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.none(), st.integers(), st.floats(), st.text(max_size=6), st.binary(max_size=3), st.lists(st.integers())
        ),
        max_size=6,
    )
)
def test_any_label_is_read_or_refused(values):
    try:
        names, labels = read_labels(((str(place), value) for place, value in enumerate(values)), "list")
    except InputError:
        return
    found = list(labels)
    assert len(found) == len(values)
    assert all(label is None or 0 <= label < len(names) for label in found)
