"""Splits: sequences of samples."""

import copy
import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runkit.names import repeated_hashes
from runkit.places import url_of
from runkit.ranges import RemoteFile
from runkit.remote import in_parallel
from runkit.retries import patient
from vqgan.data.columns import ColumnType, infer_type
from vqgan.data.filters import Filter
from vqgan.data.geometry import CENTRE, View
from vqgan.data.items import chosen, collect, keys_of
from vqgan.data.pictures import to_rgb, upright_size
from vqgan.data.poses import Keypoints
from vqgan.data.samples import (
    Item,
    ReadOptions,
    Sample,
    check_mirror,
    decode,
    open_image,
    raw_columns,
    read_columns,
)
from vqgan.data.sources import File
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MAX_UNREADABLE = 10
"""Unreadable samples in a row after which training stops: one is a bad file, ten are a wrong folder."""
_SIZE_CHUNK = 4096
"""Items whose sizes one thread looks up at a time."""
_TYPED = 1000
"""Samples of a split from which the types of columns are inferred."""
_LISTED = 20
"""Columns that a message names."""
_THREADS = 16
_VAL_FRACTION = 20
"""One of so many samples is held out as val."""


class Split:
    """A sequence of samples. Keys are unique and have no dots; a bad file raises InputError for its sample alone.

    A split is picklable, and safe to read from many threads.
    """

    def __init__(
        self,
        items: Iterable[Item],
        class_names: Sequence[str] = (),
        *,
        n_labels: int = 256,
        label_names: Sequence[str] = (),
        strays: Sequence[str] = (),
    ) -> None:
        """Check the keys.

        Args:
            items: The samples.
            class_names: Name of each label.
            n_labels: Number of labels that a mask may hold, 0 … n_labels - 1.
            label_names: Name of each label of a mask, from 0; empty where they are unknown.
            strays: Files of conditions that belong to no image.
        """
        self.items = collect(items)
        self.class_names = tuple(class_names)
        self.n_labels = n_labels
        self.label_names = tuple(label_names)
        self.strays = tuple(strays)
        self.keys = keys_of(self.items)
        self._check_keys()

    def _check_keys(self) -> None:
        twice = repeated_hashes(np.fromiter(map(hash, self.keys), np.int64, len(self)))
        suspects = Counter(key for key in self.keys if hash(key) in twice) if twice else Counter[str]()
        for key, count in suspects.items():
            if count > 1:
                names = " and ".join(item.image.name for item in self.items if item.key == key)
                raise InputError(
                    f"{names} share the key {key!r} (a path without its suffix): rename or remove one of them"
                )
        for key in self.keys:
            if not key.isascii() and any("\ud800" <= letter <= "\udfff" for letter in key):
                raise InputError(f"{key!a}: this name is not UTF-8, which shards cannot hold: rename the file (convmv)")

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, indices: Iterable[int]) -> "Split":
        """Return the split with these samples alone, in this order."""
        return Split(
            chosen(self.items, indices), self.class_names, n_labels=self.n_labels, label_names=self.label_names
        )

    def having(self, condition: str) -> "Split":
        """Return the samples that have this condition.

        Raises:
            InputError: no sample has it.
        """
        indices = [index for index, item in enumerate(self.items) if condition in item.conditions]
        if not indices:
            raise InputError(f"no sample has {condition}: choose a dataset that has it, or add maps of it")
        return self if len(indices) == len(self) else self.subset(indices)

    def with_label_names(self, label_names: Sequence[str]) -> "Split":
        """Return the same samples, with these names of the labels of their masks."""
        found = copy.copy(self)
        found.label_names = tuple(label_names)
        return found

    def within(self, n_labels: int) -> "Split":
        """Return the same samples, of which those whose mask has a label of `n_labels` or above cannot be read."""
        found = copy.copy(self)
        found.n_labels = min(self.n_labels, n_labels)
        return found

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that every sample of this split has."""
        first = self.items[0].conditions if self.items else {}
        return tuple(name for name in first if all(name in item.conditions for item in self.items))

    def source_hash(self, columns: Sequence[str] = ()) -> str:
        """Return the sha256 of all keys, labels and sizes in bytes, which decide the rows of a shard.

        Of remote files it covers the state of each, by which a change is noticed.

        Args:
            columns: Carried columns: their values count where they are in memory, else their sizes.
        """
        digest = hashlib.sha256()
        for text in self._in_chunks(functools.partial(_source_lines, columns=tuple(columns))):
            digest.update(text)
        return digest.hexdigest()

    def _in_chunks(self, work: Callable[[Sequence[Item]], _T]) -> Iterator[_T]:
        """Yield what `work` returns for consecutive chunks of the items, in threads."""
        starts = iter(range(0, len(self.items), _SIZE_CHUNK))
        with ThreadPoolExecutor(_THREADS) as pool:  # on a network file system each size costs a round trip
            # A few at a time: an executor's own map takes all chunks at once.
            while some := [self.items[start : start + _SIZE_CHUNK] for start in islice(starts, 2 * _THREADS)]:
                yield from pool.map(work, some)

    def where(self, filter: Filter, types: Mapping[str, ColumnType]) -> "Split":
        """Return the samples that satisfy a filter.

        Args:
            filter: The filter.
            types: Type of each of its columns.

        Raises:
            InputError: A value cannot be read, or is not of its type.
        """
        kept = np.concatenate([np.empty(0, bool), *self._in_chunks(functools.partial(_kept, filter, types))])
        return self.subset(np.flatnonzero(kept))

    def check_unchanged(self) -> None:
        """Check that the remote archives and tables of the samples are those that were listed.

        Samples that were read before are then samples of these files.

        Raises:
            ChangedError: one was changed or deleted.
        """
        if files := {file for item in self.items for file in _remote_files(item, File)}:
            in_parallel(RemoteFile.check, files)

    @patient
    def image_size(self, index: int) -> tuple[int, int]:
        """Return the width and height of image `index` in pixels, upright, from its header.

        Raises:
            InputError: it is not an image.
        """
        with open_image(self.items[index]) as image:
            return upright_size(image)

    @patient
    def read_whole(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the whole image of sample `index`, upright, in its own size: uint8 [H, W, 3].

        Raises:
            InputError: the image cannot be decoded.
        """
        with open_image(self.items[index]) as image:
            return np.array(to_rgb(image))

    def read(self, index: int, size: int, *, view: View = CENTRE, **options: Unpack[ReadOptions]) -> Sample:
        """Decode one view of sample `index`, resized to `size` pixels; see `read_views`."""
        return self.read_views(index, size, (view,), **options)[0]

    @patient
    def read_views(self, index: int, size: int, views: Sequence[View], **options: Unpack[ReadOptions]) -> list[Sample]:
        """Decode sample `index` once and cut its views, each resized to `size` × `size` pixels.

        The view CENTRE of the geometry crop is the centre square; of pad and stretch it is the whole image. Images are
        resized bicubic, depth bilinear, masks nearest. Keypoints are transformed with the image and drawn afterwards; a
        mirror swaps left and right joints. Beyond the image a window is white, label 0, depth 0 and has no limbs. Depth
        is scaled to [0, 1] over the whole map before it is cut. EXIF orientation is applied, to maps too; see `to_rgb`
        for colours.

        Args:
            index: Index of the sample.
            size: Side of the pictures in pixels.
            views: The windows.
            options: See `ReadOptions`.

        Raises:
            InputError: the image cannot be decoded; a condition is missing, broken or does not fit the image; or it is
                a drawn pose and a view is a mirror.
        """
        return decode(self.items[index], size, views, self.n_labels, **options)

    def read_good(self, index: int, size: int, *, view: View = CENTRE, **options: Unpack[ReadOptions]) -> Sample:
        """Read sample `index`, or the next one that is readable, with a warning, so that training continues.

        Raises:
            InputError: ten samples in a row cannot be read.
        """
        for place in range(index, index + _MAX_UNREADABLE):
            try:
                return self.read(place % len(self), size, view=view, **options)
            except InputError as error:
                last = error
                log.warning("left out, the next sample takes its place: %s", error)
        raise InputError(f"{_MAX_UNREADABLE} samples in a row cannot be read (the last: {last})")

    def check_mirror(self, conditions: Sequence[str], remedy: str) -> None:
        """Check before the work that these conditions can be mirrored.

        Args:
            conditions: Conditions that are read.
            remedy: What to do instead.

        Raises:
            InputError: a pose is a drawn picture, whose colours distinguish left from right.
        """
        for item in self.items if "pose" in conditions else ():
            check_mirror(item, conditions, remedy)


