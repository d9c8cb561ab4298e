"""Names of the labels of masks, in a text file beside the data."""

from collections.abc import Iterable

from runkit.remote import AnyPath
from vqgan.data.sources import read_text
from vqgan.errors import InputError

LABELS_FILE = "segmentation_labels.txt"
"""File in the folder of a dataset: one name per line, the first is that of label 0."""


def read_label_names(path: AnyPath, n_labels: int) -> tuple[str, ...]:
    """Return the lines of a file of names, without white space around them; none if there is no such file.

    Args:
        path: The file.
        n_labels: Number of labels that a mask may hold.

    Raises:
        InputError: it is not UTF-8, a line before the last name is empty, or it has more names than labels.
    """
    if not path.is_file():
        return ()
    names = tuple(line.strip() for line in read_text(path).rstrip().splitlines())
    if "" in names:
        raise InputError(f"{path}, line {names.index('') + 1} is empty: give every label a name, one per line from 0")
    return check_label_names(names, n_labels, path)


def check_label_names(names: tuple[str, ...], n_labels: int, path: AnyPath) -> tuple[str, ...]:
    """Return the names if masks may hold all of these labels.

    Raises:
        InputError: they may not.
    """
    if len(names) > n_labels:
        raise InputError(f"{path} names {len(names)} labels, but masks may have {n_labels}: remove the others")
    return names


def label_names_text(names: Iterable[str]) -> bytes:
    """Return the content of a file that `read_label_names` reads; a label without a name is called by its number."""
    return "".join(f"{' '.join(name.split()) or f'label {label}'}\n" for label, name in enumerate(names)).encode()
