"""`huggingface`: a dataset on disk in Parquet or Arrow files, as downloaded from the hub or written by save_to_disk."""

import functools
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import ipc

from runkit.jsonfiles import parse_json
from runkit.tables import check_rows, check_table, open_table
from vqgan.datasets.base import Item, Split
from vqgan.datasets.files import check_label, files_of_splits, make_key, open_regular
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_CONDITIONS = {
    "segmentation": "segmentation", "annotation": "segmentation", "mask": "segmentation", "depth": "depth",
    "depth_map": "depth", "pose": "pose",
}  # fmt: skip
_LABELS = ("label", "labels", "fine_label")
_LARGE_GROUP = 1000


@dataclass(frozen=True, slots=True)
class Cell:
    """An image in a table; reading it from Parquet decodes its row group, of which a few stay in memory."""

    path: str
    group: int
    """Row group (Parquet) or record batch (Arrow)."""
    row: int
    """Row within the group."""
    column: str

    @property
    def name(self) -> str:
        """File, group and row."""
        return f"{Path(self.path).name}, group {self.group}, row {self.row}, {self.column}"

    def open(self) -> BinaryIO:
        """The image's bytes; where the table has only a path, that file, relative to the table."""
        value = _column(self.path, self.group, self.column)[self.row].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is not None:
            return io.BytesIO(data)
        if path is None:
            raise OSError("the cell is empty")
        return open_regular(Path(self.path).parent / path)

    def nbytes(self) -> int:
        """Size of the whole file: that of a cell is not known without reading it."""
        return Path(self.path).stat().st_size


def huggingface(root: Path) -> dict[str, Split]:
    """Parquet or Arrow files whose name or folder tells the split (`data/train-00000-of-00002.parquet`, `test/…arrow`).

    The first column of images is the image; of further ones, annotation, segmentation or mask, depth or depth_map, and
    pose are conditions. label, labels or fine_label is the label, with the names that the dataset's features give.

    Raises:
        InputError: a file cannot be read, or has no column of images.
    """
    items: dict[str, list[Item]] = {}
    names: list[str] = []
    for split, paths in files_of_splits(root, {".parquet", ".arrow"}).items():
        for path in paths:
            try:
                schema, groups = _describe(root / path)
                names = names or _class_names(root / path, schema)
                items.setdefault(split, []).extend(_items(root, path, schema, groups))
            except InputError:
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(f"{root / path} cannot be read: {error}") from error
    return {split: Split(found, names) for split, found in items.items()}


def _items(root: Path, path: str, schema: Any, groups: list[int]) -> Iterator[Item]:
    images = [field.name for field in schema if _is_image(field)]
    if not images:
        raise InputError(
            f"{root / path}: no column of images (struct of bytes and path) among {', '.join(schema.names)}"
        )
    label = next(
        (name for name in _LABELS if name in schema.names and pa.types.is_integer(schema.field(name).type)), None
    )
    first = 0
    for group, rows in enumerate(groups):
        labels: list[int | None] = _column(str(root / path), group, label).to_pylist() if label else [None] * rows
        for row, number in enumerate(labels):
            cells = {name: Cell(str(root / path), group, row, name) for name in images}
            yield Item(
                key=f"{make_key(path)}/{first + row:07d}",
                image=cells[images[0]],
                label=check_label(number) if number is not None and number >= 0 else None,
                conditions={_CONDITIONS[name]: cell for name, cell in cells.items() if name in _CONDITIONS},
            )
        first += rows


def _is_image(field: Any) -> bool:
    if pa.types.is_struct(field.type):
        return {"bytes", "path"} <= {part.name for part in field.type}
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return field.name in ("image", "img", "jpg", "png") and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(path: Path, schema: Any) -> list[str]:
    """Names of a ClassLabel in the features that the datasets library writes beside the schema."""
    value = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), path, InputError)
    for step in ("info", "features"):
        value = value.get(step) if isinstance(value, dict) else None
    features = [value[name] for name in _LABELS if name in value] if isinstance(value, dict) else []
    names = features[0].get("names") if features and isinstance(features[0], dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _describe(path: Path) -> tuple[Any, list[int]]:
    """Schema, and rows of each group."""
    if path.suffix.lower() == ".parquet":
        metadata = check_table(path, InputError)
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if max(rows, default=0) > _LARGE_GROUP:
            log.warning(
                "%s has row groups of %d images, each of which is decoded whole for one image: write it anew with "
                "row_group_size=100, or as Arrow with save_to_disk",
                path,
                max(rows),
            )
        return open_table(path, metadata).schema_arrow, rows
    schema, batches = _arrow(str(path))
    check_rows(path, sum(batch.num_rows for batch in batches), InputError)
    return schema, [batch.num_rows for batch in batches]


@functools.lru_cache(maxsize=64)  # with row groups by the thousand a check takes longer than reading one
def _metadata(path: str) -> Any:
    return check_table(Path(path), InputError)


@functools.lru_cache(maxsize=64)
def _arrow(path: str) -> tuple[Any, list[Any]]:
    """Schema and memory-mapped batches of Arrow, of the file or of the stream format."""
    open_regular(path).close()
    source = pa.memory_map(path)
    try:
        table = ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = ipc.open_stream(source).read_all()
    return table.schema, table.to_batches()


@functools.lru_cache(maxsize=8)
def _column(path: str, group: int, column: str) -> Any:
    if path.lower().endswith(".parquet"):
        return open_table(Path(path), _metadata(path)).read_row_group(group, columns=[column]).column(column)
    return _arrow(path)[1][group].column(column)
