"""Reader `huggingface`: Parquet or Arrow files, as downloaded from the hub or written by save_to_disk."""

import functools
import io
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import ipc

from runkit.errors import UserError
from runkit.jsonfiles import parse_json
from runkit.names import plain_name
from runkit.ranges import RemoteFile
from runkit.remote import AnyPath, RemotePath, in_parallel
from runkit.tables import check_rows, check_table, open_table
from vqgan.data.files import find_files, make_key
from vqgan.data.items import collect_labelled, keys_of, with_labels
from vqgan.data.labels import read_labels
from vqgan.data.remote_arrow import read_batch, read_batches, read_schema
from vqgan.data.samples import Item
from vqgan.data.sources import Stored, open_regular, read_text, size_of, stored
from vqgan.data.split import Split
from vqgan.data.split_names import by_split
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_CONDITIONS = {
    "segmentation": "segmentation", "annotation": "segmentation", "mask": "segmentation", "depth": "depth",
    "depth_map": "depth", "pose": "pose",
}  # fmt: skip
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Names of columns whose bytes, without a struct around them, are images."""
_LABELS = ("label", "labels", "fine_label")
_CACHE = re.compile(r"(cache-|tmp)[^/]*\.arrow")
"""Files that the datasets library caches beside tables that it has loaded."""
_LARGE_GROUP = 1000
"""Rows of a row group above which reading one image is slow."""
_REMOTE_GROUP_BYTES = 4 * 2**20
"""The same for the bytes of a row group of a remote file."""
_WRAPPERS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_dictionary)
"""Types of a column around the type of its images."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An image in a table. Reading it from Parquet decodes its row group; a few row groups are cached."""

    path: Stored
    group: int
    """Index of the row group (Parquet) or record batch (Arrow); of remote Arrow, where the batch begins in the file."""
    row: int
    """Row within the group."""
    column: str

    @property
    def name(self) -> str:
        """File, group, row and column."""
        return f"{Path(str(self.path)).name}, group {self.group}, row {self.row}, {self.column}"

    def open(self) -> BinaryIO:
        """Open the image; if the table has only a path, the file at that path, relative to the table."""
        with _lock(self.path, self.group):  # threads that read one group wait for the first of them
            column = _column(self.path, self.group, self.column)
        value = column[self.row].as_py()
        if isinstance(value, list):
            if len(value) > 1:
                raise OSError(f"the cell has {len(value)} images, expected one")
            value = value[0] if value else None
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is not None:
            return io.BytesIO(data)
        if path is None:
            raise OSError("the cell is empty")
        if isinstance(self.path, RemoteFile):
            raise OSError("the cell has no bytes but a path, which is read beside local tables only")
        return open_regular(Path(self.path).parent / path)

    def nbytes(self) -> int:
        """Size of the whole file: the size of a cell is not known without reading it."""
        return size_of(self.path)


@dataclass(frozen=True, slots=True)
class Row:
    """The columns of a row of a table that are texts, numbers or truth values."""

    path: Stored
    group: int
    row: int

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the values of these columns, as far as the table has them."""
        here = set(names) & set(self.available())
        return {name: _plain_column(self.path, self.group, name)[self.row].as_py() for name in names if name in here}

    def available(self) -> tuple[str, ...]:
        """Return the names of these columns."""
        return _plain_columns(self.path)

    def stamp(self, names: Sequence[str]) -> str:
        """Return nothing: the image's size is already that of the whole file."""
        return ""


def huggingface(root: AnyPath) -> dict[str, Split]:
    """Read Parquet or Arrow files; a split is named by the file or its folder (`data/train-00000-of-00002.parquet`).

    The first column of images is the image. Further ones named annotation, segmentation or mask, depth or depth_map,
    and pose are conditions. label, labels or fine_label is the label: a number, with the class names in the dataset's
    features, or a word. Of a folder that save_to_disk wrote, the files listed in its state.json are read.

    Raises:
        InputError: a file cannot be read or is missing, or has no column of images.
    """
    for cached in (_column, _plain_column, _metadata, _arrow, _plain_columns):
        cached.cache_clear()  # a file may have changed
    names: list[str] = []
    found = {
        split: collect_labelled(_rows(root, paths, names)) for split, paths in by_split(_tables(root), root).items()
    }
    listed = (zip(keys_of(items), values, strict=True) for items, values in found.values())
    class_names, labels = read_labels(chain.from_iterable(listed), root, names)
    return {split: Split(with_labels(items, labels), class_names) for split, (items, _) in found.items()}


