"""The encode step: one planned shard from pixels to data files and their sidecar. A plain function, no Ray.

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
from codeshards.format import Failure, PlannedShard, ShardSpec, Sidecar, Where, row_key, sidecar_path, write_shard
from runkit.retries import is_outage
from vqgan.config import ModelConfig
from vqgan.data import Sample, Split, views_of
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer

T = TypeVar("T")
IMAGE = "image"
"""Name of the image's own tokenizer among the tokenizers; the others are named by their condition."""

_BATCHES_AHEAD = 2
"""Batches being read while one is encoded: enough to hide reading, little enough for memory."""

Codes = dict[str, npt.NDArray[np.uint16]]
"""Tokenizer's name, or scale_S → codes [n, h, w]."""


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


class Lanes:
    """What the shards in one process share: while one is encoded, the next is read and the last is written."""

    def __init__(self, decode_threads: int) -> None:
        self.decode = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self.encode = threading.Lock()
        """Held by the shard that is encoded."""
        self.samples_done = 0
        """Samples encoded or failed since the process started."""


def encode_shard(
    task: ShardTask,
    *,
    tokenizers: Mapping[str, Tokenizer],
    spec: ShardSpec,
    config: TokenizeConfig,
    out: Where,
    lanes: Lanes | None = None,
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
        lanes: Shared by the threads that call this for several shards at once.

    Returns:
        The sidecar as written: rows, failures with reasons, file hashes, seconds spent.
    """
    lanes = lanes or Lanes(config.decode_threads or 2)
    rows = _Rows({name: [] for name in _code_grids(spec)})
    read = functools.partial(
        _read,
        samples=task.samples,
        model=tokenizers[IMAGE].config,
        conditions=tuple(spec.conditions),
        config=config,
    )
    batches = read_ahead(read, len(task.samples), config.batch_samples, lanes.decode)
    with rows.timed("decode_wait"):
        first = next(batches, None)  # before the turn: read while another shard is encoded
    with rows.timed("turn_wait"):
        lanes.encode.acquire()
    try:
        fix_arithmetic(config.threads)  # OpenMP keeps the number for each thread
        _encode_batches(first, batches, tokenizers, spec, config, lanes, rows)
    finally:
        lanes.encode.release()
    with rows.timed("write"):
        # Where a shard is made again, the old sidecar must not stand beside new bytes.
        sidecar_path(out, task.shard).delete()
        files = write_shard(out, task.shard, rows.to_table(spec), config.formats)
    sidecar = Sidecar(
        plan_hash=task.plan_hash,
        split=task.shard.split,
        index=task.shard.index,
        rows=len(rows.keys),
        samples=len(task.samples) - len(rows.failures),
        failures=tuple(rows.failures),
        files=files,
        durations_s={name: round(seconds, 3) for name, seconds in rows.durations_s.items()},
    )
    sidecar.save(sidecar_path(out, task.shard))
    return sidecar


def _encode_batches(
    batch: _Batch | None,
    others: Iterator[_Batch],
    tokenizers: Mapping[str, Tokenizer],
    spec: ShardSpec,
    config: TokenizeConfig,
    lanes: Lanes,
    rows: _Rows,
) -> None:
    """Encode a shard's batches in order; a GPU has the next one queued before the codes of the last are fetched."""
    launched: list[_Launched] = []
    while batch is not None:
        rows.failures += [sample for sample in batch if isinstance(sample, Failure)]
        with rows.timed("encode"):
            good = [sample for sample in batch if not isinstance(sample, Failure)]
            next_launched, refused = _launch(good, tokenizers, spec, config)
            rows.add(launched)
        launched = next_launched
        rows.failures += refused
        lanes.samples_done += len(batch)
        with rows.timed("decode_wait"):
            batch = next(others, None)
    with rows.timed("encode"):
        rows.add(launched)


def _code_grids(spec: ShardSpec) -> dict[str, tuple[int, int]]:
    """Name in ``Codes`` → height and width of its grid."""
    grids = {IMAGE: spec.image, **spec.conditions}
    scales = {f"scale_{side}": (side, side) for side in spec.scales}
    return {name: (grid.height, grid.width) for name, grid in grids.items()} | scales


class _Launched(NamedTuple):
    """Samples whose codes are being computed."""

    samples: list[list[Sample]]
    codes: Callable[[], Codes]


@dataclass(slots=True)
class _Rows:
    """The rows of a shard so far, what failed, and how long what took."""

    codes: dict[str, list[npt.NDArray[np.uint16]]]
    """As ``Codes``, a list of batches each."""
    keys: list[str] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    durations_s: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode_wait", "turn_wait", "encode", "write"), 0.0)
    )

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.durations_s[step] += time.perf_counter() - start

    def add(self, launched: Sequence[_Launched]) -> None:
        """Wait for the codes of these samples and append them, a row for each view."""
        for samples, codes in launched:
            views = [(view, sample) for sample_views in samples for view, sample in enumerate(sample_views)]
            for view, sample in views:
                self.keys.append(row_key(sample.key, view))
                self.views.append(view)
                self.labels.append(-1 if sample.label is None else sample.label)
            for name, codes_Nhw in codes().items():
                self.codes[name].append(codes_Nhw[: len(views)])  # without what filled the batch up

    def to_table(self, spec: ShardSpec) -> Any:
        codes = {
            name: np.concatenate([np.empty((0, *grid), np.uint16), *self.codes[name]])
            for name, grid in _code_grids(spec).items()
        }
        image_codes_Nhw = codes.pop(IMAGE)
        scales = {side: codes.pop(f"scale_{side}") for side in spec.scales}
        return spec.rows_to_table(self.keys, self.views, self.labels, image_codes_Nhw, scales, codes)


