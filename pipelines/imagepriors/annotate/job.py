"""The annotate job: makes depth maps or masks for the images of a dataset on Ray, with the scheduler of `codeshards`.

A shard of samples is the unit of work. Its sidecar is written after its maps and lists them, so that a killed job
resumes. The bytes of a map depend on the plan alone. Plan and sidecars are in a hidden folder, `.annotate-depth/` or
`.annotate-segmentation/`, which dataset readers ignore.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor

from codeshards.format import Failure, Plan, Sidecar, build_plan, open_store
from codeshards.format.files import FileRecord, remove_stale_temps
from codeshards.format.manifest import sidecar_path
from codeshards.job.encode import ShardTask, fix_arithmetic, read_ahead, read_or_failure, task_maker
from codeshards.job.resume import close_job, open_job
from codeshards.job.scheduler import run_shards
from imagepriors.annotate.config import AnnotateConfig, Kind
from imagepriors.annotate.maptree import MapTree, encode_map
from imagepriors.annotate.networks import DEFAULT_MODEL, Annotator, find_model, fingerprint
from runkit.devices import pick_device
from runkit.files import append_file, sha256_of
from runkit.folders import held
from runkit.places import url_of
from runkit.retries import patient
from vqgan.data import Split, open_splits, resolve
from vqgan.data.conditions import read_map
from vqgan.data.sources import Memory, Source
from vqgan.errors import InputError

_WINDOW = 4
"""Number of batches of samples that are read together and grouped by input size, so that few batches are small."""


class Annotated(NamedTuple):
    """The result of a finished job."""

    maps: int
    failures: int
    folders: tuple[Path, ...]
    job_dir: Path
    reader: str
    """Name of the dataset reader that reads images and maps together."""
    root: Path
    """The data folder for that reader."""


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
    """Make a depth map or mask for every image of a dataset, of the image's size, or resume an interrupted job.

    Without `out` the maps are beside the images: those of `train/` in `train_depth/` or `train_segmentation/`, under
    the names of the images. With `out`, which datasets in archives and tables require, they are there under their keys,
    with copies of images that are not files of their own, and a list (images.parquet) for the reader `folder`. The
    network's names of labels are in `segmentation_labels.txt`.

    Args:
        config: Model and settings.
        kind: What to make.
        dataset: Name of the dataset's reader.
        data: Folder of the dataset; every node of a cluster must see it, and the model, under the same path.
        out: Folder for the maps, None: beside the images.
        overwrite: Delete the maps that this command made there first; refused where there are other maps.
        retry_failed: Make shards with failures again.

    Raises:
        InputError: The dataset or the model cannot be opened, or there are maps that this command has not made.
        ShardError: There are maps of another plan, the workers of a shard died repeatedly, or more samples failed than
            `config.max_failure_rate` allows.
    """
    data, out = data if url_of(data) else data.resolve(), out.resolve() if out else None
    splits = open_splits(dataset, data)
    dataset = resolve(dataset, data)
    suffix = ".npy" if kind == "depth" and config.format == "npy" else ".png"
    tree = MapTree(kind=kind, suffix=suffix, data=data, out=out)
    tree.check_place(dataset, splits)
    model = find_model(kind, config.model or DEFAULT_MODEL[kind])
    # Loaded here too, so that a broken model is an error before workers start.
    labels = Annotator.load(kind, model, device="cpu").label_names
    device = pick_device(config.device, InputError).type
    plan = _plan(config, kind, dataset, splits, fingerprint(model), labels, device)
    folders = tree.folders(splits)
    # Masks that are listed beside new depth maps keep their names.
    names = labels if kind == "segmentation" else next(iter(splits.values())).label_names if out else ()
    with held(tree.job_dir, "annotate"):
        if overwrite:
            tree.delete(splits)
        tree.check_empty(splits, names)
        sidecars = _make(config, plan, splits, tree, model, device, retry_failed=retry_failed)
        tree.write_lists(splits, sidecars, names)
    reader, root = tree.reader(dataset, splits)
    return Annotated(
        maps=sum(sidecar.samples for sidecar in sidecars),
        failures=sum(len(sidecar.failures) for sidecar in sidecars),
        folders=folders,
        job_dir=tree.job_dir,
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
    """Make the missing maps; returns the sidecars of all shards."""
    book, check_name = open_store(tree.job_dir), tree.check_name(splits)
    missing = open_job(plan, book, retry_failed=retry_failed, check_name=check_name)
    if missing:
        run_shards(
            missing,
            task_maker(plan, splits),
            _Worker,
            (config, tree, model, device),
            name=f"annotate {tree.kind}",
            device=device,
            settings=config,
            packages=("imagepriors", "codeprior"),
        )
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


class _Worker:
    """The worker of an actor: loads the network once, then makes the maps of one shard after another."""

    def __init__(self, config: AnnotateConfig, tree: MapTree, model: Path, device: Any) -> None:
        self._config, self._tree = config, tree
        self._annotator = Annotator.load(tree.kind, model, device=device, precision=config.precision)

    def run(self, task: ShardTask) -> int:
        """Make the maps of one shard; returns their number."""
        fix_arithmetic(self._config.threads)  # in this thread, because OpenMP keeps the number per thread
        return annotate_shard(task, annotator=self._annotator, tree=self._tree, config=self._config).rows


class _Prepared(NamedTuple):
    """A sample that is ready for the network."""

    number: int
    input_3hw: Tensor
    size: tuple[int, int]
    """Height and width of the picture, whose pixels are not kept."""


def annotate_shard(task: ShardTask, *, annotator: Annotator, tree: MapTree, config: AnnotateConfig) -> Sidecar:
    """Make the maps of one shard and then its sidecar. A plain function, no Ray.

    Which pictures share a batch depends on the shard's images alone: those of one input size within a window of planned
    samples. A sample fails alone if it cannot be read or if the dataset reader would refuse its map.

    Args:
        task: The shard.
        annotator: The network.
        tree: Paths of the maps.
        config: Settings of the job.

    Returns:
        The sidecar as written: failures with reasons, and the hash of each map by its path relative to the sidecar.
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
    """The files of one shard that this job may replace; each is recorded with its sha256 before it is written."""

    def __init__(self, tree: MapTree, task: ShardTask) -> None:
        self._path = tree.journal_path(task.shard)
        self._known = tree.recorded(task.shard, tree.check_name({task.shard.split: task.samples}))
        self._lock = threading.Lock()

    def name(self, path: Path) -> str:
        """Path of the file relative to the records of the shard."""
        return os.path.relpath(path, self._path.parent)

    def allows(self, path: Path, sha256: str) -> bool:
        """Whether the file may be written: it is new, was written by this job, or has the same bytes."""
        return not path.exists() or sha256_of(path) in {sha256, *self._known.get(path, ())}

    def add(self, path: Path, sha256: str) -> None:
        """Record a file before it is written."""
        with self._lock:
            # The first newline ends a line that was cut by a kill.
            append_file(self._path, f"\n{sha256} {self.name(path)}\n".encode())
        self._known.setdefault(path, set()).add(sha256)

    def remove(self) -> None:
        """Remove the journal, because the sidecar is written."""
        self._path.unlink(missing_ok=True)


def _prepare(index: int, *, samples: Split, annotator: Annotator) -> tuple[int, _Prepared | Failure]:
    """Read one picture and make the input of the network."""

    def read() -> _Prepared:
        picture_HW3 = samples.read_whole(index)
        return _Prepared(index, annotator.prepare(picture_HW3), picture_HW3.shape[:2])

    return index, read_or_failure(samples.keys[index], read)


def _batches(samples: Sequence[_Prepared], batch_size: int) -> Iterator[list[_Prepared]]:
    """Batches of at most `batch_size` samples of one input size."""
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
    """Write one map, if the dataset reader accepts it, and a copy of an image that is not a file of its own."""
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
