"""Where the bytes of an image lie, and how folders of them are listed. Nothing here decodes a picture."""

import gzip
import io
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import quote

from runkit.retries import is_passing, patient
from vqgan.datasets.base import Item, Split
from vqgan.datasets.conditions import Keypoints
from vqgan.errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAP_SUFFIXES = frozenset({".npy", ".pfm", ".png"})
_MAX_LABELS = 1_000_000
_ARCHIVE_BYTES = 512 * 2**20
"""CIFAR-10 unpacks to 186 MB, ImageNet's development kit to less than 10."""
_T = TypeVar("_T")
CONDITIONS = ("segmentation", "depth", "pose")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val",
}  # fmt: skip
"""What folders and files call a split → what we call it; of several for one split, the first here is taken."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which may give nothing for ever, is refused.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=_opener)  # noqa: SIM115 - for the caller
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no regular file")
    return file


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # or opening a pipe waits for a writer


def read_text(path: Path) -> str:
    """The content of a text file beside the images, without a byte order mark.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}): convert it, for example with iconv -f latin1") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


class Source(Protocol):
    """Bytes to decode. Sources are small, hashable and picklable; the bytes are read only by `open`."""

    @property
    def name(self) -> str:
        """What messages call it; its suffix tells the format of a map."""

    def open(self) -> BinaryIO:
        """The bytes, seekable.

        Raises:
            OSError: they cannot be read.
        """

    def nbytes(self) -> int:
        """Size in bytes without reading them; -1 where there is nothing."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of its own."""

    path: str

    @property
    def name(self) -> str:
        """Its name without the folder."""
        return os.path.basename(self.path)

    def open(self) -> BinaryIO:
        """The open file."""
        return open_regular(self.path)

    @patient
    def nbytes(self) -> int:
        """Its size, -1 where it is not there."""
        try:
            return os.stat(self.path).st_size
        except OSError as error:
            if is_passing(error):
                raise  # it has a size, and with another the source list would be another
            return -1


@dataclass(frozen=True, slots=True)
class Blob:
    """A run of bytes inside a file, such as a member of a tar: read in place, the archive is not unpacked."""

    path: str
    offset: int
    length: int
    name: str

    def open(self) -> BinaryIO:
        """The bytes in memory."""
        with open_regular(self.path) as file:
            file.seek(self.offset)
            data = file.read(self.length)
        if len(data) < self.length:
            raise OSError(f"{self.path} ends before this member does: the archive is cut short")
        return io.BytesIO(data)

    def nbytes(self) -> int:
        """Length of the run."""
        return self.length


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are in memory already."""

    name: str
    data: bytes

    def open(self) -> BinaryIO:
        """The bytes."""
        return io.BytesIO(self.data)

    def nbytes(self) -> int:
        """Their number."""
        return len(self.data)


def check_label(label: int) -> int:
    """Return a class label that counts from 0.

    Raises:
        ValueError: it is negative, or so large that a name for each label would fill the memory.
    """
    if not 0 <= label < _MAX_LABELS:
        raise ValueError(
            f"label {str(label)[:20]} is too large or negative: labels count from 0 to {_MAX_LABELS - 1:,} without gaps"
        )
    return label


def make_key(path: str | PurePosixPath) -> str:
    """A relative path as a shard key: without its suffix, with dots, "%" and white space percent-encoded.

    Keys are free of dots, because WebDataset splits names at the first one; `urllib.parse.unquote` gives the path back.
    """
    stem = os.path.splitext(str(path))[0]
    return re.sub(r"[%.\s\x00-\x1f\x7f]", lambda found: quote(found[0], safe="").replace(".", "%2E"), stem)


def sources_of(splits: Mapping[str, "Split"], root: Path) -> list[Path]:
    """Folders in which a reader finds a dataset's samples: an output in one of them would be read as data next time.

    They are those of the splits and of their maps; of archives and tables, which are looked for everywhere, the root.
    """
    found: set[str] = set()
    for item in (item for split in splits.values() for item in split.items):
        for source in (item.image, *(part for part in item.conditions.values() if not isinstance(part, Keypoints))):
            # The key is the path from the split's folder, without its suffix.
            depth = item.key.count("/") + 1
            found.add(source.path.rsplit("/", depth)[0] if isinstance(source, File) else str(root))
    return sorted(map(Path, found))


def find_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[str]:
    """Files below `folder` with one of the suffixes, as sorted relative paths with "/"; hidden ones are left out.

    Symbolic links are followed; a dangling one is listed, so that reading it fails by name.

    Raises:
        InputError: a folder cannot be listed, or a link leads back to a folder above it.
    """
    suffixes = frozenset(suffixes)
    return sorted(_walk(str(folder), "", suffixes, ())) if folder.is_dir() else []


def _walk(folder: str, prefix: str, suffixes: frozenset[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise InputError(f"{folder} is a symbolic link to a folder above it: remove the link")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", suffixes, (*above, here))
        elif os.path.splitext(entry.name)[1].lower() in suffixes:
            yield prefix + entry.name


def split_named(path: str) -> str:
    """What a file's path calls its split, one of `SPLIT_NAMES`; "train" where it does not."""
    words = re.split(r"[-_./]", path.lower())
    return next((word for word in words if word in SPLIT_NAMES), "train")


def first_of_each(found: dict[str, _T]) -> dict[str, _T]:
    """What was found under the names of `SPLIT_NAMES`, under ours; of several for one split, the first there."""
    ours: dict[str, _T] = {}
    for theirs, split in SPLIT_NAMES.items():
        if theirs in found:
            ours.setdefault(split, found[theirs])
    return ours


