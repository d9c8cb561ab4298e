"""Lists of items of any length: beyond some number they are in a temporary file, in blocks of 64."""

import functools
import marshal
import os
import pickle
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain, islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vqgan.data.samples import Item
from vqgan.errors import InputError

IN_MEMORY = 1 << 17
"""Items of a list that is held in memory, about 100 MB."""
_BLOCK = 64
_CACHED = 1024
"""Blocks that are kept decoded, so that neighbours are read once."""
_NO_LABEL = -1


def collect(items: Iterable[Item]) -> Sequence[Item]:
    """Return a list of the items, or a :class:`StoredItems` if there are more than `IN_MEMORY`."""
    if isinstance(items, list | StoredItems):
        return items
    source = iter(items)
    first = list(islice(source, IN_MEMORY + 1))
    return first if len(first) <= IN_MEMORY else StoredItems(_Blocks(chain(first, source)))


def collect_labelled(pairs: Iterable[tuple[Item, Any]]) -> tuple[Sequence[Item], list[Any]]:
    """Return the items of pairs of an item and the value of its label, as `collect` does, and the values."""
    values: list[Any] = []

    def items() -> Iterator[Item]:
        for item, value in pairs:
            values.append(sys.intern(value) if type(value) is str else value)  # a class has many samples
            yield item

    return collect(items()), values


def with_labels(items: Sequence[Item], labels: Iterable[int | None]) -> Sequence[Item]:
    """Return collected items with these labels; no more labels are taken than there are items."""
    mine = islice(labels, len(items))
    if isinstance(items, StoredItems):
        return items.labelled(mine)
    return [item.labelled(label) for item, label in zip(items, mine, strict=True)]


def keys_of(items: Sequence[Item]) -> Sequence[str]:
    """Return the keys of the items, which are not decoded where they are in a file."""
    return StoredKeys(items) if isinstance(items, StoredItems) else [item.key for item in items]


def chosen(items: Sequence[Item], indices: Iterable[int]) -> Sequence[Item]:
    """Return the items with these indices, in this order."""
    if isinstance(items, StoredItems):
        indices = np.fromiter(indices, np.int64)
        if len(indices) > IN_MEMORY:
            return items.select(indices)
    return [items[index] for index in indices]


class _Blocks:
    """Blocks of items in a temporary file: of each, its keys and then the rest. It is deleted with this object."""

    def __init__(self, items: Iterable[Item]) -> None:
        """Write the items.

        Raises:
            InputError: The file cannot be written.
        """
        self._numbers: dict[type, int] = {}
        self._classes: list[tuple[type, tuple[str, ...]]] = []
        """Classes of the sources, each with the names of its fields."""
        self._file = tempfile.TemporaryFile(prefix="items-")  # noqa: SIM115 - open as long as this object
        self._offsets, self.count = array("q", [0]), 0
        source = iter(items)
        while block := list(islice(source, _BLOCK)):
            for part in ([item.key for item in block], [self._packed(item) for item in block]):
                self._write(zlib.compress(marshal.dumps(part), 1))
            self.count += len(block)
        self._write(b"", flush=True)
        self._part = functools.lru_cache(2 * _CACHED)(self._read)

    def _write(self, content: bytes, flush: bool = False) -> None:
        try:
            self._file.write(content)
            if flush:
                self._file.flush()
        except OSError as error:
            raise InputError(
                f"the list of samples cannot be written to {tempfile.gettempdir()} ({error.strerror}): free some space "
                "there, or set TMPDIR to another folder"
            ) from error
        self._offsets.append(self._offsets[-1] + len(content))

    def _read(self, part: int) -> Any:
        start, stop = self._offsets[part : part + 2]
        content = os.pread(self._file.fileno(), stop - start, start)  # threads share the file
        return marshal.loads(zlib.decompress(content))

    def key(self, place: int) -> str:
        """Return the key of an item."""
        return self._part(place // _BLOCK * 2)[place % _BLOCK]  # type: ignore[no-any-return]

    def item(self, place: int) -> Item:
        """Return an item."""
        image, label, conditions, columns = self._part(place // _BLOCK * 2 + 1)[place % _BLOCK]
        return Item(
            key=self.key(place),
            image=self._unpacked(image),
            label=label,
            conditions={name: self._unpacked(part) for name, part in conditions.items()},
            columns=self._unpacked(columns),
        )

    def _packed(self, item: Item) -> tuple[Any, ...]:
        conditions = {name: self._pack(part) for name, part in item.conditions.items()}
        return self._pack(item.image), item.label, conditions, self._pack(item.columns)

    def _pack(self, value: Any) -> Any:
        """Return a value of plain types: of a dataclass a list of its class and fields, of others bytes in a list."""
        if value is None or isinstance(value, str | int | float):
            return value
        if is_dataclass(value) and not isinstance(value, type):
            kind = type(value)
            if kind not in self._numbers:
                self._numbers[kind] = len(self._classes)
                self._classes.append((kind, tuple(part.name for part in fields(value))))
            number = self._numbers[kind]
            return [number, *(self._pack(getattr(value, name)) for name in self._classes[number][1])]
        return [pickle.dumps(value)]

    def _unpacked(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if isinstance(value[0], bytes):
            return pickle.loads(value[0])
        kind, names = self._classes[value[0]]
        return kind(**dict(zip(names, map(self._unpacked, value[1:]), strict=True)))


class StoredItems(Sequence[Item]):
    """Items in a temporary file, some of them, perhaps with other labels; see :func:`collect`."""

    def __init__(
        self,
        blocks: _Blocks,
        chosen: npt.NDArray[np.int64] | None = None,
        labels: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self._blocks, self._chosen, self._labels = blocks, chosen, labels

    def __len__(self) -> int:
        return self._blocks.count if self._chosen is None else len(self._chosen)

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def place(self, index: int) -> int:
        """Return the position in the file of an item."""
        return range(self._blocks.count)[index] if self._chosen is None else int(self._chosen[index])

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self.place(index)
        item = self._blocks.item(place)
        if self._labels is None:
            return item
        label = int(self._labels[place])
        return item.labelled(None if label == _NO_LABEL else label)

    def key(self, index: int) -> str:
        """Return the key of an item."""
        return self._blocks.key(self.place(index))

    def select(self, indices: npt.NDArray[np.int64]) -> "StoredItems":
        """Return the items with these indices, in this order."""
        chosen = indices if self._chosen is None else self._chosen[indices]
        return StoredItems(self._blocks, chosen, self._labels)

    def labelled(self, labels: Iterable[int | None]) -> "StoredItems":
        """Return the items, of which this is a list of all in the file, with these labels."""
        numbers = (_NO_LABEL if label is None else label for label in labels)
        return StoredItems(self._blocks, self._chosen, np.fromiter(numbers, np.int32, self._blocks.count))


class StoredKeys(Sequence[str]):
    """The keys of items in a temporary file."""

    def __init__(self, items: StoredItems) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._items.key(i) for i in range(*index.indices(len(self)))]
        return self._items.key(index)

    def __iter__(self) -> Iterator[str]:
        return map(self._items.key, range(len(self)))
