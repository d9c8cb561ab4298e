"""Batches read directly from the shards, for datasets that fit neither the memory nor a disk cache.

The shards of an epoch are shuffled and divided into windows of whole shards; the rows of a window are permuted. The
rows of batch t are a function of the manifest and (seed, epoch, t), so a run resumes at any step by reading one window.
Every rank reads the whole stream and keeps its part of each batch. The shards are therefore decoded world_size times
(at over 100 M codes/s per core), but all ranks have equally many batches, global batches are the same for any number of
ranks, and a run may resume with another number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codeprior.config import PriorError, SequenceSpec
from codeprior.data import Batch, Batches, CodeData, check_labels, check_shards, draw_views, epoch_permutation
from codeprior.data import sample_starts as starts_of
from codeshards.format import ShardDataset
from runkit.codes import Codes

_WINDOW = 2  # separates the permutation of a window from those of the epoch and the views


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Shards that are shuffled among themselves."""

    number: int
    """Number of the window in its epoch."""
    shards: tuple[int, ...]
    """Numbers of the shards."""
    start: int
    """Rows of the epoch before this window."""
    rows: int
    """Rows of the window: those of its shards, or one per sample."""


class StreamBatches(Batches):
    """Batches that are read from the shards as they are needed.

    Args:
        dataset: Finished shards.
        split: The split.
        sequence: The meaning of the sequences.
        shuffle_rows: Smallest number of rows of a window. The memory holds two windows, one of which is read ahead, and
            three while a batch is taken from two.
        views: Draw one view of each sample per epoch.
        options: As for :class:`codeprior.data.Batches`.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        split: str,
        sequence: SequenceSpec,
        *,
        shuffle_rows: int,
        views: bool = False,
        **options: Any,
    ) -> None:
        check_shards(dataset, sequence)
        self.dataset, self.split, self.sequence = dataset, split, sequence
        self.shuffle_rows, self.views = shuffle_rows, views
        self._shard_rows = [shard.rows for shard in dataset.shards(split)]
        if views:
            self._shard_rows = [self._samples_in(shard) for shard in range(len(self._shard_rows))]
        super().__init__(sum(self._shard_rows), f"{dataset.fingerprint}/{split}", **options)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._loading: dict[tuple[int, int], Future[CodeData]] = {}
        self._epoch_windows: tuple[int, list[Window]] | None = None

    def take(self, epoch: int, first: int, end: int) -> Batch:
        """Return rows first … end - 1 of an epoch."""
        windows = [w for w in self.windows(epoch) if w.start < end and w.start + w.rows > first]
        needed = [(epoch, window.number) for window in windows]
        following = self._following(epoch, windows[-1].number)
        # Earlier windows are released before the next one is read.
        self._loading = {key: data for key, data in self._loading.items() if key in (*needed, following)}
        parts = [
            self._requested(epoch, w).result().take(slice(max(first - w.start, 0), min(end - w.start, w.rows)))
            for w in windows
        ]
        batch = parts[0] if len(parts) == 1 else Batch.join(parts)
        for key in needed[:-1]:
            del self._loading[key]
        self._requested(following[0], self.windows(following[0])[following[1]])
        return batch

    def codes(self) -> Iterator[Codes]:
        """Yield the image codes of this rank's shards, in pieces."""
        mine = range(self.rank, len(self._shard_rows), self.world_size)
        for batch in self.dataset.batches(self.split, self.sequence.columns, shards=mine):
            yield from batch.values()

    def windows(self, epoch: int) -> list[Window]:
        """Return the windows of an epoch, in order."""
        if self._epoch_windows is not None and self._epoch_windows[0] == epoch:
            return self._epoch_windows[1]
        windows: list[Window] = []
        shards: list[int] = []
        start = rows = 0
        for shard in epoch_permutation(len(self._shard_rows), self.seed, epoch).tolist():
            shards.append(shard)
            rows += self._shard_rows[shard]
            if rows >= self.shuffle_rows:
                windows.append(Window(number=len(windows), shards=tuple(shards), start=start, rows=rows))
                start, rows, shards = start + rows, 0, []
        if rows:
            windows.append(Window(number=len(windows), shards=tuple(shards), start=start, rows=rows))
        self._epoch_windows = (epoch, windows)
        return windows

    def state_dict(self) -> dict[str, Any]:
        """Return all that determines the next batch, as plain values."""
        return {**super().state_dict(), "shuffle_rows": self.shuffle_rows, "views": self.views}

    def _following(self, epoch: int, number: int) -> tuple[int, int]:
        return (epoch, number + 1) if number + 1 < len(self.windows(epoch)) else (epoch + 1, 0)

    def _requested(self, epoch: int, window: Window) -> Future[CodeData]:
        """Return the future of a window's shuffled rows, which another thread reads."""
        key = (epoch, window.number)
        if key not in self._loading:
            self._loading[key] = self._reader.submit(self._read, epoch, window)
        return self._loading[key]

    def _read(self, epoch: int, window: Window) -> CodeData:
        parts = self.sequence.conditions
        names = {part.name: part.column for part in parts}
        columns = [*self.sequence.columns, *names.values()]
        rows = epoch_permutation(window.rows, self.seed, epoch, window.number, _WINDOW)
        if self.views:
            views = np.concatenate([self._views_of(shard) for shard in window.shards])
            rows = draw_views(starts_of(views), self.seed, epoch, window.number)[rows]
        # Each row is written to its place as it is read, so that the memory holds the window only once.
        place = np.full(sum(self.dataset.shards(self.split)[shard].rows for shard in window.shards), -1)
        place[rows] = np.arange(len(rows))
        found: dict[str, NDArray[Any]] = {}
        start = 0
        for batch in itertools.chain.from_iterable(
            self.dataset.batches(self.split, columns, shards=[shard]) for shard in window.shards
        ):
            there = place[start : (start := start + len(batch[columns[0]]))]
            wanted = there >= 0
            for column in columns:
                if column not in found:
                    found[column] = np.empty((len(rows), *batch[column].shape[1:]), batch[column].dtype)
                found[column][there[wanted]] = batch[column][wanted]
        if "class" in names:
            found["label"] = found["label"][:, None]
            check_labels(found["label"], self.split, parts[0].vocabulary)
        return CodeData(
            sequence=self.sequence,
            grids_NT=tuple(found[column] for column in self.sequence.columns),
            conditions_NC=tuple(found[column] for column in names.values()),
            identity=self.identity,
        )

    def _views_of(self, shard: int) -> NDArray[Any]:
        return np.concatenate([batch["view"] for batch in self.dataset.batches(self.split, ["view"], shards=[shard])])

    def _samples_in(self, shard: int) -> int:
        views = self._views_of(shard)
        if len(views) == 0 or views[0] != 0:
            raise PriorError(f"views = 'one': shard {shard} of {self.split!r} does not start with a view 0")
        return int((views == 0).sum())