def _rows(root: AnyPath, paths: Sequence[str], names: list[str]) -> Iterator[tuple[Item, Any]]:
    """Yield the items of tables, each with the value of its label; class names are added to `names` or compared."""
    read = functools.partial(_read, root)
    tables = in_parallel(read, paths, "remote tables") if isinstance(root, RemotePath) else map(read, paths)
    for path, (here, items) in zip(paths, tables, strict=True):
        names += [] if names else here
        if here and here != names:
            raise InputError(
                f"{root / path} names other classes than the files before it: save all with the same names"
            )
        yield from items


def _read(root: AnyPath, path: str) -> tuple[list[str], list[tuple[Item, Any]]]:
    """Return the class names that a table has, and its items with the values of their labels."""
    try:
        schema, groups = _describe(stored(root / path))
        return _class_names(root / path, schema), list(_items(root, path, schema, groups))
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{root / path} cannot be read: {error}") from error


def _tables(root: AnyPath) -> list[str]:
    """Return the paths of all tables; of a saved dataset, those listed in its state.json."""
    paths = find_files(root, {".parquet", ".arrow"}, count_others=True)
    saved = {path.rpartition("/")[0] for path in find_files(root, {".json"}) if path.rpartition("/")[2] == "state.json"}
    listed = [
        f"{folder}/{name}".lstrip("/") for folder in sorted(saved) for name in _saved(root / folder / "state.json")
    ]
    missing = [path for path in listed if not (root / path).exists()]
    if missing:
        raise InputError(f"{root / missing[0]} is missing, but the state.json beside it lists it: copy it too")
    return listed + [
        path for path in paths if path.rpartition("/")[0] not in saved and not _CACHE.fullmatch(path.rpartition("/")[2])
    ]


