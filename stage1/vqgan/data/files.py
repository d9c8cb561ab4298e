"""Where the bytes of an image lie, and how folders of them are listed. Nothing here decodes a picture."""

import io
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol
from urllib.parse import quote

from runkit.retries import is_passing, patient
from vqgan.data.base import Split
from vqgan.data.conditions import Keypoints
from vqgan.data.splits import by_split
from vqgan.errors import InputError

log = logging.getLogger(__name__)
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Of an animation the first picture is read."""
MAP_SUFFIXES = frozenset({".bmp", ".gif", ".npy", ".pfm", ".pgm", ".png", ".tif", ".tiff"})
CONDITIONS = ("segmentation", "depth", "pose")
_TEXTS = frozenset(
    {".cfg", ".csv", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)
"""Files that lie beside pictures and are not meant to be any."""
_SYSTEM_NAMES = frozenset({
    "__macosx", "network trash folder", "temporary items", "icon\r", "lost+found", "__pycache__",
    "#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@synoresource", "@tmp",
    "$extend", "$recycle.bin", "desktop.ini", "ehthumbs.db", "found.000", "recycled", "recycler",
    "system volume information", "thumbs.db",
})  # fmt: skip
"""What operating systems and storage devices add to folders, in lower case."""


_NOT_IN_KEYS = re.compile(r"[%.\s\x00-\x1f\x7f]")


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
        stored = self.length if self.pieces is None else sum(length for _, length in self.pieces)
        with open_regular(self.path) as file:
            file.seek(self.offset)
            data = file.read(stored)
        if len(data) < stored:
            raise OSError(f"{self.path} ends before this member does: the archive is cut short")
        if self.pieces is not None:
            whole, place = bytearray(self.length), 0
            for at, length in self.pieces:
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


def is_image_name(path: str) -> bool:
    """Whether a file of this name is read as an image."""
    return not is_system_name(os.path.basename(path)) and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def make_key(path: str | PurePosixPath) -> str:
    """A relative path as a shard key: without its suffix, with dots, "%" and white space percent-encoded.

    Keys are free of dots, because WebDataset splits names at the first one; `urllib.parse.unquote` gives the path back.
    """
    stem = os.path.splitext(str(path))[0]
    return _NOT_IN_KEYS.sub(lambda found: quote(found[0], safe="").replace(".", "%2E"), stem)


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
    for path in walk(str(folder)) if folder.is_dir() else ():
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


def walk(folder: str, prefix: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Relative paths of the files below a folder, but those of operating systems; see `find_files`."""
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
        if is_folder(entry):
            yield from walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
        else:
            yield prefix + entry.name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link that leads to itself is none, and reading it fails by name."""
    try:
        return entry.is_dir()
    except OSError as error:
        if is_passing(error):
            raise
        return False


def files_of_splits(root: Path, suffixes: set[str]) -> dict[str, list[str]]:
    """Split → its files below `root`: see `by_split`."""
    return by_split(find_files(root, suffixes, count_others=True), root)


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones and those that operating systems add."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not is_system_name(entry.name))


def map_folder(folder: Path, condition: str) -> Path:
    """Where the maps of a folder of images lie: beside it, as `train_depth/` beside `train/`."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}_{condition}")
