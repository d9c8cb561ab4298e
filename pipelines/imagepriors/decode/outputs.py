"""Where many samples are written: an .npz as guided-diffusion makes it, a WebDataset tar, or a folder of PNG files.

Parts of the samples are made apart from one another, each with a file of its pictures. An output says what such a file
holds, and joins them. None holds all pictures in memory.

Axes: N samples, H × W pixels.
"""

import io
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeshards.format import ShardError
from codeshards.format.files import atomic_write
from codeshards.format.plan import differences
from codeshards.format.tar import add_member
from imagepriors.reports.figures import Pixels, picture_grid, png_bytes
from runkit.folders import check_ours, publish
from runkit.jsonfiles import parse_object
from vqgan.data.pictures import open_picture

COMMAND = "sample"
FEW = 1000
"""Number of samples that a folder gets at once, from memory, each listed in the metadata."""
_BLOCK_BYTES = 1 << 24
_GRID_COLUMNS, _GRID_ROWS = 10, 10
_SUFFIXES = {"metadata": ".json", "codes": ".codes.npz", "grid": ".png"}
"""Suffix of each small file beside a file of pictures, in the sequence in which they are written."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every member of an .npz, as numpy has it."""

_IN_PARTS = "part_samples"
"""Key of the metadata of samples that were drawn in parts."""

Labels = npt.NDArray[np.int64]


class Output(ABC):
    """The files of a set of samples: pictures, codes, a grid of the first ones, and metadata."""

    part_suffix: ClassVar[str]
    """Suffix of a part's file of pictures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = path.with_name(f"{path.name}.parts")
        """Folder of the parts while they are made."""

    @property
    @abstractmethod
    def metadata_path(self) -> Path:
        """JSON file that says how the samples came to be."""

    @property
    @abstractmethod
    def grid_path(self) -> Path:
        """PNG of the first samples."""

    @abstractmethod
    def encode(self, pictures_NHW3: Pixels, first: int, labels_N: Labels | None) -> bytes:
        """Return the next bytes of a part's file: pictures `first` … of the whole set with their classes."""

    @abstractmethod
    def first_pictures(self, part: Path, n: int, side: int) -> Pixels:
        """Return the first `n` pictures of a part's file, or all if it has fewer."""

    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the pictures are there, once the metadata are."""

    @abstractmethod
    def check_free(self) -> None:
        """Refuse to begin where files of others are in the way."""

    @abstractmethod
    def write(self, parts: Sequence[Path], labels_N: Labels | None, side: int, others: Mapping[str, bytes]) -> None:
        """Join the parts. The last file that is written completes the set.

        Args:
            parts: Files of pictures, in order.
            labels_N: Class of each sample, None where there are none.
            side: Height and width of a picture.
            others: The small files by kind: "codes", "grid" and "metadata".
        """

    def is_finished(self, metadata: Mapping[str, Any]) -> bool:
        """Whether these samples are there already.

        Raises:
            ShardError: Other samples are there.
        """
        if not self.metadata_path.exists():
            self.check_free()
            return False
        found = parse_object(self.metadata_path.read_bytes(), self.metadata_path, ShardError)
        if _IN_PARTS not in found:  # metadata of a few samples, which are replaced
            self.check_free()
            return False
        if {**found, "prior": ""} != {**metadata, "prior": ""}:  # its folder may have moved
            differing = "\n".join(f"  {line}" for line in differences(found, dict(metadata)))
            raise ShardError(
                f"{self.path} holds other samples, as {self.metadata_path} says:\n{differing}\n"
                "Choose another output, or remove both"
            )
        return self.is_complete()

    def grid(self, part: Path, side: int, classes: int) -> bytes:
        """Return a PNG of the first samples; those of a class are in a column where there are few classes."""
        columns = classes if 1 < classes <= 16 else _GRID_COLUMNS
        pictures = self.first_pictures(part, columns * _GRID_ROWS, side)
        return png_bytes(picture_grid(pictures, columns, scale=max(1, round(96 / side))))


class _OneFile(Output):
    """Pictures in one file, beside which are NAME.codes.npz, NAME.png and NAME.json. No file is ever replaced."""

    @property
    def metadata_path(self) -> Path:
        return self._beside("metadata")

    @property
    def grid_path(self) -> Path:
        return self._beside("grid")

    def is_complete(self) -> bool:
        return self.path.exists()

    def check_free(self) -> None:
        for path in (self.path, *map(self._beside, _SUFFIXES)):
            if path.exists():
                raise ShardError(f"{path} is there, and is not replaced: choose another output, or move it away")

    def _beside(self, kind: str) -> Path:
        return self.path.with_suffix(_SUFFIXES[kind])

    def write(self, parts: Sequence[Path], labels_N: Labels | None, side: int, others: Mapping[str, bytes]) -> None:
        for kind in _SUFFIXES:
            with atomic_write(self._beside(kind)) as file:
                file.write(others[kind])
        with atomic_write(self.path) as file:
            self._join(file, parts, labels_N, side)

    @abstractmethod
    def _join(self, file: BinaryIO, parts: Sequence[Path], labels_N: Labels | None, side: int) -> None:
        """Write the whole file."""


class NpzOutput(_OneFile):
    """The .npz that guided-diffusion's evaluator reads: arr_0 uint8 [N, H, W, 3], and arr_1 int64 [N] with classes."""

    part_suffix = ".pixels"

    def encode(self, pictures_NHW3: Pixels, first: int, labels_N: Labels | None) -> bytes:
        """Return the bytes of the pictures."""
        return pictures_NHW3.tobytes()

    def first_pictures(self, part: Path, n: int, side: int) -> Pixels:
        """Return the first pictures."""
        with part.open("rb") as file:
            content = file.read(n * side * side * 3)
        return np.frombuffer(content, np.uint8).reshape(-1, side, side, 3)

    def _join(self, file: BinaryIO, parts: Sequence[Path], labels_N: Labels | None, side: int) -> None:
        n = sum(part.stat().st_size for part in parts) // (side * side * 3)
        with zipfile.ZipFile(file, "w") as archive:
            _add_array(archive, "arr_0", "|u1", (n, side, side, 3), _blocks(parts))
            if labels_N is not None:
                _add_array(archive, "arr_1", "<i8", labels_N.shape, [labels_N.astype("<i8").tobytes()])


