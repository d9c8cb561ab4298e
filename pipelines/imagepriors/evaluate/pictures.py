"""Pictures as re-iterable sources of batches, so that 50,000 of them require the memory of a few hundred."""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from imagepriors.evaluate.config import Resize
from imagepriors.evaluate.resizes import resized
from runkit.files import sha256_of
from runkit.jsonfiles import parse_object
from vqgan.config import Geometry
from vqgan.data import Split, open_pictures
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer

Array = npt.NDArray[Any]
ARRAY = "arr_0"
"""Name of the pictures in an `.npz`: numpy's for the first array, and the one that ADM's evaluator reads."""
_BATCH = 64
_THREADS = 4


class Pictures(Protocol):
    """A source of pictures of one size."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        ...

    def batches(self) -> Iterator[Array]:
        """Yield uint8 [B, H, W, 3]; every call starts with the first picture."""
        ...


@dataclass(frozen=True, slots=True)
class HeldPictures:
    """Pictures in memory."""

    array: Array
    """uint8 [N, H, W, 3]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return self.array.shape

    def batches(self) -> Iterator[Array]:
        """Yield slices of the array."""
        return (self.array[start : start + _BATCH] for start in range(0, len(self.array), _BATCH))


@dataclass(frozen=True, slots=True)
class DecodedPictures:
    """Pictures that a tokenizer decodes from codes batch by batch."""

    tokenizer: Tokenizer
    codes_NHW: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return len(self.codes_NHW), *(self.tokenizer.config.resolution,) * 2, 3

    def batches(self) -> Iterator[Array]:
        """Decode and yield uint8 [B, H, W, 3]."""
        return (self.tokenizer.decode(codes_BHW) for codes_BHW in HeldPictures(self.codes_NHW).batches())


@dataclass(frozen=True, slots=True)
class ReadPictures:
    """Pictures that are read one by one, in threads."""

    shape: tuple[int, ...]
    """(N, H, W, 3)."""
    read: Callable[[int], Array]
    """A function from an index to uint8 [H, W, 3]."""

    def batches(self) -> Iterator[Array]:
        """Read and yield uint8 [B, H, W, 3].

        Raises:
            InputError: a picture cannot be read.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, self.shape[0], _BATCH):
                yield np.stack(list(pool.map(self.read, range(start, min(start + _BATCH, self.shape[0])))))


def split_pictures(split: Split, size: int, geometry: Geometry = "crop", resize: Resize = "training") -> ReadPictures:
    """Pictures of a split as squares of `size` pixels.

    With the resize "training" the next readable picture takes the place of an unreadable one. With a published resize
    reading it raises InputError, because a reference with replacements is not the published one.
    """

    def read(index: int) -> Array:
        if resize == "training":
            return split.read_good(index, size, geometry=geometry).image
        return resized(split.read_whole(index), size, resize)

    return ReadPictures((len(split), size, size, 3), read)


def whole_pictures(split: Split) -> ReadPictures:
    """Pictures of a split in their own size, which must be one; reading another raises InputError."""
    width, height = split.image_size(0)

    def read(index: int) -> Array:
        picture = split.read_whole(index)
        if picture.shape[:2] != (height, width):
            found = f"{picture.shape[1]}×{picture.shape[0]}"
            raise InputError(
                f"picture {split.keys[index]!r} is {found}, the first one {width}×{height}: give samples of one size"
            )
        return picture

    return ReadPictures((len(split), height, width, 3), read)


@dataclass(frozen=True, slots=True)
class NpzPictures:
    """Pictures under `arr_0` of an `.npz`, which are read batch by batch, compressed or not."""

    path: Path
    shape: tuple[int, ...]
    """(N, H, W, 3)."""

    @classmethod
    def open(cls, path: Path) -> "NpzPictures":
        """Read the shape.

        Raises:
            InputError: the array is missing, or is not uint8 [N, H, W, 3].
        """
        with _array_file(path) as (_, shape):
            return cls(path, shape)

    def batches(self) -> Iterator[Array]:
        """Read and yield uint8 [B, H, W, 3].

        Raises:
            InputError: the file is damaged.
        """
        nbytes = int(np.prod(self.shape[1:]))
        with _array_file(self.path) as (file, _):
            for start in range(0, self.shape[0], _BATCH):
                count = min(_BATCH, self.shape[0] - start)
                data = bytearray(file.read(count * nbytes))
                if len(data) < count * nbytes:
                    raise InputError(f"{self.path} ends after {start} of {self.shape[0]} pictures: write it again")
                yield np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])


@contextlib.contextmanager
def _array_file(path: Path) -> Iterator[tuple[BinaryIO, tuple[int, ...]]]:
    """Open the pictures of an `.npz` behind their header, and yield them with their shape."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as opened:
            file = cast(BinaryIO, opened)
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran, dtype = header(file)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or is_fortran or 0 in shape:
                raise InputError(f"{ARRAY} of {path} is {dtype} {list(shape)}: expected uint8 [N, H, W, 3] in C order")
            yield file, shape
    except KeyError as error:
        raise InputError(f"{path} has no {ARRAY}: pictures are uint8 [N, H, W, 3] under this name") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}") from error


@dataclass(frozen=True, slots=True)
class Origin:
    """What identifies files of pictures in a report."""

    path: str
    sha256: str
    sha256_of: str
    """What the sha256 covers: the file, or the keys and sizes of the pictures in a folder."""
    pictures: int


def npz_names(path: Path) -> set[str]:
    """Names of the arrays in an `.npz`.

    Raises:
        InputError: it is not one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz: {error}") from error


def origin_of(path: Path, pictures: int, split: Split | None) -> Origin:
    """Identify a file by its content, and a folder or tar by the keys and sizes of its pictures."""
    if split is None:
        return Origin(str(path), sha256_of(path), "the file", pictures)
    return Origin(str(path), split.source_hash(), "keys and sizes of the pictures", pictures)


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Pictures to judge, and how they came to be."""

    pictures: Pictures
    sampling: Any
    """Sampling settings; None if they are not known."""
    origin: Origin | None = None
    """None if the pictures were drawn for the evaluation."""


def open_samples(path: Path) -> SampleSet:
    """Open pictures to judge: an `.npz`, or a folder or tar of pictures of one size, in the order of their names.

    A folder that samples were written to has them in its folder `samples`. Sampling settings are those in the metadata
    beside the pictures, which samples of other programs do not have.

    Raises:
        InputError: there are no such pictures, or fewer than two.
    """
    pictures: Pictures
    if path.suffix == ".npz":
        split, pictures = None, NpzPictures.open(path)
    else:
        split = open_pictures(path / "samples" if (path / "samples").is_dir() else path)
        pictures = whole_pictures(split)
    count = pictures.shape[0]
    if count < 2:
        raise InputError(f"{path} has {count} picture: a distance requires two or more")
    metadata = path / "metadata.json" if path.is_dir() else path.with_suffix(".json")
    known = parse_object(metadata.read_bytes(), metadata, InputError) if metadata.is_file() else {}
    return SampleSet(pictures, known.get("sampling"), origin_of(path, count, split))
