"""Keys of samples, in pieces: a dataset may have more than fit in memory.

The keys of a split are divided into groups of 2^20. Up to one group is kept in memory; more are in a file, of which a
group at a time is read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from codeshards.format.errors import ShardError
from runkit.names import repeated_hashes
from runkit.tables import decoded_bytes

GROUP = 1 << 20
"""Keys of a group. A row group of ``samples.parquet`` has as many."""
KEY_TYPE = pa.large_string()
_CHUNK = 1 << 16
"""Keys that become Python strings, or lines, at once."""
_MAX_GROUP_BYTES = 1 << 30
"""Most bytes of the keys of a row group: a kilobyte each."""
_VIEW_KEY = r"-v[0-9]+$"
_BAD_KEY = r"^$|[.\x00-\x1f]|^/"

Groups = Callable[[], Iterator[Any]]
"""Returns an iterator over the groups of a list of keys, as Arrow arrays; it can be called again."""


def check_key(key: str) -> str:
    """Return ``key`` if it can name a row: not empty, no dots, no control characters, no leading slash.

    WebDataset splits a member's name at its first dot, so that a key with a dot would be cut there.
    """
    if re.search(_BAD_KEY, key):
        raise ShardError(
            f"key {key!r} is not allowed: keys are not empty, have no dots or control characters and do not "
            "start with a slash. Replace these characters, e.g. dots by underscores"
        )
    return key


def check_each_key(keys: pa.Array[Any] | pa.ChunkedArray[Any]) -> None:
    """:func:`check_key` for a whole column of keys, which must not be null."""
    bad: Any = pc.match_substring_regex(keys, _BAD_KEY).fill_null(True)
    first_bad = pc.index(bad, True).as_py()
    if first_bad >= 0:
        check_key(keys[first_bad].as_py() or "")


def check_keys(keys: pa.Array[Any] | pa.ChunkedArray[Any], where: str) -> None:
    """:func:`check_each_key` for keys that must also be unique."""
    check_each_key(keys)
    if pc.count_distinct(keys).as_py() != len(keys):
        counts: Any = pc.value_counts(keys)
        repeated = int(np.argmax(counts.field("counts").to_numpy()))
        raise ShardError(f"key {counts.field('values')[repeated].as_py()!r} occurs more than once in {where}")


class Keys:
    """The keys of a split. Make one with :func:`shuffled_keys` or :func:`file_keys`."""

    def __init__(self, count: int, read_group: Callable[[int], Any]) -> None:
        self._count, self._size = count, GROUP
        self._read_group = functools.lru_cache(maxsize=1)(read_group)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Any:
        """A range of the keys, as an Arrow array."""
        start, stop, _ = part.indices(self._count)
        pieces = [
            self._read_group(group)[max(0, start - group * self._size) : stop - group * self._size]
            for group in range(start // self._size, -(-stop // self._size))
        ]
        return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces or [pa.array([], KEY_TYPE)])

    def groups(self) -> Iterator[Any]:
        """The groups, as Arrow arrays."""
        return (self._read_group(group) for group in range(-(-self._count // self._size)))

    def to_pylist(self) -> list[str]:
        """All keys as strings."""
        return [key for group in self.groups() for key in group.to_pylist()]

    def sha256(self) -> str:
        """sha256 (hex) over the keys, each followed by a newline."""
        digest = hashlib.sha256()
        newline, nothing = pa.scalar("\n", KEY_TYPE), pa.scalar("", KEY_TYPE)
        for keys in self.groups():
            for start in range(0, len(keys), _CHUNK):
                # Keys have no control characters, so that a newline after each is unambiguous. The values of the
                # joined column are in one buffer, which is ten times as fast as Python strings.
                lines = pc.binary_join_element_wise(keys[start : start + _CHUNK], newline, nothing)
                _, offsets, values = lines.buffers()
                first, last = np.frombuffer(offsets, np.int64)[[lines.offset, lines.offset + len(lines)]]
                digest.update(memoryview(values)[first:last])
        return digest.hexdigest()


def groups_of(keys: Sequence[str] | Any) -> Groups:
    """The groups of a sequence of strings, or of an Arrow array, which are made one at a time.

    Raises:
        ShardError: A key is no string.
    """

    def groups() -> Iterator[Any]:
        for start in range(0, len(keys), GROUP):
            yield pa.array(keys[start : start + GROUP], KEY_TYPE)

    return groups


def check_groups(groups: Groups, split: str, views: int) -> int:
    """Check the keys of a split, and return their number.

    Raises:
        ShardError: A key is bad, or repeated, or is the row key of another sample's view.
    """
    where, hashes, suffixed = f"split {split!r}", list[npt.NDArray[np.int64]](), list[Any]()
    for keys in groups():
        check_each_key(keys)
        hashes += [
            np.fromiter(map(hash, part.to_pylist()), np.int64, len(part))
            for part in (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))
        ]
        if views > 1:
            suffixed.append(keys.filter(pc.match_substring_regex(keys, _VIEW_KEY)))
    found = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
    del hashes
    if twice := repeated_hashes(found):
        _check_equal(groups, twice, where)
    if any(len(part) for part in suffixed):
        _check_view_keys(groups, pa.concat_arrays(suffixed), split)
    return len(found)


def _check_equal(groups: Groups, hashes: set[int], where: str) -> None:
    """Check the keys with these hashes, which are nearly always equal."""
    suspects = [key for keys in groups() for key in keys.to_pylist() if hash(key) in hashes]
    check_keys(pa.array(suspects, KEY_TYPE), where)


def _check_view_keys(groups: Groups, suffixed: Any, split: str) -> None:
    """Refuse a sample whose key is also the row key of another sample's view (``a-v1`` beside ``a``)."""
    samples = pc.replace_substring_regex(suffixed, _VIEW_KEY, "")
    for keys in groups():
        clashes = suffixed.filter(pc.is_in(samples, value_set=keys))
        if len(clashes):
            raise ShardError(
                f"split {split!r}: sample {clashes[0].as_py()!r} is named like a view of another. Rename it"
            )


