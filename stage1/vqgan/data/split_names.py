"""The split of a folder, a file or a row, by its name."""

import logging
import re
from collections.abc import Iterable, Mapping

from runkit.remote import AnyPath
from vqgan.errors import InputError

log = logging.getLogger(__name__)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "development": "val", "eval": "val",
    "evaluation": "val", "test": "val", "testing": "val",
}  # fmt: skip
"""Common names of splits → train or val. Of several names for one split, the first in this table is read."""
_WORDS = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))


def split_word(word: str) -> str | None:
    """Return the name in `SPLIT_NAMES` that a word is, in any case, or None.

    Common endings are ignored: `Train`, `val2017`, `testset`.
    """
    found = re.fullmatch(rf"({_WORDS})(set|data|split)?\d*", word.strip().lower())
    return found[1] if found else None


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Return the folders that name a split, with the name in `SPLIT_NAMES` of each.

    If no folder has such a name, those that differ in it alone count: `train_images` and `test_images`, `trainA` and
    `testA`. A class named `train_station` remains a class.
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
    """Return whether names of splits stand for both train and val."""
    return {SPLIT_NAMES[word] for word in words} == {"train", "val"}


def by_split(paths: Iterable[str], where: AnyPath) -> dict[str, list[str]]:
    """Group files by split: a word in any part of a path names it (`train-000.tar`, `data/test/0.parquet`).

    All files are train if none names a split.

    Args:
        paths: Relative paths.
        where: Folder of the dataset, for messages.

    Raises:
        InputError: a path names two splits, or as `choose_splits`.
    """
    word_of = {path: _word_of(path) for path in paths}
    if not any(word_of.values()):
        return {"train": list(word_of)} if word_of else {}
    return choose_splits(word_of, where)


def choose_splits(word_of: Mapping[str, str | None], where: AnyPath) -> dict[str, list[str]]:
    """Choose what is read for each split: of several names for one split, the first in `SPLIT_NAMES`.

    What is not read, because another name comes first or because it names no split, is logged.

    Args:
        word_of: File, folder or row → its name of a split in `SPLIT_NAMES`, or None.
        where: Folder of the dataset, for messages.

    Raises:
        InputError: something names no split, and nothing is named train.
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
        problem = f"{where}: {counted(named[None])} not read: the name is not one of a split ({choices}), as others are"
        if "train" not in found:
            raise InputError(f"{problem}, and nothing is named train: rename it, or move it away")
        log.warning(problem)
    return found


def counted(names: list[str]) -> str:
    """Return the subject of a message: "a.tar and 3 more are"."""
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"


def _word_of(path: str) -> str | None:
    words = [found for word in re.split(r"[^a-z0-9]+", path.lower()) if (found := split_word(word))]
    if len({SPLIT_NAMES[word] for word in words}) > 1:
        raise InputError(f"{path} names two splits, {' and '.join(dict.fromkeys(words))}: rename it")
    return words[0] if words else None