def _source_lines(items: Sequence[Item], columns: tuple[str, ...]) -> bytes:
    def stamp(item: Item) -> str:
        remote = "".join(f"\t{file.size} {file.stamp}" for file in _remote_files(item))
        return f"{remote}\t{item.columns.stamp(columns)}" if columns and item.columns else remote

    return "".join(f"{item.key}\t{item.label}\t{item.image.nbytes()}{stamp(item)}\n" for item in items).encode()


@patient
def _kept(filter: Filter, types: Mapping[str, ColumnType], items: Sequence[Item]) -> npt.NDArray[np.bool_]:
    """Return which items satisfy a filter."""
    values = [read_columns(item, types) for item in items]
    columns = {name: pa.array([row[name] for row in values], kind) for name, kind in types.items()}
    return np.asarray(filter.mask(columns).to_numpy(zero_copy_only=False))


@patient
def column_types(splits: Mapping[str, Split], wanted: Mapping[str, ColumnType | None]) -> dict[str, ColumnType]:
    """Return the types of columns; those that are not given are inferred from up to a thousand samples of each split.

    Raises:
        InputError: No sample has a column, or a value cannot be read.
    """
    items = [split.items[index] for split in splits.values() for index in spread(len(split), _TYPED)]
    unknown = [name for name, kind in wanted.items() if kind is None]
    found = {name: kind for name, kind in wanted.items() if kind is not None}
    with ThreadPoolExecutor(16) as pool:
        values = list(pool.map(functools.partial(raw_columns, names=unknown), items)) if unknown else []
    for name in unknown:
        kind = infer_type(row.get(name) for row in values)
        if kind is None:
            names = sorted({name for item in items[:1] if item.columns for name in item.columns.available()})
            available = f"available: {', '.join(names[:_LISTED]) or 'none'}{', …' * (len(names) > _LISTED)}"
            raise InputError(
                f"column {name!r} has no value in {len(items):,} samples ({available}): correct the name, or give its "
                f"type, as in {name}:string"
            )
        found[name] = kind
    return {name: found[name] for name in wanted}


