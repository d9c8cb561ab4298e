"""The annotate job: depth maps or masks for a dataset's images, on Ray, by the tokenize job's machinery.

A shard of samples is the unit of work. Its sidecar is written after its maps and names each of them, so that a job that
was killed goes on where it was; a map's bytes depend on the plan alone. Plan and sidecars lie in a hidden folder,
`.annotate-depth/` or `.annotate-segmentation/`, which no reader looks into.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor

from codeshards.format import (
    Failure,
    FileRecord,
    Plan,
    PlannedShard,
    Sidecar,
    build_plan,
    open_store,
    remove_stale_temps,
    sidecar_path,
)
from codeshards.job.encode import ShardTask, attempt, fix_arithmetic, read_ahead
from codeshards.job.resume import close_job, open_job
from codeshards.job.scheduler import run_shards
from imagepriors.annotate.maptree import MapTree, encode_map
from imagepriors.annotate.networks import DEFAULT_MODEL, Annotator, find_model, fingerprint
from imagepriors.config import AnnotateConfig, Kind
from runkit.files import append_file, sha256_of
from runkit.folders import held
from runkit.retries import patient
from vqgan.data import Split, open_splits, resolve
from vqgan.data.conditions import read_map
from vqgan.data.files import Memory, Source
from vqgan.errors import InputError
from vqgan.tokenizer import pick_device

_WINDOW = 4
"""Batches of samples that are read together and sorted by input size, so that few batches are short."""


class Annotated(NamedTuple):
    """What a finished job has made."""

    maps: int
    failures: int
    folders: tuple[Path, ...]
    book: Path
    reader: str
    """The dataset name under which images and maps are read together."""
    root: Path
    """The folder to name with it."""


def annotate(
    config: AnnotateConfig,
    *,
    kind: Kind,
    dataset: str,
    data: Path,
    out: Path | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Annotated:
    """Give every image of a dataset a depth map or mask of its own size, or finish a job that was interrupted.

    Without `out` the maps lie beside the images: those of `train/` in `train_depth/` or `train_segmentation/`, under
    the images' names. With `out`, which datasets in archives and tables need, they lie there by key, with copies of
    images that are no files, and with a list of all this (images.parquet) that the reader `folder` reads.

    Args:
        config: Model and settings.
        kind: What to make.
        dataset: Name of the dataset's reader.
        data: The dataset's folder; every node of a cluster must see it, and the model, under the same path.
        out: Folder for the maps, None: beside the images.
        overwrite: Delete the maps that this command made there first; refused where there are any others.
        retry_failed: Make shards with failures again.

    Raises:
        InputError: The dataset or the model cannot be opened, or there are maps that this command has not made.
        ShardError: Maps of another plan are there, a shard's workers kept dying, or more samples failed than
            `config.max_failure_rate` allows.
    """
    data, out = data.resolve(), out.resolve() if out else None
    splits = open_splits(dataset, data)
    dataset = resolve(dataset, data)
    suffix = ".npy" if kind == "depth" and config.format == "npy" else ".png"
    tree = MapTree(kind=kind, suffix=suffix, data=data, out=out)
    tree.check_place(dataset, splits)
    model = find_model(kind, config.model or DEFAULT_MODEL[kind])
    # Loaded here too, so that a broken model is a message and not three dead workers.
    labels = Annotator.load(kind, model, device="cpu").label_names
    device = pick_device(config.device).type
    plan = _plan(config, kind, dataset, splits, fingerprint(model), labels, device)
    folders = tree.folders(splits)
    with held(tree.job_dir, "annotate"):
        if overwrite:
            tree.delete(splits)
        tree.check_empty(splits)
        sidecars = _make(config, plan, splits, tree, model, device, retry_failed=retry_failed)
        tree.write_list(splits, sidecars)
    reader, root = tree.reader(dataset, splits)
    return Annotated(
        maps=sum(sidecar.samples for sidecar in sidecars),
        failures=sum(len(sidecar.failures) for sidecar in sidecars),
        folders=folders,
        book=tree.job_dir,
        reader=reader,
        root=root,
    )


def _make(
    config: AnnotateConfig,
    plan: Plan,
    splits: Mapping[str, Split],
    tree: MapTree,
    model: Path,
    device: str,
    *,
    retry_failed: bool,
) -> list[Sidecar]:
    """Make the maps that are missing; returns the sidecars of all shards."""
    book, check_name = open_store(tree.job_dir), tree.check_name(splits)
    missing = open_job(plan, book, retry_failed=retry_failed, check_name=check_name)
    if missing:
        _run(config, plan, missing, splits, tree, model, device)
        for folder in tree.folders(splits):
            for place, _, _ in os.walk(folder):
                remove_stale_temps(place)
    return list(close_job(plan, book, config.max_failure_rate, check_name=check_name))


def _plan(
    config: AnnotateConfig,
    kind: Kind,
    dataset: str,
    splits: Mapping[str, Split],
    model: str,
    labels: Sequence[str],
    device: str,
) -> Plan:
    settings = {name: getattr(config, name) for name in ("batch_size", "precision", "threads")}
    if kind == "depth":
        settings["format"] = config.format
    return build_plan(
        samples={name: split.keys for name, split in splits.items()},
        source_hashes={name: split.source_hash() for name, split in splits.items()},
        settings={**settings, "dataset": dataset, "device": device, "kind": kind, "model": model, "labels": labels},
        views=1,
        shard_rows=config.shard_samples,
        shuffle_seed=None,
    )


def _run(
    config: AnnotateConfig,
    plan: Plan,
    missing: Collection[PlannedShard],
    splits: Mapping[str, Split],
    tree: MapTree,
    model: Path,
    device: str,
) -> None:
    plan_hash = plan.hash

    def task_of(shard: PlannedShard) -> ShardTask:
        samples = splits[shard.split].subset(plan.sample_indices(shard))
        return ShardTask(shard=shard, plan_hash=plan_hash, samples=samples)

    run_shards(
        missing,
        task_of,
        _Worker,
        (config, tree, model, device),
        name=f"annotate {tree.kind}",
        device=device,
        workers=config.workers,
        threads=config.threads,
        decode_threads=config.decode_threads,
        max_attempts=config.max_attempts,
    )


class _Worker:
    """The actor: loads the network once, then makes the maps of one shard after another."""

    def __init__(self, config: AnnotateConfig, tree: MapTree, model: Path, device: Any) -> None:
        self._config, self._tree = config, tree
        self._annotator = Annotator.load(tree.kind, model, device=device, precision=config.precision)

    def run(self, task: ShardTask) -> int:
        """Make one shard's maps; returns their number."""
        fix_arithmetic(self._config.threads)  # here, for OpenMP keeps the number for each thread
        return annotate_shard(task, annotator=self._annotator, tree=self._tree, config=self._config).rows


