"""Where the bytes of an image lie, and how folders of them are listed. Nothing here decodes a picture."""

import io
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol
from urllib.parse import quote

from runkit.retries import is_passing, patient
from vqgan.datasets.base import Item, Split
from vqgan.datasets.conditions import Keypoints
from vqgan.datasets.splits import by_split, choose_splits, split_word
from vqgan.errors import InputError

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Of an animation the first picture is read."""
MAP_SUFFIXES = frozenset({".npy", ".pfm", ".png"})
CONDITIONS = ("segmentation", "depth", "pose")
_TEXTS = frozenset(
    {".cfg", ".csv", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)
"""Files that lie beside pictures and are not meant to be any."""
_SYSTEM_NAMES = frozenset({
    "__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "lost+found", "$recycle.bin", "recycler",
    "system volume information", "thumbs.db", "desktop.ini", "__pycache__",
})  # fmt: skip
"""What operating systems and storage devices add to folders, in lower case."""


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
    pieces: tuple[tuple[int, int], ...] | None = None
    """Of a sparse member: place in it and length of what is stored, one behind the other; the rest is zeros."""

    def open(self) -> BinaryIO:
        """The bytes in memory."""
        pieces = ((0, self.length),) if self.pieces is None else self.pieces
        stored = sum(length for _, length in pieces)
        with open_regular(self.path) as file:
            file.seek(self.offset)
            data = file.read(stored)
        if len(data) < stored:
            raise OSError(f"{self.path} ends before this member does: the archive is cut short")
        if self.pieces is not None:
            whole, place = bytearray(self.length), 0
            for at, length in pieces:
                whole[at : at + length] = data[place : place + length]
                place += length
            data = bytes(whole)
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


def is_system_name(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or is what an operating system adds: no data in any dataset."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


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


def find_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES, *, count_others: bool = False) -> list[str]:
    """Files below `folder` with one of the suffixes, as sorted relative paths with "/".

    Hidden files and what operating systems add are left out. Symbolic links are followed; a dangling one is listed, so
    that reading it fails by name.

    Args:
        folder: Where to look.
        suffixes: Those that are read, in lower case.
        count_others: Log how many files have other suffixes, except texts.

    Raises:
        InputError: a folder cannot be listed, or a link leads back to a folder above it.
    """
    suffixes, found, others = frozenset(suffixes), list[str](), Counter[str]()
    for path in _walk(str(folder), "", ()) if folder.is_dir() else ():
        suffix = os.path.splitext(path)[1].lower()
        if suffix in suffixes:
            found.append(path)
        elif suffix not in _TEXTS:
            others[suffix] += 1
    if others and count_others:
        most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:10]
        listed = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in most)
        log.warning("%s: files that are not read, by suffix: %s", folder, listed)
    return sorted(found)


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise InputError(f"{folder} is a symbolic link to a folder above it: remove the link")
    for entry in entries:
        if is_system_name(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
        else:
            yield prefix + entry.name


def files_of_splits(root: Path, suffixes: set[str]) -> dict[str, list[str]]:
    """Split → its files below `root`: see `by_split`."""
    return by_split(find_files(root, suffixes, count_others=True), root)


def split_folders(root: Path) -> dict[str, Path]:
    """Split → its folder in `root`, by the usual names in any case; empty where no folder has such a name.

    Raises:
        InputError: two folders have one name, one is a link to nothing, or images lie beside a split that is not train.
    """
    names = [path.name for path in root.iterdir() if split_word(path.name) and (path.is_dir() or path.is_symlink())]
    if not names:
        return {}
    maps = {f"{name}_{condition}" for name in names for condition in CONDITIONS}
    beside = [name for name in folders_in(root) if name not in names and name not in maps]
    beside = [f"{name}/" for name in beside if any(_has_image(path) for path in _walk(str(root / name), "", ()))]
    beside += [path.name for path in root.iterdir() if _has_image(path.name) and path.is_file()]
    found = choose_splits({name: split_word(name) for name in sorted(names)} | dict.fromkeys(sorted(beside)), root)
    for folders in found.values():
        if len(folders) > 1:
            raise InputError(f"{root}: {folders[0]} and {folders[1]} name one split: pass a folder with one of them")
        if not (root / folders[0]).exists():
            raise InputError(f"{root / folders[0]} is a link to nothing: is what it links to mounted?")
    return {split: root / folders[0] for split, folders in found.items()}


def _has_image(path: str) -> bool:
    return not is_system_name(os.path.basename(path)) and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones and those that operating systems add."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_system_name(path.name))


def class_items(folder: Path, class_names: Sequence[str]) -> Iterator[Item]:
    """Images below `folder`; the label is the index of the first folder's name, and None without one."""
    label_of = {name: label for label, name in enumerate(class_names)}
    for path in find_files(folder, count_others=True):
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
        map_of = {make_key(path): f"{folder}/{path}" for path in find_files(folder, suffixes, count_others=True)}
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
