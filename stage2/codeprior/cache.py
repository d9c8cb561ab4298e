"""Columns of shards decoded once into flat files, which are then memory-mapped.

Axes: N rows of a split.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codeprior.config import PriorError
from codeshards.format import ShardDataset, WriteError, atomic_write
from runkit.files import TEMP_MARK, temp_beside
from runkit.progress import tqdm
from runkit.retries import patient

logger = logging.getLogger(__name__)
CACHE_VERSION = 2
"""Part of every cache file's address: raise it when the bytes in the files change meaning."""
_STALE_S = 3600
_CHECKED: set[tuple[str, str, str]] = set()
"""Place and fingerprint of datasets, and splits, whose bytes this process has checked: once for all columns."""
_DIGEST_BYTES = 32
"""Length of the sha256 with which a cache file ends, of all bytes before it; numpy reads no further than its data."""
_INTACT: set[tuple[str, int, int, int]] = set()
"""Path, inode, size and time of cache files whose bytes this process has compared with their sha256."""


def cache_root(dataset: ShardDataset) -> Path:
    """Where decoded columns live: $IMAGEPRIORS_CACHE if set, else `.cache` inside the dataset.

    A memory map needs a local file: of a dataset in an object store they go to ~/.cache/imagepriors.
    """
    if chosen := os.environ.get("IMAGEPRIORS_CACHE"):
        return Path(chosen)
    folder = dataset.path.local
    return folder / ".cache" if folder else Path.home() / ".cache" / "imagepriors"


def memory_map(dataset: ShardDataset, split: str, column: str) -> NDArray[Any]:
    """One column of a split as a read-only array [N, ...] that stays on disk until it is read.

    The first call decodes the column into one .npy file; its name carries a hash of all that decides its
    bytes, so a changed dataset can never be served from an old file. Of processes that start together one
    decodes and the others wait. Where a file system knows no locks, or none between machines, several decode; the first
    complete file stays, for over NFS one that is replaced is lost to those who have mapped it.

    Raises:
        ShardError: the split or column is unknown or the split empty, a shard is damaged, or the cache
            cannot be written.
    """
    rows = dataset.rows(split)
    if rows == 0:
        raise PriorError(f"split {split!r} of {dataset.path} has no rows")
    content = "\n".join((str(CACHE_VERSION), dataset.fingerprint, split, column))
    address = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = cache_root(dataset) / f"{split}-{column}-{address}.npy"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                _remove_half_files(path.parent)
                if not path.exists():
                    _decode(dataset, split, column, path)
        except (OSError, WriteError) as error:
            raise PriorError(
                f"cannot write the decoded codes to {path.parent} ({error}): "
                "set IMAGEPRIORS_CACHE to a writable folder with room"
            ) from error
    try:
        _check_intact(path)
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:  # a header that is none, or fewer bytes than it promises
        raise PriorError(f"{path} is damaged ({error}): delete the file and try again") from error
    if len(array) != rows:
        raise PriorError(f"{path} holds {len(array)} rows, the dataset {rows}: delete the file and try again")
    return np.asarray(array)  # a plain view of the map: np.memmap's own indexing is slower


def _check_intact(path: Path) -> None:
    """Compare a cache file with the sha256 at its end, once in a process."""
    found = path.stat()
    known = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
    if known in _INTACT:
        return
    total, left = hashlib.sha256(), found.st_size - _DIGEST_BYTES
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(left, 1 << 22))):
            total.update(piece)
            left -= len(piece)
        if left or file.read() != total.digest():
            raise ValueError("its content and the sha256 that it carries differ")
    _INTACT.add(known)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when a process dies, so none is ever left behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process to decode codes into %s", folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_half_files(folder: Path) -> None:
    """Remove what starters left that were killed as they decoded.

    By age, since NFS and Lustre lock a folder on one machine only: who decodes now, there too, writes all the time.
    """
    for temp in folder.glob(f".*.npy{TEMP_MARK}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temp.stat().st_mtime > _STALE_S:
                temp.unlink()


@patient
def _decode(dataset: ShardDataset, split: str, column: str, path: Path) -> None:
    own = temp_beside(path)
    try:
        _write_column(dataset, split, column, own)
        try:
            os.link(own, path)
        except FileExistsError:
            pass  # another machine's, with the same bytes
        except OSError:  # a file system without hard links
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


def _write_column(dataset: ShardDataset, split: str, column: str, path: Path) -> None:
    # Every byte, here: what is decoded is read for as long as the file lies there.
    here = (str(dataset.path), dataset.fingerprint, split)
    if here not in _CHECKED:
        dataset.check(split)
        _CHECKED.add(here)
    rows = dataset.rows(split)
    bar = tqdm(total=rows, desc=f"decode {split}/{column}", unit="row", unit_scale=True, disable=None)
    with bar, atomic_write(path) as file:
        written, total = 0, hashlib.sha256()

        def write(content: Any) -> None:
            total.update(content)
            file.write(content)

        for batch in dataset.batches(split, [column]):
            chunk = np.ascontiguousarray(batch[column])
            if written == 0:
                header = {
                    "descr": np.lib.format.dtype_to_descr(chunk.dtype),
                    "fortran_order": False,
                    "shape": (rows, *chunk.shape[1:]),
                }
                start = io.BytesIO()
                np.lib.format.write_array_header_1_0(start, header)
                write(start.getvalue())
            write(chunk.data)
            written += len(chunk)
            bar.update(len(chunk))
        if written != rows:
            raise PriorError(
                f"{dataset.path}: dataset.json promises {rows} rows in {split!r}, the shards hold {written}; "
                "verify the dataset"
            )
        file.write(total.digest())
