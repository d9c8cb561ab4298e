"""The encode step: one planned shard from pixels to a Parquet file and its sidecar. A plain function, no Ray.

Axes: N rows (samples times views), h×w the grid of codes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from codeshards.config import TokenizeConfig
from codeshards.format import Failure, PlannedShard, ShardSpec, Sidecar, row_key, sidecar_path, write_shard
from vqgan.datasets import Sample, Split, views_of
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer

T = TypeVar("T")
IMAGE = "image"
"""Name of the image's own tokenizer among the tokenizers; the others are named by their condition."""

_BATCHES_AHEAD = 2
"""Batches being read while one is encoded: enough to hide reading, little enough for memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Everything about one shard that a worker cannot share with the next one."""

    shard: PlannedShard
    """The shard to make."""
    plan_hash: str
    """The plan that it belongs to."""
    samples: Split
    """The shard's samples alone, in planned order: a worker never lists the data folder."""


def fix_arithmetic(threads: int) -> None:
    """Make torch compute the same codes in every worker process, for good.

    Args:
        threads: Torch threads, the same in every worker: a sum over more threads may round differently.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False  # it would choose algorithms by timing them
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # float32 must mean float32, and TF32 is the default of convolutions
    torch.backends.cuda.matmul.allow_tf32 = False


def encode_shard(
    task: ShardTask,
    *,
    tokenizers: Mapping[str, Tokenizer],
    spec: ShardSpec,
    config: TokenizeConfig,
    out: Path,
) -> Sidecar:
    """Encode one shard and put its files in place, the sidecar last.

    Samples are encoded in fixed batches by planned position, so that the codes of a sample depend neither on
    the worker nor on failures in other batches. A sample that cannot be read or encoded costs its own rows; a
    shard of failures alone is a valid shard of no rows.

    Args:
        task: The shard.
        tokenizers: ``image`` and each of the spec's conditions → its tokenizer.
        spec: What the shard holds.
        config: Settings of the job.
        out: The dataset's folder.

    Returns:
        The sidecar as written: rows, failures with reasons, file hashes, seconds spent.
    """
    rows, failures = _Rows({name: [] for name in tokenizers}), list[Failure]()
    durations_s = dict.fromkeys(("decode_wait", "encode", "write"), 0.0)
    size_px = tokenizers[IMAGE].config.resolution
    read = functools.partial(
        _read, samples=task.samples, size_px=size_px, conditions=tuple(spec.conditions), config=config
    )
    batches = read_ahead(read, len(task.samples), config.batch_samples, config.decode_threads)
    while True:
        with _timed(durations_s, "decode_wait"):
            batch = next(batches, None)
        if batch is None:
            break
        failures += [sample for sample in batch if isinstance(sample, Failure)]
        with _timed(durations_s, "encode"):
            good = [sample for sample in batch if not isinstance(sample, Failure)]
            failures += _encode_batch(good, tokenizers, rows)
    path = task.shard.path(out, ".parquet")
    with _timed(durations_s, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        record = write_shard(path, rows.to_table(spec))
    sidecar = Sidecar(
        plan_hash=task.plan_hash,
        split=task.shard.split,
        index=task.shard.index,
        rows=len(rows.keys),
        samples=len(task.samples) - len(failures),
        failures=tuple(failures),
        files={path.name: record},
        durations_s={name: round(seconds, 3) for name, seconds in durations_s.items()},
    )
    sidecar.save(sidecar_path(out, task.shard))
    return sidecar


@dataclass(slots=True)
class _Rows:
    """The rows encoded so far."""

    codes: dict[str, list[npt.NDArray[np.uint16]]]
    """Tokenizer's name → batches of codes [n, h, w]."""
    keys: list[str] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, samples: Sequence[Sequence[Sample]], codes: Mapping[str, npt.NDArray[np.uint16]]) -> None:
        for view, sample in ((view, sample) for sample_views in samples for view, sample in enumerate(sample_views)):
            self.keys.append(row_key(sample.key, view))
            self.views.append(view)
            self.labels.append(-1 if sample.label is None else sample.label)
        for name, codes_Nhw in codes.items():
            self.codes[name].append(codes_Nhw)

    def to_table(self, spec: ShardSpec) -> Any:
        grids = {IMAGE: spec.image, **spec.conditions}
        codes = {
            name: np.concatenate([np.empty((0, grid.height, grid.width), np.uint16), *self.codes[name]])
            for name, grid in grids.items()
        }
        image_codes_Nhw = codes.pop(IMAGE)
        return spec.rows_to_table(self.keys, self.views, self.labels, image_codes_Nhw, conditions=codes)


def read_ahead(read: Callable[[int], T], total: int, step: int, threads: int) -> Iterator[list[T]]:
    """`read(0) … read(total - 1)` in lists of `step`; threads read the next lists while the caller works on one."""
    pending: deque[list[Future[T]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for start in range(0, total, step):
            pending.append([pool.submit(read, index) for index in range(start, min(start + step, total))])
            if len(pending) > _BATCHES_AHEAD:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]


def _read(
    index: int, *, samples: Split, size_px: int, conditions: Sequence[str], config: TokenizeConfig
) -> list[Sample] | Failure:
    """All views of one sample, decoded once."""
    try:
        return samples.read_views(index, size_px, views_of(config.views), conditions=conditions, draft=config.draft)
    except MemoryError:
        raise  # the machine's fault, not the sample's
    except Exception as error:  # noqa: BLE001 - decoders raise anything on broken files, and one must not stop millions
        return Failure(samples.keys[index], str(error) or repr(error))


def _encode_batch(samples: list[list[Sample]], tokenizers: Mapping[str, Tokenizer], rows: _Rows) -> list[Failure]:
    """Encode a batch into ``rows``; returns the samples that a tokenizer refuses, e.g. for a label it lacks."""
    if not samples:
        return []
    try:
        codes = {
            name: tokenizer.encode([view.picture(tokenizer.config.modality) for views in samples for view in views])
            for name, tokenizer in tokenizers.items()
        }
    except InputError as error:
        if len(samples) == 1:
            return [Failure(samples[0][0].key, str(error))]
        # Which one it was is found by encoding each alone: a function of the data only, as bytes must be.
        return [failure for sample in samples for failure in _encode_batch([sample], tokenizers, rows)]
    rows.add(samples, codes)
    return []


@contextlib.contextmanager
def _timed(durations_s: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    durations_s[step] += time.perf_counter() - start
