"""The encode step: makes the data files and the sidecar of one planned shard from pixels. Plain functions, no Ray.

Axes: N rows (samples times views), h×w the grid of codes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from codeshards.config import TokenizeConfig
from codeshards.format.column import ColumnSpec
from codeshards.format.manifest import Failure, Sidecar, sidecar_path
from codeshards.format.plan import Plan, PlannedShard
from codeshards.format.schema import ShardSpec, row_key
from codeshards.format.shardfile import write_column, write_shard
from runkit.places import Where, has_store_error
from runkit.retries import is_outage
from vqgan.config import ModelConfig
from vqgan.data import ColumnType, Sample, Split, views_of
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer

T = TypeVar("T")
IMAGE = "image"
"""Name of the image tokenizer among the tokenizers; the others are named by their condition."""

_BATCHES_AHEAD = 2
"""Batches read while one is encoded: enough to hide the time of reading, few enough for memory."""
_PARTS = 16
"""Parts of a batch that threads take, or one per thread where there are more: a part per sample costs Python more time,
in which no other thread runs it."""

Codes = dict[str, npt.NDArray[Any]]
"""Name of the tokenizer, or scale_S → codes [n, h, w]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """The input of a worker for one shard."""

    shard: PlannedShard
    """The shard to make."""
    plan_hash: str
    """Hash of its plan."""
    samples: Split
    """The samples of this shard in planned order: a worker never lists the data folder."""
    left_out: frozenset[str] = frozenset()
    """Keys of samples that are not encoded, although they keep their place in the batches."""


def task_maker(plan: Plan, splits: Mapping[str, Split]) -> Callable[[PlannedShard], ShardTask]:
    """A function that makes the task of a shard of this plan."""
    plan_hash = plan.hash  # takes time to compute

    def task_of(shard: PlannedShard) -> ShardTask:
        samples = splits[shard.split].subset(plan.sample_indices(shard))
        return ShardTask(shard=shard, plan_hash=plan_hash, samples=samples)

    return task_of


def fix_arithmetic(threads: int) -> None:
    """Make torch compute the same codes in every worker process, until the process ends.

    Args:
        threads: Torch threads, the same in every worker: a sum over more threads may round differently.
    """
    _set_torch_threads(threads)
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by their measured time
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # convolutions use TF32 by default
    torch.backends.cuda.matmul.allow_tf32 = False


def _set_torch_threads(count: int) -> None:
    """Give this thread, and those that have not yet computed, this number of torch threads."""
    torch.get_num_threads()  # else the first operation of this thread replaces it by the latest number of any thread
    torch.set_num_threads(count)


def _take_one_torch_thread(others: int) -> None:
    """Give this thread one torch thread, and those that have not yet computed `others`, as before."""
    _set_torch_threads(1)
    thread = threading.Thread(target=_set_torch_threads, args=(others,))
    thread.start()
    thread.join()


class WorkerResources:
    """What the shards in one process share: while one is encoded, the next is read and the previous is written."""

    def __init__(self, decode_threads: int) -> None:
        # Else each thread that resizes by torch has further threads, which only wait.
        others = (torch.get_num_threads(),)
        self.decode_pool = ThreadPoolExecutor(decode_threads, "decode", _take_one_torch_thread, others)
        self.encode_lock = threading.Lock()
        """Held by the shard that is encoded."""
        self.samples_done = 0
        """Number of samples encoded or failed since the process started."""


def encode_shard(
    task: ShardTask,
    *,
    tokenizers: Mapping[str, Tokenizer],
    spec: ShardSpec,
    config: TokenizeConfig,
    out: Where,
    resources: WorkerResources | None = None,
    column: ColumnSpec | None = None,
) -> Sidecar:
    """Encode one shard and write its files, the sidecar last.

    Samples are encoded in fixed batches by planned position, so that the codes of a sample depend neither on
    the worker nor on failures in other batches. A sample that cannot be read or encoded costs its own rows; a
    shard in which all samples failed is a valid shard without rows.

    Args:
        task: The shard.
        tokenizers: ``image`` and each of the spec's conditions → its tokenizer.
        spec: The columns of the shard.
        config: Settings of the job.
        out: Folder of the dataset, or of the column.
        resources: Shared by the threads that call this function for several shards at once.
        column: Make a side-car shard of this condition alone; `tokenizers` then has no ``image``.

    Returns:
        The sidecar as written: rows, failures with reasons, file hashes, seconds per step.
    """
    rows = encode_rows(task, tokenizers, spec, config, resources or WorkerResources(config.decode_threads or 2))
    task.samples.check_unchanged()
    with rows.timed("write"):
        # Where a shard is made again, the old sidecar must not describe new bytes.
        sidecar_path(out, task.shard).delete()
        if column:
            files = write_column(out, task.shard, rows.to_column(column))
        else:
            files = write_shard(out, task.shard, rows.to_table(spec), config.formats)
    sidecar = Sidecar(
        plan_hash=task.plan_hash,
        split=task.shard.split,
        index=task.shard.index,
        rows=len(rows.keys),
        samples=len(task.samples) - len(rows.failures),
        failures=tuple(failure for failure in rows.failures if failure.key not in task.left_out),
        files=files,
        durations_s={name: round(seconds, 3) for name, seconds in rows.durations_s.items()},
    )
    sidecar.save(sidecar_path(out, task.shard))
    return sidecar