def _saved(path: AnyPath) -> list[str]:
    """Return the names of the files that a state.json lists."""
    state = parse_json(read_text(path), path, InputError)
    if isinstance(state, dict) and state.get("_indices_data_files"):
        raise InputError(f"{path.parent} is a selection of rows: flatten_indices() before save_to_disk()")
    try:
        return [plain_name(entry["filename"], path, InputError) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lists no _data_files: save_to_disk did not write it ({error!r})") from error


def _items(root: AnyPath, path: str, schema: Any, groups: dict[int, int]) -> Iterator[tuple[Item, Any]]:
    """Yield the items of a table, each with the value of its label."""
    images = [field.name for field in schema if _is_image(field)]
    if not images:
        raise InputError(
            f"{root / path}: no column of images (struct of bytes and path) among {', '.join(schema.names)}"
        )
    label = next((name for wanted in _LABELS for name in schema.names if name.lower() == wanted), None)
    conditions = {name: _CONDITIONS[name.lower()] for name in images if name.lower() in _CONDITIONS}
    table, stem, first = stored(root / path), make_key(path), 0
    for group, rows in groups.items():
        values = _values(table, group, label) if label else [None] * rows
        for row, value in enumerate(values):
            item = Item(
                key=f"{stem}/{first + row:07d}",
                image=Cell(table, group, row, images[0]),
                conditions={condition: Cell(table, group, row, name) for name, condition in conditions.items()},
                columns=Row(table, group, row),
            )
            # A list of one label is read as that label.
            yield item, value[0] if isinstance(value, list) and len(value) == 1 else value
        first += rows


def _values(path: Stored, group: int, column: str) -> list[Any]:
    if isinstance(path, RemoteFile) and not _is_parquet(path):
        return list(_batches(path)[1][group].column(column).to_pylist())
    return list(_column(path, group, column).to_pylist())


def _is_image(field: Any) -> bool:
    kind = field.type
    while any(test(kind) for test in _WRAPPERS):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {part.name for part in kind}
    bare = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bare and field.name.lower() in (*_IMAGES, *_CONDITIONS)


def _class_names(path: AnyPath, schema: Any) -> list[str]:
    """Return the names of the ClassLabel in the features that the datasets library stores in the schema."""
    value = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), path, InputError)
    for step in ("info", "features"):
        value = value.get(step) if isinstance(value, dict) else None
    feature_of = {name.lower(): feature for name, feature in value.items()} if isinstance(value, dict) else {}
    features = [feature_of[name] for name in _LABELS if name in feature_of]
    names = features[0].get("names") if features and isinstance(features[0], dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _describe(path: Stored) -> tuple[Any, dict[int, int]]:
    """Return the schema, and the number of rows of each group."""
    if _is_parquet(path):
        metadata = _metadata(path)
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if isinstance(path, RemoteFile) and len(rows) and path.size / len(rows) > _REMOTE_GROUP_BYTES:
            log.warning(
                "%s has row groups of %d images, and reading one image transfers a whole group, about %d MB: copy the "
                "files to a disk, or save them again with row_group_size=10",
                path,
                max(rows),
                path.size / len(rows) / 1e6,
            )
        elif max(rows, default=0) > _LARGE_GROUP:
            log.warning(
                "%s has row groups of %d images, and reading one image decodes a whole group: save it again "
                "with row_group_size=100, or as Arrow with save_to_disk",
                path,
                max(rows),
            )
        return open_table(_plain(path), metadata).schema_arrow, dict(enumerate(rows))
    if isinstance(path, RemoteFile):
        schema, batches_at = _batches(path)
        return schema, {place: batch.num_rows for place, batch in batches_at.items()}
    schema, batches = _arrow(path)
    check_rows(Path(path), sum(batch.num_rows for batch in batches), InputError)
    return schema, {group: batch.num_rows for group, batch in enumerate(batches)}


@functools.lru_cache(maxsize=64)  # with thousands of row groups a check takes longer than reading one
def _metadata(path: Stored) -> Any:
    return check_table(_plain(path), InputError)


def _plain(path: Stored) -> Path | RemoteFile:
    return Path(path) if isinstance(path, str) else path


def _is_parquet(path: Stored) -> bool:
    return (path if isinstance(path, str) else path.name).lower().endswith(".parquet")


_batches = functools.lru_cache(maxsize=16)(read_batches)  # until the items of the file are listed


@functools.lru_cache(maxsize=64)
def _lock(path: Stored, group: int) -> threading.Lock:
    return threading.Lock()


@functools.lru_cache(maxsize=64)
def _plain_columns(path: Stored) -> tuple[str, ...]:
    """Return the names of the columns of texts, numbers and truth values."""
    if _is_parquet(path):
        schema = open_table(_plain(path), _metadata(path)).schema_arrow
    else:
        schema = read_schema(path) if isinstance(path, RemoteFile) else _arrow(path)[0]
    return tuple(field.name for field in schema if _is_plain(field.type))


def _is_plain(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    return any(test(kind) for test in (*tests, pa.types.is_boolean))


@functools.lru_cache(maxsize=64)
def _arrow(path: str) -> tuple[Any, list[Any]]:
    """Return schema and memory-mapped batches of Arrow, in the file or the stream format."""
    open_regular(path).close()
    source = pa.memory_map(path)
    try:
        table = ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = ipc.open_stream(source).read_all()
    return table.schema, table.to_batches()


@functools.lru_cache(maxsize=8)
def _column(path: Stored, group: int, column: str) -> Any:
    if _is_parquet(path):
        return open_table(_plain(path), _metadata(path)).read_row_group(group, columns=[column]).column(column)
    if isinstance(path, RemoteFile):
        return read_batch(path, group).column(column)
    return _arrow(path)[1][group].column(column)


@functools.lru_cache(maxsize=512)  # small: filters read many groups at once
def _plain_column(path: Stored, group: int, column: str) -> Any:
    found = _column.__wrapped__(path, group, column)
    return found.take(pa.array(range(len(found)))) if isinstance(path, RemoteFile) else found  # without the images
