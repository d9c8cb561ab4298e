"""Columns of shards, decoded once into flat local files that are memory-mapped.

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
from codeshards.format import ShardDataset, WriteError
from codeshards.format.checked import cache_folder
from codeshards.format.files import atomic_write
from runkit.files import TEMP_MARK, temp_beside
from runkit.progress import tqdm
from runkit.retries import patient

logger = logging.getLogger(__name__)
CACHE_VERSION = 2
"""Part of every cache file's name; it is raised when the content of the files changes."""
_STALE_S = 3600
_CHECKED: set[tuple[str, str, str]] = set()
"""Path, fingerprint and split of the datasets that this process has checked, once for all columns."""
_DIGEST_BYTES = 32
"""Length of the sha256 at the end of a cache file, over all bytes before it; numpy does not read beyond its data."""
_INTACT: set[tuple[str, int, int, int]] = set()
"""Path, inode, size and time of the cache files whose sha256 this process has checked."""


def memory_map(dataset: ShardDataset, split: str, column: str) -> NDArray[Any]:
    """Return one column of a split as a read-only memory map [N, ...].

    The first call decodes the column into one .npy file. Its name contains a hash of all that determines its content,
    so a changed dataset is never read from an old file. Of processes that start together, one decodes and the others
    wait. On a file system without locks, or without locks between machines, several decode. The first complete file is
    kept, because over NFS a file that is replaced is lost to the processes that have mapped it.

    Raises:
        ShardError: The split or column is unknown, the split is empty, a shard is damaged, or the cache cannot be
            written.
    """
    rows = dataset.rows(split)
    if rows == 0:
        raise PriorError(f"split {split!r} of {dataset.path} has no rows")
    content = "\n".join((str(CACHE_VERSION), dataset.fingerprint_of(column), split, column))
    address = hashlib.sha256(content.encode()).hexdigest()[:16]
    path = cache_folder(dataset.path) / f"{split}-{column}-{address}.npy"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                _remove_stale(path.parent)
                if not path.exists():
                    _decode(dataset, split, column, path)
        except (OSError, WriteError) as error:
            raise PriorError(
                f"cannot write the decoded codes to {path.parent} ({error}): "
                "set IMAGEPRIORS_CACHE to a writable folder with enough free space"
            ) from error
    try:
        _check_intact(path)
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:  # an invalid header, or fewer bytes than it announces
        raise PriorError(f"{path} is damaged ({error}): delete the file and try again") from error
    if len(array) != rows:
        raise PriorError(f"{path} holds {len(array)} rows, the dataset {rows}: delete the file and try again")
    return np.asarray(array)  # a plain view, because np.memmap's own indexing is slower


def _check_intact(path: Path) -> None:
    """Compare a cache file with the sha256 at its end, once per process."""
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
            raise ValueError("its content and its sha256 differ")
    _INTACT.add(known)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process dies."""
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


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they decoded.

    They are recognised by age, because NFS and Lustre lock a folder on one machine only: a process that decodes on
    another machine writes all the time.
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
            pass  # written by another machine, with the same bytes
        except OSError:  # a file system without hard links
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


def _write_column(dataset: ShardDataset, split: str, column: str, path: Path) -> None:
    # Every byte is checked here, because the decoded file is used from now on.
    key = (str(dataset.path), dataset.fingerprint, split)
    if key not in _CHECKED:
        dataset.check(split)
        _CHECKED.add(key)
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
                f"{dataset.path}: dataset.json announces {rows} rows in {split!r}, the shards hold {written}; "
                "verify the dataset"
            )
        file.write(total.digest())