def shuffled_keys(groups: Groups, order: npt.NDArray[np.integer[Any]]) -> Keys:
    """The keys of a split in another order.

    More than a group are distributed over one temporary file per group of the result, each of which is then sorted in
    memory. The files are deleted with the result.

    Args:
        groups: The keys.
        order: Position in the result → index in the source.

    Raises:
        ShardError: The temporary files cannot be written.
    """
    if len(order) <= GROUP:
        keys = pa.concat_arrays([*groups(), pa.array([], KEY_TYPE)]).take(pa.array(order))
        return Keys(len(keys), lambda _: keys)
    folder = tempfile.TemporaryDirectory(prefix="keys-")
    path = Path(folder.name)
    try:
        _scatter(groups, order, path)
        _sort(path, -(-len(order) // GROUP))
    except OSError as error:
        raise ShardError(
            f"the keys of {len(order):,} samples cannot be sorted in {path.parent} ({error.strerror or error}): free "
            "some space there, or set TMPDIR to another folder"
        ) from error
    made = Keys(len(order), lambda group: _read(path / str(group))["key"].combine_chunks())
    weakref.finalize(made, folder.cleanup)
    return made


def _sort(folder: Path, groups: int) -> None:
    """Bring the keys of each file into the order of their places."""
    for group in range(groups):
        scattered = _read(folder / str(group))
        keys = scattered["key"].combine_chunks().take(pa.array(np.argsort(scattered["place"].to_numpy())))
        with _writer(folder / str(group), _SORTED) as writer:
            writer.write(pa.RecordBatch.from_arrays([keys], schema=_SORTED))


_SCATTERED = pa.schema([("place", pa.int32()), ("key", KEY_TYPE)])
_SORTED = pa.schema([("key", KEY_TYPE)])


@contextlib.contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Any]:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema, options=options) as writer:
        yield writer


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def _scatter(groups: Groups, order: npt.NDArray[np.integer[Any]], folder: Path) -> None:
    """Write each key, with its place, to the file of the group that it belongs to."""
    place_of = np.empty(len(order), np.int32 if len(order) < 2**31 else np.int64)
    place_of[order] = np.arange(len(order), dtype=place_of.dtype)
    with contextlib.ExitStack() as stack:
        names = (folder / str(group) for group in range(-(-len(order) // GROUP)))
        writers = [stack.enter_context(_writer(path, _SCATTERED)) for path in names]
        for number, keys in enumerate(groups()):
            places = place_of[number * GROUP : number * GROUP + len(keys)]
            by_group = np.argsort(places // GROUP, kind="stable")
            sorted_places, sorted_keys = places[by_group], keys.take(pa.array(by_group))
            ends = np.searchsorted(sorted_places // GROUP, np.arange(len(writers)), side="right")
            for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                inside = pa.array((sorted_places[start:end] - group * GROUP).astype(np.int32))
                writers[group].write(pa.RecordBatch.from_arrays([inside, sorted_keys[start:end]], schema=_SCATTERED))


def file_keys(samples: Any, splits: Mapping[str, int]) -> dict[str, Keys]:
    """The keys in a file with the columns of ``samples.parquet``, of which a row group is read at a time.

    Args:
        samples: The open ``pyarrow.parquet.ParquetFile``, whose texts are read as dictionaries.
        splits: Split → number of its rows, in the sequence of the file.

    Raises:
        ShardError: Its keys are too long; raised when they are read.
    """
    starts = np.cumsum([0, *(samples.metadata.row_group(i).num_rows for i in range(samples.num_row_groups))])
    ends = np.minimum(np.cumsum(list(splits.values())), starts[-1]).tolist()  # a cut file has fewer keys

    @functools.lru_cache(maxsize=2)
    def row_group(group: int) -> Any:
        column = samples.read_row_group(group, columns=["key"])["key"]
        if decoded_bytes(column) > _MAX_GROUP_BYTES:
            raise ShardError(f"its row group {group} has keys of more than {_MAX_GROUP_BYTES:,} bytes")
        return column.cast(KEY_TYPE).combine_chunks()

    def rows(start: int, stop: int) -> Any:
        found = range(np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, stop))
        return pa.concat_arrays([row_group(i)[max(0, start - starts[i]) : stop - starts[i]] for i in found])

    def keys_of(first: int, stop: int) -> Keys:
        return Keys(stop - first, lambda group: rows(first + group * GROUP, min(first + (group + 1) * GROUP, stop)))

    return {split: keys_of(first, stop) for split, first, stop in zip(splits, [0, *ends], ends, strict=False)}