def _hash_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def _remote_files(item: Item, *others: type) -> Iterator[RemoteFile]:
    """Yield the remote files of an item, except of sources of the classes `others`."""
    for source in (item.image, *item.conditions.values()):
        path = getattr(source, "path", None)
        if isinstance(path, RemoteFile) and not isinstance(source, others):
            yield path


def sources_of(splits: Mapping[str, Split], root: Path) -> list[Path | str]:
    """Return the folders or URLs of a dataset's samples: an output in one of them would be read as data next time.

    These are the folders of the splits and of their maps. Of archives and tables it is the root, because they are
    searched for below it.
    """
    found: set[str] = set()
    for item in (item for split in splits.values() for item in split.items):
        for source in (item.image, *(part for part in item.conditions.values() if not isinstance(part, Keypoints))):
            # The key is the path from the folder of the split, without its suffix.
            depth = item.key.count("/") + 1
            found.add(str(source.path).rsplit("/", depth)[0] if isinstance(source, File) else url_of(root) or str(root))
    return sorted((path if url_of(path) else Path(path) for path in found), key=str)


def spread(total: int, count: int) -> list[int]:
    """Return `count` indices evenly over 0 … total - 1, or all of them.

    Splits are sorted by class, so that their first samples are alike.
    """
    indices: list[int] = np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()
    return indices


def hold_out(split: Split) -> dict[str, Split]:
    """Divide one split into train and val.

    Keys whose hash is in the lowest twentieth of all hashes are val, and always the key with the smallest hash.

    Raises:
        InputError: the split has fewer than two images.
    """
    if len(split) < 2:
        raise InputError(f"{len(split)} image is too few to hold out a validation split: add images")
    # The first 64 bits of the hash decide.
    hashes = np.fromiter((_hash_of(key) for key in split.keys), np.uint64, len(split))
    is_val_N = hashes < max(2**64 // _VAL_FRACTION, int(hashes.min()) + 1)
    return {
        name: Split(
            chosen(split.items, np.flatnonzero(is_val_N == is_val)),
            split.class_names,
            n_labels=split.n_labels,
            label_names=split.label_names,
            strays=() if is_val else split.strays,
        )
        for name, is_val in (("train", False), ("val", True))
    }
