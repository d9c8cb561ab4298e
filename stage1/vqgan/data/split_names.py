"""Which split a folder, a file or a row belongs to, by what it is called."""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vqgan.errors import InputError

log = logging.getLogger(__name__)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "development": "val", "eval": "val",
    "evaluation": "val", "test": "val", "testing": "val",
}  # fmt: skip
"""What people call a split → what it is called here; of several names for one split, the first here is read."""


_WORDS = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))


def split_word(word: str) -> str | None:
    """The one of `SPLIT_NAMES` that a word is, in any case, or None.

    What people append to it counts for nothing: `Train`, `val2017`, `testset`.
    """
    found = re.fullmatch(rf"({_WORDS})(set|data|split)?\d*", word.strip().lower())
    return found[1] if found else None


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Name of a folder → its word for a split, without the folders that name none.

    Where no name is such a word, names count that differ in it alone: `train_images` and `test_images`, `trainA` and
    `testA`. A class called `train_station` stays a class.
    """
    names = sorted(names)
    found = {name: word for name in names if (word := split_word(name))}
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for name in names if not found else ():
        for hit in re.finditer(_WORDS, name.lower()):
            pairs.setdefault((name[: hit.start()].lower(), name[hit.end() :].lower()), {})[name] = hit[0]
    for pair in pairs.values():
        found |= pair if names_both(pair.values()) else {}
    return found


def names_both(words: Iterable[str]) -> bool:
    """Whether words for splits name train and val."""
    return {SPLIT_NAMES[word] for word in words} == {"train", "val"}


def by_split(paths: Iterable[str], where: Path) -> dict[str, list[str]]:
    """Split → the files whose path names it with a word of any of its parts (`train-000.tar`, `data/test/0.parquet`).

    All are "train" where none names a split.

    Args:
        paths: Relative paths.
        where: The dataset's folder, for messages.

    Raises:
        InputError: a path names two splits, or as `choose_splits`.
    """
    word_of = {path: _word_of(path) for path in paths}
    if not any(word_of.values()):
        return {"train": list(word_of)} if word_of else {}
    return choose_splits(word_of, where)


def choose_splits(word_of: Mapping[str, str | None], where: Path) -> dict[str, list[str]]:
    """Split → what is read for it: of several names for one split, the first in `SPLIT_NAMES`.

    What is not read, since another name comes first, or since it names no split, is logged.

    Args:
        word_of: File, folder or row → its name for its split, one of `SPLIT_NAMES`, or None.
        where: The dataset's folder, for messages.

    Raises:
        InputError: something names no split, and nothing is called train.
    """
    named: dict[str | None, list[str]] = {}
    for path, word in word_of.items():
        named.setdefault(word, []).append(path)
    found: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for word, split in SPLIT_NAMES.items():
        if word in named and split not in found:
            found[split], taken[split] = named[word], word
        elif word in named:
            log.warning("%s: %s not read, because %s is %s", where, counted(named[word]), taken[split], split)
    if None in named:
        choices = ", ".join(SPLIT_NAMES)
        problem = f"{where}: {counted(named[None])} not read: the name tells no split ({choices}), as others do"
        if "train" not in found:
            raise InputError(f"{problem}, and nothing is called train: rename it, or move it away")
        log.warning(problem)
    return found


def counted(names: list[str]) -> str:
    """The subject of a message: "a.tar and 3 more are"."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _word_of(path: str) -> str | None:
    words = [found for word in re.split(r"[^a-z0-9]+", path.lower()) if (found := split_word(word))]
    if len({SPLIT_NAMES[word] for word in words}) > 1:
        raise InputError(f"{path} names two splits, {' and '.join(dict.fromkeys(words))}: rename it")
    return words[0] if words else None
