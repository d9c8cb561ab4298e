"""Published sets of tokens: where the codes and the label of each image are. Images are read one at a time.

Axes: A views of an image as stored, L codes of a picture, row major.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codeshards.format.errors import ShardError

TokenKind = Literal["rar", "llamagen", "randar"]
_TEN_CROP = (4, 9, 0, 6, 1, 5, 2, 8, 3, 7)
"""View → its place in torchvision's TenCrop: the centre and four corners, each before its mirror. TenCrop cuts the
corners of the mirrored picture, so that its upper left corner is the mirror of the upper right one."""


class TokenSet(ABC):
    """The images of a set in source order."""

    keys: list[str]
    """Key of each image."""
    source_hash: str
    """Identifies the list of images."""

    @abstractmethod
    def stored(self, index: int) -> tuple[NDArray[Any], int]:
        """Return integer codes [A, L] and the label of an image; raises ValueError, KeyError or OSError."""

    def read(self, index: int) -> tuple[NDArray[Any], int]:
        """Return codes [A, L], view 0 first, and the label of an image.

        Raises:
            ValueError: They are not codes and a label, or cannot be read.
        """
        try:
            codes_AL, label = self.stored(index)
        except (OSError, KeyError, TypeError, OverflowError, tarfile.TarError) as error:
            raise ValueError(f"cannot be read ({error!r})") from error
        if codes_AL.ndim != 2 or not np.issubdtype(codes_AL.dtype, np.integer):
            raise ValueError(f"expected integer codes [views, codes], found {codes_AL.dtype} {codes_AL.shape}")
        return (codes_AL[list(_TEN_CROP)] if len(codes_AL) == 10 else codes_AL), label


class JsonLines(TokenSet):
    """RAR's file: one line ``{"class_id": …, "tokens": […]}`` for each view of an image."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path, self.lines = path, lines
        digest, starts = hashlib.sha256(), [0]
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                starts.append(starts[-1] + len(line))
        self._starts = np.array(starts, np.int64)
        images, rest = divmod(len(starts) - 1, lines)
        if rest:
            raise ShardError(f"{path} has {len(starts) - 1} lines, no multiple of lines = {lines} per image")
        self.keys, self.source_hash = [f"{index:08d}" for index in range(images)], digest.hexdigest()

    def stored(self, index: int) -> tuple[NDArray[Any], int]:
        """Return the lines of an image."""
        first = index * self.lines
        with self.path.open("rb") as file:
            file.seek(int(self._starts[first]))
            content = file.read(int(self._starts[first + self.lines] - self._starts[first]))
        rows = []
        for number, line in enumerate(content.splitlines(), first + 1):
            try:
                row = json.loads(line)
                rows.append((np.array(row["tokens"]), int(row["class_id"])))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"line {number} is not a line of tokens ({error!r})") from error
        if len({label for _, label in rows}) > 1:
            raise ValueError(f"lines {first + 1} to {first + self.lines} have several classes: are they of one image?")
        return np.stack([tokens for tokens, _ in rows]), rows[0][1]


class Folders(TokenSet):
    """LlamaGen's folders: ``…_codes/N.npy`` [1, A, L] and ``…_labels/N.npy`` [1]."""

    def __init__(self, codes: Path) -> None:
        self._codes, self._labels = codes, codes.with_name(codes.name.removesuffix("_codes") + "_labels")
        sizes = {path.stem: path.stat().st_size for path in codes.glob("*.npy")}
        self.keys = sorted(sizes, key=_by_number)
        self.source_hash = _hash_of((key, sizes[key]) for key in self.keys)

    def stored(self, index: int) -> tuple[NDArray[Any], int]:
        """Return the two files of an image."""
        name = f"{self.keys[index]}.npy"
        label = np.load(self._labels / name, allow_pickle=False)
        return np.load(self._codes / name, allow_pickle=False)[0], int(label.reshape(-1)[0])


class ClassFolders(TokenSet):
    """RandAR's folder, or a tar of it: ``CLASS/N.npy`` [A, L]."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = dict(_members(path) if path.is_file() else _files(path))
        self.keys = sorted(found, key=_by_number)
        self._places = np.array([found[key] for key in self.keys], np.int64).reshape(-1, 2)
        self.source_hash = _hash_of((key, found[key][1]) for key in self.keys)

    def stored(self, index: int) -> tuple[NDArray[Any], int]:
        """Return the file of an image."""
        key, (start, size) = self.keys[index], self._places[index].tolist()
        with (self._path if self._path.is_file() else self._path / f"{key}.npy").open("rb") as file:
            file.seek(start)
            codes = np.load(io.BytesIO(file.read(size)), allow_pickle=False)
        return codes, int(key.partition("/")[0])


def _members(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield ``CLASS/N`` with the offset and the size of each array in a tar."""
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            if member.name.endswith(".npy"):
                key = "/".join(member.name.removesuffix(".npy").split("/")[-2:])
                yield key, (member.offset_data, member.size)
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them would take a gigabyte


def _files(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for file in path.glob("*/*.npy"):
        yield file.relative_to(path).as_posix().removesuffix(".npy"), (0, file.stat().st_size)


def open_token_set(path: Path, kind: str, lines: int) -> tuple[TokenKind, TokenSet]:
    """Open a set of tokens; kind "auto" recognises it.

    Raises:
        ShardError: It is not there, or not of this kind, or has no images.
    """
    if not path.exists():
        raise ShardError(f"{path} does not exist: name a file or folder of tokens")
    codes = [path] if path.name.endswith("_codes") else sorted(path.glob("*_codes")) if path.is_dir() else []
    with_labels = [one for one in codes if one.with_name(one.name.removesuffix("_codes") + "_labels").is_dir()]
    if kind == "auto":
        kind = "rar" if path.suffix == ".jsonl" else "llamagen" if with_labels else "randar"
    if (kind == "rar" and path.is_dir()) or (kind == "llamagen" and len(with_labels) != 1):
        raise ShardError(f"{path} is no set of tokens of kind {kind}: name the .jsonl, the folder or the tar")
    try:
        opened: TokenSet
        if kind == "rar":
            opened = JsonLines(path, lines)
        else:
            opened = Folders(with_labels[0]) if kind == "llamagen" else ClassFolders(path)
    except tarfile.TarError as error:
        raise ShardError(f"{path} is no tar of tokens ({error})") from error
    if not opened.keys:
        raise ShardError(f"{path} has no images of tokens of kind {kind}")
    return kind, opened  # type: ignore[return-value]


def _by_number(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _hash_of(entries: Iterable[tuple[str, int]]) -> str:
    return hashlib.sha256("".join(f"{key} {size}\n" for key, size in entries).encode()).hexdigest()
