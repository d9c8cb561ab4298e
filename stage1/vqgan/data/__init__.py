"""Datasets in the layouts in which they are published, behind one small interface.

`open_splits(name, root)` returns {split name: Split}. Each built-in reader is in the file with its name, and
`registry.DATASETS` lists them.
"""

from vqgan.data.geometry import CENTRE, View, views_of
from vqgan.data.registry import AUTO, DATASETS, open_splits, resolve
from vqgan.data.samples import Item, Sample
from vqgan.data.split import Split, sources_of, spread

__all__ = [
    "AUTO",
    "CENTRE",
    "DATASETS",
    "Item",
    "Sample",
    "Split",
    "View",
    "open_splits",
    "resolve",
    "sources_of",
    "spread",
    "views_of",
]