class _Prepared(NamedTuple):
    """A sample that waits for the network."""

    number: int
    input_3hw: Tensor
    size: tuple[int, int]
    """Height and width of the picture, which is not kept."""


def annotate_shard(task: ShardTask, *, annotator: Annotator, tree: MapTree, config: AnnotateConfig) -> Sidecar:
    """Make the maps of one shard, the sidecar last. A plain function, no Ray.

    Which pictures share a batch is a function of the shard's images alone: those of one input size within a window of
    planned samples. A sample that cannot be read, or whose map no reader would take, costs its own map.

    Args:
        task: The shard.
        annotator: The network.
        tree: Where the maps go.
        config: Settings of the job.

    Returns:
        The sidecar as written: failures with reasons, and each map's hash, by its path from the sidecar.
    """
    failures: dict[int, Failure] = {}
    files: dict[str, FileRecord] = {}
    journal = _Journal(tree, task)
    prepare = functools.partial(_prepare, samples=task.samples, annotator=annotator)
    write = functools.partial(_write, task=task, tree=tree, config=config, journal=journal)
    threads = config.decode_threads
    with ThreadPoolExecutor(threads, "decode") as readers, ThreadPoolExecutor(threads, "write") as pool:
        for window in read_ahead(prepare, len(task.samples), config.batch_size * _WINDOW, readers):
            failures |= {index: result for index, result in window if isinstance(result, Failure)}
            ready = [result for _, result in window if isinstance(result, _Prepared)]
            indices, maps = list[int](), list[npt.NDArray[Any] | Failure]()
            for batch in _batches(ready, config.batch_size):
                output = annotator.infer([sample.input_3hw for sample in batch])
                for sample, one in zip(batch, output, strict=True):
                    indices.append(sample.number)
                    maps.append(_to_map(annotator, one, sample, task.samples))
            for index, result in zip(indices, pool.map(write, indices, maps), strict=True):
                if isinstance(result, Failure):
                    failures[index] = result
                else:
                    files |= {journal.name(path): record for path, record in result.items()}
    made = len(task.samples) - len(failures)
    sidecar = Sidecar(
        plan_hash=task.plan_hash,
        split=task.shard.split,
        index=task.shard.index,
        rows=made,
        samples=made,
        failures=tuple(failures[index] for index in sorted(failures)),
        files=files,
    )
    sidecar.save(sidecar_path(tree.job_dir, task.shard))
    journal.remove()
    return sidecar


