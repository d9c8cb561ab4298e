"""Folders of files: which files a dataset reads, and the keys that their paths become."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from runkit.ranges import RemoteFile
from runkit.remote import AnyPath, RemotePath, in_parallel
from runkit.retries import is_passing
from vqgan.errors import InputError

log = logging.getLogger(__name__)
_T = TypeVar("_T")
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Suffixes of images. Of an animation the first frame is read."""
MAP_SUFFIXES = frozenset({".bmp", ".gif", ".npy", ".pfm", ".pgm", ".png", ".tif", ".tiff"})
"""Suffixes of segmentation masks and depth maps, whose formats are lossless."""
_TEXT_SUFFIXES = frozenset(
    {".cfg", ".csv", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)
"""Suffixes of texts beside images, which are not counted as unread."""
_SYSTEM_NAMES = frozenset({
    "__macosx", "network trash folder", "temporary items", "icon\r", "lost+found", "__pycache__",
    "#recycle", "#snapshot", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@synoresource", "@tmp",
    "$extend", "$recycle.bin", "desktop.ini", "ehthumbs.db", "found.000", "recycled", "recycler",
    "system volume information", "thumbs.db",
})  # fmt: skip
"""Names that operating systems and storage devices add to folders, in lower case."""
_NOT_IN_KEYS = re.compile(r"[%.\s\x00-\x1f\x7f]")
_REPORTED_SUFFIXES = 10


def read_each(read: Callable[[AnyPath], Iterable[_T]], paths: Iterable[AnyPath]) -> Iterable[Iterable[_T]]:
    """Return what `read` yields for each file, in order: of local files one after the other, of remote ones at once.

    What was read of remote files is kept until others are read, because a command opens a dataset several times.
    """
    paths = list(paths)
    remote = {path.file: path for path in paths if isinstance(path, RemotePath)}
    if not remote:
        return map(read, paths)
    kept = _kept.get(read, {})
    missing = {file: path for file, path in remote.items() if file not in kept}
    found = in_parallel(lambda path: list(read(path)), missing.values(), "remote files")
    kept = kept | dict(zip(missing, found, strict=True))
    _kept[read] = {file: kept[file] for file in remote}
    return [kept[file] for file in remote]


_kept: dict[Callable[[AnyPath], Iterable[Any]], dict[RemoteFile, list[Any]]] = {}


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden, or added by an operating system; no dataset reads it."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_image_name(path: str) -> bool:
    """Return whether a file with this name is read as an image."""
    return not is_system_name(os.path.basename(path)) and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def make_key(path: str | PurePosixPath) -> str:
    """Convert a relative path to a shard key: without its suffix, with dots, "%" and white space percent-encoded.

    A key has no dots, because WebDataset splits names at the first dot. `urllib.parse.unquote` returns the path.
    """
    stem = os.path.splitext(str(path))[0]
    return _NOT_IN_KEYS.sub(lambda found: quote(found[0], safe="").replace(".", "%2E"), stem)


def find_files(folder: AnyPath, suffixes: Iterable[str] = IMAGE_SUFFIXES, *, count_others: bool = False) -> list[str]:
    """List the files below `folder` with one of the suffixes, as sorted relative paths with "/".

    Hidden files and those of operating systems are left out. Symbolic links are followed. A dangling link is listed, so
    that reading it fails by name.

    Args:
        folder: Folder to search.
        suffixes: Suffixes to list, in lower case.
        count_others: Log how many files have other suffixes, except texts.

    Raises:
        InputError: a folder cannot be listed, or a link leads back to a folder above it.
    """
    suffixes, found, others = frozenset(suffixes), list[str](), Counter[str]()
    for path in walk(folder) if folder.is_dir() else ():
        suffix = os.path.splitext(path)[1].lower()
        if suffix in suffixes:
            found.append(path)
        elif suffix not in _TEXT_SUFFIXES:
            others[suffix] += 1
    if others and count_others:
        most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:_REPORTED_SUFFIXES]
        listed = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in most)
        log.warning("%s: files that are not read, by suffix: %s", folder, listed)
    return sorted(found)


def walk(folder: AnyPath) -> Iterator[str]:
    """Yield the relative paths of all files below a folder, except those of operating systems; see `find_files`."""
    if not isinstance(folder, RemotePath):
        return _walk(str(folder))
    return (path for path in folder.walk_files() if not any(map(is_system_name, path.split("/"))))


def _walk(folder: str, prefix: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
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
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
        else:
            yield prefix + entry.name


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one.

    A link to itself is not: reading it as a file fails by name.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if is_passing(error):
            raise
        return False


def folders_in(folder: AnyPath) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones and those of operating systems."""
    if isinstance(folder, RemotePath):
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_system_name(path.name))
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not is_system_name(entry.name))


def map_folder(folder: AnyPath, condition: str) -> AnyPath:
    """Return the folder of the maps of a folder of images, which is beside it: `train_depth/` beside `train/`."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}_{condition}")