_Batch = list[list[Sample] | Failure]


def read_ahead(read: Callable[[int], T], total: int, step: int, pool: ThreadPoolExecutor) -> Iterator[list[T]]:
    """`read(0) … read(total - 1)` in lists of `step`; the pool reads the next lists while the caller works on one."""
    pending: deque[list[Future[T]]] = deque()
    try:
        for start in range(0, total, step):
            pending.append([pool.submit(read, index) for index in range(start, min(start + step, total))])
            if len(pending) > _BATCHES_AHEAD:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
    finally:
        for future in (future for batch in pending for future in batch):
            future.cancel()


def _read(
    index: int, *, samples: Split, model: ModelConfig, conditions: Sequence[str], config: TokenizeConfig
) -> list[Sample] | Failure:
    """All views of one sample as the image's model takes them, decoded once."""
    return attempt(
        samples.keys[index],
        lambda: samples.read_views(
            index,
            model.resolution,
            views_of(config.views),
            conditions=conditions,
            geometry=model.geometry,
            draft=config.draft,
        ),
    )


def attempt(key: str, read: Callable[[], T]) -> T | Failure:
    """What `read` returns, or why the sample `key` cannot be read.

    Where the storage is away, all samples of a shard fail alike: the error is raised, so that the shard is made later.
    """
    try:
        return read()
    except MemoryError as error:  # the machine's fault, not the sample's
        raise MemoryError(f"sample {key}: {str(error) or 'out of memory'}") from error
    except Exception as error:  # decoders raise anything on broken files, and one must not stop millions
        if is_outage(error):
            raise
        return Failure(key, str(error) or repr(error))


def _launch(
    samples: list[list[Sample]], tokenizers: Mapping[str, Tokenizer], spec: ShardSpec, config: TokenizeConfig
) -> tuple[list[_Launched], list[Failure]]:
    """Start encoding a batch; also the samples that a tokenizer refuses, e.g. for a label it lacks."""
    if not samples:
        return [], []
    views = [view for sample_views in samples for view in sample_views]
    if config.compile:  # it compiles for each batch size: the last batch is filled up
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
        # Which one it was is found by encoding each alone: a function of the data only, as bytes must be.
        each = [_launch([sample], tokenizers, spec, config) for sample in samples]
        return [one for launched, _ in each for one in launched], [bad for _, refused in each for bad in refused]

    def codes() -> Codes:
        found: Codes = {}
        for name, finish in started.items():
            found[name], *scales = finish()
            found |= {f"scale_{side}": scale for side, scale in zip(spec.scales, scales, strict=False)}
        return found

    return [_Launched(samples, codes)], []