def encode_rows(
    task: ShardTask,
    tokenizers: Mapping[str, Tokenizer],
    spec: ShardSpec,
    config: TokenizeConfig,
    resources: WorkerResources,
) -> Rows:
    """Read and encode a shard's batches in order, one shard of the process at a time; arguments as `encode_shard`.

    On a GPU the next batch is queued before the codes of the previous one are fetched.
    """
    rows = Rows({name: [] for name in _code_grids(spec)})
    read = functools.partial(
        _read_views,
        task=task,
        model=next(iter(tokenizers.values())).config,  # all have one resolution and geometry
        conditions=tuple(spec.conditions),
        columns=spec.carried,
        config=config,
        maps_only=IMAGE not in tokenizers,
    )
    batches = read_ahead(read, len(task.samples), config.batch_samples, resources.decode_pool)
    with rows.timed("decode_wait"):
        batch = next(batches, None)  # read while another shard is encoded
    with rows.timed("turn_wait"):
        resources.encode_lock.acquire()
    try:
        fix_arithmetic(config.threads)  # OpenMP keeps this number per thread
        pending: list[_PendingCodes] = []
        while batch is not None:
            rows.failures += [sample for sample in batch if isinstance(sample, Failure)]
            with rows.timed("encode"):
                samples = [sample for sample in batch if not isinstance(sample, Failure)]
                next_pending, failures = _start_encoding(samples, tokenizers, spec, config)
                rows.add(pending)
            pending = next_pending
            rows.failures += failures
            resources.samples_done += len(batch)
            with rows.timed("decode_wait"):
                batch = next(batches, None)
        with rows.timed("encode"):
            rows.add(pending)
    finally:
        resources.encode_lock.release()
    return rows


def _code_grids(spec: ShardSpec) -> dict[str, tuple[int, int]]:
    """Name in ``Codes`` → height and width of its grid."""
    grids = {IMAGE: spec.image, **spec.conditions}
    scales = {f"scale_{side}": (side, side) for side in spec.scales}
    return {name: (grid.height, grid.width) for name, grid in grids.items()} | scales


class _PendingCodes(NamedTuple):
    """Samples whose codes are being computed."""

    samples: list[list[Sample]]
    codes: Callable[[], Codes]


@dataclass(slots=True)
class Rows:
    """The rows of a shard so far, its failures, and the seconds per step."""

    codes: dict[str, list[npt.NDArray[Any]]]
    """Name as in ``Codes`` → codes of each batch."""
    keys: list[str] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    carried: dict[str, list[Any]] = field(default_factory=dict)
    """Carried column → value of each row."""
    failures: list[Failure] = field(default_factory=list)
    durations_s: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode_wait", "turn_wait", "encode", "write"), 0.0)
    )

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of the block to that of a step."""
        start = time.perf_counter()
        yield
        self.durations_s[step] += time.perf_counter() - start

    def add(self, pending: Sequence[_PendingCodes]) -> None:
        """Wait for the codes of these samples and append them, one row per view."""
        for samples, codes in pending:
            views = [(view, sample) for sample_views in samples for view, sample in enumerate(sample_views)]
            for view, sample in views:
                self.keys.append(row_key(sample.key, view))
                self.views.append(view)
                self.labels.append(-1 if sample.label is None else sample.label)
                for name, value in sample.columns.items():
                    self.carried.setdefault(name, []).append(value)
            for name, codes_Nhw in codes().items():
                self.codes[name].append(codes_Nhw[: len(views)])  # without the padding of the batch

    def to_column(self, column: ColumnSpec) -> Any:
        """The codes of a condition as the table of a side-car shard."""
        codes = self.codes[column.name.removeprefix("cond_")]
        codes_NL = np.concatenate(
            [part.reshape(len(part), -1) for part in codes or [np.empty((0, column.grid.length))]]
        )
        return column.to_table(self.keys, self.views, codes_NL)

    def to_table(self, spec: ShardSpec) -> Any:
        """The rows as a shard's table."""
        codes = {
            name: np.concatenate([np.empty((0, *grid), np.uint16), *self.codes[name]])
            for name, grid in _code_grids(spec).items()
        }
        image_codes_Nhw = codes.pop(IMAGE)
        scales = {side: codes.pop(f"scale_{side}") for side in spec.scales}
        carried = {name: self.carried.get(name, []) for name in spec.carried}
        return spec.rows_to_table(self.keys, self.views, self.labels, image_codes_Nhw, scales, codes, carried)


