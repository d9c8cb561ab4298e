"""Reader `cifar10`: the official Python and binary versions, packed or unpacked, or class folders."""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqgan.data.archives import read_archive
from vqgan.data.folder import folder
from vqgan.data.samples import Item
from vqgan.data.sources import File, Memory
from vqgan.data.split import Split
from vqgan.errors import InputError

_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}
_FORMATS = {"cifar-10-batches-py": "", "cifar-10-batches-bin": ".bin"}
_ARCHIVES = {"cifar-10-python.tar.gz": "cifar-10-batches-py", "cifar-10-binary.tar.gz": "cifar-10-batches-bin"}
_ROW = 3 * 32 * 32


def cifar10(root: Path) -> dict[str, Split]:
    """Read `cifar-10-batches-py/`, `cifar-10-batches-bin/`, the .tar.gz of either, or what the reader `folder` reads.

    All images are kept in memory (184 MB). Nothing in the pickles is executed.

    Raises:
        InputError: a batch is missing or broken.
    """
    for name, suffix in _FORMATS.items():
        for place in (root / name, root):
            if (place / f"test_batch{suffix}").is_file():
                return _read(lambda file, place=place: File(str(place / file)).open().read(), suffix)  # type: ignore[misc]
    for name, inside in _ARCHIVES.items():
        if (root / name).is_file():
            content = read_archive(root / name, lambda member, inside=inside: member.startswith(inside))  # type: ignore[misc]
            return _read({Path(member).name: data for member, data in content.items()}.__getitem__, _FORMATS[inside])
    return folder(root)


def _read(load: Callable[[str], bytes], suffix: str) -> dict[str, Split]:
    try:
        if suffix:
            names = load("batches.meta.txt").decode().split()
        else:
            names = [name.decode() for name in _unpickle(load("batches.meta"))[b"label_names"]]
        return {split: Split(_items(files, load, suffix), names) for split, files in _BATCHES.items()}
    except Exception as error:  # unpickling raises many things
        raise InputError(f"CIFAR-10 cannot be read, a batch is missing or broken: {error!r}") from error


def _items(files: list[str], load: Callable[[str], bytes], suffix: str) -> Iterator[Item]:
    for file in files:
        data = load(file + suffix)
        rows, labels = _binary(data) if suffix else _python(data)
        pictures = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            key = f"{file}/{index:05d}"
            yield Item(key=key, image=Memory(key, b"P6 32 32 255\n" + picture.tobytes()), label=int(label))


def _binary(data: bytes) -> tuple[npt.NDArray[np.uint8], Any]:
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _ROW)
    return records[:, 1:], records[:, 0]


def _python(data: bytes) -> tuple[npt.NDArray[np.uint8], Any]:
    batch = _unpickle(data)
    rows = np.asarray(batch[b"data"])
    if rows.dtype != np.uint8 or rows.shape[1:] != (_ROW,):
        raise ValueError(f"data is {rows.dtype} {rows.shape}, expected uint8 [N, {_ROW}]")
    return rows, batch[b"labels"]


class _Unpickler(pickle._Unpickler):
    """An unpickler of containers, numbers, strings and numpy arrays that refuses every other class and function.

    It is the one in Python, because the one in C allocates a table as large as the highest object number in a pickle.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return the few functions and classes that an array requires."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in old protocols
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not require")


def _empty_array(kind: type[npt.NDArray[Any]], shape: tuple[int, ...], typecode: bytes) -> npt.NDArray[Any]:
    return np.ndarray(0, np.dtype(typecode.decode() if isinstance(typecode, bytes) else typecode))  # its state follows


def _unpickle(data: bytes) -> Any:
    return _Unpickler(io.BytesIO(data), encoding="bytes").load()
