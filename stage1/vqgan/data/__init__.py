"""Datasets in the layouts in which they are published, behind one small interface.

`open_splits(name, root)` returns {split name: Split}. Each built-in reader is in the file with its name, and
`registry.DATASETS` lists them.
"""

from vqgan.data.columns import ColumnType, parse_columns
from vqgan.data.filters import Filter
from vqgan.data.geometry import CENTRE, View, views_of
from vqgan.data.loose import open_pictures
from vqgan.data.registry import AUTO, DATASETS, open_splits, resolve
from vqgan.data.samples import Item, Sample
from vqgan.data.split import Split, column_types, sources_of, spread

__all__ = [
    "AUTO",
    "CENTRE",
    "DATASETS",
    "ColumnType",
    "Filter",
    "Item",
    "Sample",
    "Split",
    "View",
    "column_types",
    "open_pictures",
    "open_splits",
    "parse_columns",
    "resolve",
    "sources_of",
    "spread",
    "views_of",
]