def read_ahead(read: Callable[[int], T], total: int, step: int, pool: ThreadPoolExecutor) -> Iterator[list[T]]:
    """`read(0) … read(total - 1)` in lists of `step`; the pool reads further lists while the caller processes one."""
    pending: deque[list[Future[list[T]]]] = deque()
    some = -(-step // max(_PARTS, pool._max_workers))

    def read_all(places: range) -> list[T]:
        return [read(place) for place in places]

    def first_list() -> list[T]:
        return [item for future in pending.popleft() for item in future.result()]

    try:
        for start in range(0, total, step):
            places = range(start, min(start + step, total))
            pending.append([pool.submit(read_all, places[i : i + some]) for i in range(0, len(places), some)])
            if len(pending) > _BATCHES_AHEAD:
                yield first_list()
        while pending:
            yield first_list()
    finally:
        for future in (future for batch in pending for future in batch):
            future.cancel()


def _read_views(
    index: int,
    *,
    task: ShardTask,
    model: ModelConfig,
    conditions: Sequence[str],
    columns: Mapping[str, ColumnType],
    config: TokenizeConfig,
    maps_only: bool,
) -> list[Sample] | Failure:
    """All views of one sample at the resolution of the model, decoded once."""
    samples, key = task.samples, task.samples.keys[index]
    if key in task.left_out:
        return Failure(key, "left out")
    return read_or_failure(
        key,
        lambda: samples.read_views(
            index,
            model.resolution,
            views_of(config.views),
            conditions=conditions,
            columns=columns,
            geometry=model.geometry,
            draft=config.draft,
            resampler=config.resampler,
            maps_only=maps_only,
        ),
    )


def read_or_failure(key: str, read: Callable[[], T]) -> T | Failure:
    """The result of `read`, or a failure with the reason why the sample `key` cannot be read.

    Where the storage is unavailable, all samples of a shard fail alike: then the error is raised, so that the shard is
    made later. The error of a remote file that was changed or is refused is raised, too.
    """
    try:
        return read()
    except MemoryError as error:  # caused by the machine, not by the sample
        raise MemoryError(f"sample {key}: {str(error) or 'out of memory'}") from error
    except Exception as error:  # decoders raise any exception on broken files, and one file must not stop the job
        if is_outage(error) or has_store_error(error):
            raise
        return Failure(key, str(error) or repr(error))


def _start_encoding(
    samples: list[list[Sample]], tokenizers: Mapping[str, Tokenizer], spec: ShardSpec, config: TokenizeConfig
) -> tuple[list[_PendingCodes], list[Failure]]:
    """Start encoding a batch; returns the pending codes and the samples that a tokenizer refuses."""
    if not samples:
        return [], []
    views = [view for sample_views in samples for view in sample_views]
    if config.compile:  # compiled for one batch size: the last batch is padded
        views += [views[-1]] * (config.batch_samples * config.views - len(views))
    try:
        started = {
            name: tokenizer.encode_async(
                [view.picture(tokenizer.config.modality) for view in views],
                spec.scales if name == IMAGE else (),
                config.scales_from,
            )
            for name, tokenizer in tokenizers.items()
        }
    except InputError as error:
        if len(samples) == 1:
            return [], [Failure(samples[0][0].key, str(error))]
        # Encoding each sample alone finds the refused ones. It depends on the data only, as the bytes must.
        each = [_start_encoding([sample], tokenizers, spec, config) for sample in samples]
        return [one for pending, _ in each for one in pending], [bad for _, failures in each for bad in failures]

    def codes() -> Codes:
        found: Codes = {}
        for name, finish in started.items():
            found[name], *scales = finish()
            found |= {f"scale_{side}": scale for side, scale in zip(spec.scales, scales, strict=False)}
        return found

    return [_PendingCodes(samples, codes)], []