class _PngOutput(Output):
    """Parts are tar files of PNG files, as WebDataset has them, without the two blocks that end a tar file."""

    part_suffix = ".tar"

    def encode(self, pictures_NHW3: Pixels, first: int, labels_N: Labels | None) -> bytes:
        out = io.BytesIO()
        for index, picture in enumerate(pictures_NHW3):
            add_member(out, f"{first + index:06d}.png", png_bytes(Image.fromarray(picture)))
            if labels_N is not None:
                add_member(out, f"{first + index:06d}.cls", str(labels_N[index]).encode())
        out.write(bytes(-out.tell() % tarfile.BLOCKSIZE))
        return out.getvalue()

    def first_pictures(self, part: Path, n: int, side: int) -> Pixels:
        pictures = _Members([part])
        names = sorted(pictures)[:n]
        return np.stack([np.asarray(open_picture(io.BytesIO(pictures[name]))) for name in names])


class TarOutput(_PngOutput, _OneFile):
    """A WebDataset tar: KEY.png, and KEY.cls with the number of the class. Equal samples give equal bytes."""

    def _join(self, file: BinaryIO, parts: Sequence[Path], labels_N: Labels | None, side: int) -> None:
        for block in _blocks(parts):
            file.write(block)
        file.write(bytes(2 * tarfile.BLOCKSIZE))


class FolderOutput(_PngOutput):
    """A folder with samples/NNNNNN.png, codes.npz, grid.png and metadata.json, as for a few samples."""

    @property
    def metadata_path(self) -> Path:
        """metadata.json in the folder."""
        return self.path / "metadata.json"

    @property
    def grid_path(self) -> Path:
        """grid.png in the folder."""
        return self.path / "grid.png"

    def is_complete(self) -> bool:
        """True: the metadata are written last."""
        return True

    def check_free(self) -> None:
        """Refuse files that this command has not made."""
        record = self.path / f".{COMMAND}.json"
        check_ours(self.path, COMMAND, ["grid.png", "codes.npz", "metadata.json"], record.exists)

    def write(self, parts: Sequence[Path], labels_N: Labels | None, side: int, others: Mapping[str, bytes]) -> None:
        """Replace the samples that are in the folder."""
        small = {"codes.npz": others["codes"], "grid.png": others["grid"], "metadata.json": others["metadata"]}
        publish(self.path, _Members(parts, "samples/", small), COMMAND, last="metadata.json")


_FILES: dict[str, type[Output]] = {".npz": NpzOutput, ".tar": TarOutput}


def open_output(path: Path) -> Output:
    """Return the output that a path names by its suffix: .npz, .tar, else a folder."""
    return _FILES.get(path.suffix, FolderOutput)(path)


def check_few(folder: Path) -> None:
    """Refuse a folder of samples that were drawn in parts, which took long: a few samples do not replace them.

    Raises:
        ShardError: It is one.
    """
    path = folder / "metadata.json"
    found = parse_object(path.read_bytes(), path, ShardError) if path.is_file() else {}
    if _IN_PARTS in found:
        raise ShardError(
            f"{folder} holds {found.get('n')} samples that were drawn in parts, and a few do not replace them: choose "
            "another folder, or delete it first"
        )


def is_large(path: Path, n: int, *, whole: bool) -> bool:
    """Whether samples are written in parts: those in a file, and more than :data:`FEW` unless they must be whole."""
    return path.suffix in _FILES or (n > FEW and not whole)


class _Members(Mapping[str, bytes]):
    """The PNG files in some tar files, which are read when they are asked for, and small files beside them."""

    def __init__(self, parts: Sequence[Path], folder: str = "", small: Mapping[str, bytes] | None = None) -> None:
        self._small = dict(small or {})
        self._places: dict[str, tuple[Path, int, int]] = {}
        for part in parts:
            with tarfile.open(part, "r:") as tar:
                for member in tar:
                    if member.name.endswith(".png"):
                        self._places[folder + member.name] = (part, member.offset_data, member.size)

    def __len__(self) -> int:
        return len(self._places) + len(self._small)

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from self._small

    def __getitem__(self, name: str) -> bytes:
        if name in self._small:
            return self._small[name]
        part, offset, size = self._places[name]
        with part.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _add_array(
    archive: zipfile.ZipFile, name: str, descr: str, shape: tuple[int, ...], content: Iterator[bytes] | Sequence[bytes]
) -> None:
    """Write an array into an .npz in a stream, with the bytes that numpy would write."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": shape})
        for block in content:
            member.write(block)


def _blocks(parts: Sequence[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