def files_of_splits(root: Path, suffixes: set[str]) -> dict[str, list[str]]:
    """Split → its files below `root`, by what their paths call it: of several names for one split, the first's."""
    found: dict[str, list[str]] = {}
    for path in find_files(root, suffixes):
        found.setdefault(split_named(path), []).append(path)
    return first_of_each(found)


def folders_in(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_items(folder: Path, class_names: Sequence[str]) -> Iterator[Item]:
    """Images below `folder`; the label is the index of the first folder's name, and None without one."""
    label_of = {name: label for label, name in enumerate(class_names)}
    for path in find_files(folder):
        label = label_of[path.split("/", 1)[0]] if "/" in path else None
        yield Item(key=make_key(path), image=File(f"{folder}/{path}"), label=label)


def with_maps(items: Iterable[Item], folders: dict[str, Path]) -> tuple[list[Item], tuple[str, ...]]:
    """Attach the maps of parallel folders to the items of the same relative path, whatever the suffix.

    Args:
        items: Items whose keys are relative paths.
        folders: Condition → root of its parallel tree; missing folders are passed over.

    Returns:
        The items, and the maps that belong to no item.
    """
    items, strays = list(items), list[str]()
    for condition, folder in folders.items():
        suffixes = IMAGE_SUFFIXES if condition == "pose" else MAP_SUFFIXES
        map_of = {make_key(path): f"{folder}/{path}" for path in find_files(folder, suffixes)}
        items = [
            replace(item, conditions={**item.conditions, condition: File(map_of.pop(item.key))})
            if item.key in map_of
            else item
            for item in items
        ]
        strays += map_of.values()
    return items, tuple(strays)


def map_folder(folder: Path, condition: str) -> Path:
    """Where the maps of a folder of images lie: beside it, as `train_depth/` beside `train/`."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}_{condition}")


def image_tree(
    folders: dict[str, Path], *, conditions: Sequence[str] = CONDITIONS, n_labels: int = 256
) -> dict[str, Split]:
    """Splits from folders with an optional sub-folder per class and optional trees of maps beside them.

    The maps of `train/` lie in `train_segmentation/`, `train_depth/`, `train_pose/`, under the images' own names.

    Args:
        folders: Split → its folder of images.
        conditions: Conditions to look for.
        n_labels: Labels that a mask may hold.
    """
    names = sorted({name for folder in folders.values() for name in folders_in(folder)})
    splits = {}
    for split, folder in folders.items():
        maps = {condition: map_folder(folder, condition) for condition in conditions}
        items, strays = with_maps(class_items(folder, names), maps)
        splits[split] = Split(items, names, n_labels=n_labels, strays=strays)
    return splits


def read_archive(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Name → content of members of a tar, gzipped or not; at most `_ARCHIVE_BYTES` of it are unpacked.

    Args:
        path: The archive.
        wanted: Whether a member of this name is to be read.

    Raises:
        InputError: it is cut off or broken, or unpacks to more.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            limited = _Limited(gzip.GzipFile(fileobj=file) if packed else file)
            content = {}
            with tarfile.open(fileobj=limited, mode="r:") as archive:  # type: ignore[call-overload]
                for member in archive:
                    limited.check(member.offset_data + member.size)
                    data = archive.extractfile(member) if member.isreg() and wanted(member.name) else None
                    if data is not None:
                        content[member.name] = data.read()
            return content
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read, is it whole? {error}") from error


class _Limited:
    """The beginning of a file, `_ARCHIVE_BYTES` of it: who reads or seeks behind it learns that it is too large."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        """The next bytes."""
        self.check(self.tell() + count)
        return self._file.read(count)

    def seek(self, place: int) -> int:
        """Go to a place."""
        self.check(place)
        return self._file.seek(place)

    def check(self, place: int) -> None:
        """Raise OSError for a place behind the limit."""
        if place > _ARCHIVE_BYTES:
            raise OSError(f"it unpacks to more than {_ARCHIVE_BYTES:,} bytes, more than any archive that is read whole")


def tar_members(path: Path) -> Iterator[tuple[str, Blob]]:
    """The regular members of a tar as (name, bytes in place), in archive order.

    Raises:
        InputError: not a tar, or compressed, so that members cannot be read in place.
    """
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as outer:
            yield from _members(path, outer, 0)
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as an uncompressed tar ({error}): unpack it, or decompress it"
        ) from error


def inner_tar_members(path: Path) -> Iterator[tuple[str, str, Blob]]:
    """The members of all tars inside a tar, as (inner tar, name, bytes in place): ImageNet's training archive."""
    try:
        with open_regular(path) as whole, tarfile.open(fileobj=whole, mode="r:") as outer:
            for member in outer:
                file = outer.extractfile(member)
                if file is not None and member.name.endswith(".tar"):
                    with tarfile.open(fileobj=file, mode="r:") as inner:
                        for name, blob in _members(path, inner, member.offset_data):
                            yield member.name, name, blob
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} cannot be read as a tar of uncompressed tars ({error}): unpack it") from error


def _members(path: Path, archive: tarfile.TarFile, base: int) -> Iterator[tuple[str, Blob]]:
    for member in archive:
        if member.isreg():
            name = os.path.basename(member.name)
            yield member.name, Blob(str(path), base + member.offset_data, member.size, name)
        archive.members = []  # type: ignore[attr-defined]  # a million headers need not stay in memory