class _Journal:
    """The files of one shard that this job may replace: each is listed with its sha256 before it is written."""

    def __init__(self, tree: MapTree, task: ShardTask) -> None:
        self._path = tree.journal_path(task.shard)
        self._known = tree.recorded(task.shard, tree.check_name({task.shard.split: task.samples}))
        self._lock = threading.Lock()

    def name(self, path: Path) -> str:
        """The file's path from the shard's records."""
        return os.path.relpath(path, self._path.parent)

    def allows(self, path: Path, sha256: str) -> bool:
        """Whether the file may be written: nothing is there, or what this job wrote, or the same bytes."""
        return not path.exists() or sha256_of(path) in {sha256, *self._known.get(path, ())}

    def add(self, path: Path, sha256: str) -> None:
        """List a file that is about to be written."""
        with self._lock:
            # After a line that a kill has torn, too.
            append_file(self._path, f"\n{sha256} {self.name(path)}\n".encode())
        self._known.setdefault(path, set()).add(sha256)

    def remove(self) -> None:
        """Remove the list: the sidecar is there."""
        self._path.unlink(missing_ok=True)


def _prepare(index: int, *, samples: Split, annotator: Annotator) -> tuple[int, _Prepared | Failure]:
    """Read one picture and make the network's input of it."""

    def read() -> _Prepared:
        picture_HW3 = samples.read_whole(index)
        return _Prepared(index, annotator.prepare(picture_HW3), picture_HW3.shape[:2])

    return index, attempt(samples.keys[index], read)


def _batches(samples: Sequence[_Prepared], batch_size: int) -> Iterator[list[_Prepared]]:
    """Samples of one input size, `batch_size` at most."""
    by_size: dict[tuple[int, ...], list[_Prepared]] = {}
    for sample in samples:
        by_size.setdefault(tuple(sample.input_3hw.shape), []).append(sample)
    for group in by_size.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _to_map(annotator: Annotator, output: Tensor, sample: _Prepared, samples: Split) -> npt.NDArray[Any] | Failure:
    try:
        return annotator.to_map(output, sample.size)
    except InputError as error:
        return Failure(samples.keys[sample.number], str(error))


def _write(
    index: int,
    made: npt.NDArray[Any] | Failure,
    *,
    task: ShardTask,
    tree: MapTree,
    config: AnnotateConfig,
    journal: _Journal,
) -> dict[Path, FileRecord] | Failure:
    """Put one map in place, if the dataset's reader will take it, and a copy of an image that is no file."""
    if isinstance(made, Failure):
        return made
    item, split = task.samples.items[index], task.shard.split
    path = tree.map_path(split, item)
    data = encode_map(made, config.format)
    try:
        read_map(tree.kind, Memory(path.name, data), (made.shape[1], made.shape[0]), 256)
    except ValueError as error:
        return Failure(item.key, str(error))
    content = {path: data}
    copy = tree.copy_path(split, item)
    if copy:
        content[copy] = _content(item.image)
    records = {place: FileRecord(hashlib.sha256(value).hexdigest(), len(value)) for place, value in content.items()}
    for place, record in records.items():
        if not journal.allows(place, record.sha256):
            return Failure(
                item.key, f"{place} was not made by annotate, or was changed since, and is kept: move it away"
            )
    for place, value in content.items():
        journal.add(place, records[place].sha256)
        open_store(place).write_bytes(value)
    return records


@patient
def _content(source: Source) -> bytes:
    with source.open() as file:
        return file.read()
