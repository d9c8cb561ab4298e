"""Location and file format of the maps that the annotate job writes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeshards.format import ShardError, Sidecar, load_plan, open_store
from codeshards.format.manifest import sidecar_path
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE, PlannedShard
from imagepriors.annotate.config import Kind
from runkit.files import sha256_of
from runkit.folders import check_apart, check_publish, publish
from runkit.places import url_of
from vqgan.data import Item, Split, sources_of
from vqgan.data.conditions import CONDITIONS
from vqgan.data.files import IMAGE_SUFFIXES, MAP_SUFFIXES, find_files, map_folder
from vqgan.data.label_names import LABELS_FILE, label_names_text
from vqgan.data.sources import File
from vqgan.errors import InputError

_READERS: dict[str, dict[Kind, str]] = {
    "folder": {"depth": "folder", "segmentation": "folder"},
    "cifar10": {"depth": "cifar10", "segmentation": "cifar10"},
    "imagenet": {"depth": "imagenet-depth", "segmentation": "folder"},
    "imagenet-depth": {"depth": "imagenet-depth", "segmentation": "folder"},
    "restricted-imagenet": {"depth": "imagenet-depth", "segmentation": "folder"},
}
"""Dataset with folders of maps beside those of images → kind of map → the layout that finds them there."""
_FILLED = IMAGE_SUFFIXES | MAP_SUFFIXES | {".img"}
"""Suffixes of maps and of copied images."""
_MOVE = "move it away, or choose another output folder"
_OUT = "pass --out DIR, which becomes a dataset that --dataset folder reads"


@dataclass(frozen=True, kw_only=True, slots=True)
class MapTree:
    """Location of the maps of one kind: beside the images' folders, or in a separate folder under their keys."""

    kind: Kind
    suffix: str
    """Suffix of the maps, with its dot."""
    data: Path
    """Folder of the dataset."""
    out: Path | None = None
    """The separate folder; None: beside the images."""

    @property
    def job_dir(self) -> Path:
        """Hidden folder of the job's plan and sidecars."""
        return (self.out or self.data) / f".annotate-{self.kind}"

    @property
    def list_file(self) -> Path | None:
        """The list of images that makes `out` a dataset."""
        return self.out / "images.parquet" if self.out else None

    def map_path(self, split: str, item: Item) -> Path:
        """Path of an item's map: the image's relative path, or its key in `out`."""
        name = item.key if self.out else _split_path(item)[1].rpartition(".")[0]
        return Path(f"{self._folder(split, item)}/{name}{self.suffix}")

    def copy_path(self, split: str, item: Item) -> Path | None:
        """Path in `out` of a copy of an image that is not a file, because a list can only name files; else None."""
        if self.out is None or _local_path(item.image):
            return None
        suffix = Path(item.image.name).suffix.lower()
        return Path(f"{self.out}/{split}_images/{item.key}{suffix if suffix in IMAGE_SUFFIXES else '.img'}")

    def _folder(self, split: str, item: Item) -> Path:
        return self.out / f"{split}_{self.kind}" if self.out else Path(str(map_folder(_split_path(item)[0], self.kind)))

    def folders(self, splits: Mapping[str, Split]) -> tuple[Path, ...]:
        """All folders that the job writes to."""
        found = {self._folder(name, item) for name, split in splits.items() for item in split.items}
        copies = {
            f"{name}_images" for name, split in splits.items() for item in split.items if self.copy_path(name, item)
        }
        return tuple(sorted(found | {self.out / name for name in copies if self.out}))

    def reader(self, dataset: str, splits: Mapping[str, Split]) -> tuple[str, Path]:
        """Layout and folder of the dataset that contains images and maps."""
        root = self._root(splits)
        return "folder" if root in (self.out, _images(splits)) else _READERS[dataset][self.kind], root

    def _root(self, splits: Mapping[str, Split]) -> Path:
        images = _images(splits)
        # The root itself may be the split.
        return self.out or (self.data if images == self.data else images.parent)

    def check_place(self, dataset: str, splits: Mapping[str, Split]) -> None:
        """Refuse a location in which no dataset layout finds the maps.

        Raises:
            InputError: no layout has maps beside these images, or `out` is in use.
        """
        if self.out:
            return self._check_out(self.out, splits)
        if url := url_of(self.data):
            raise InputError(f"no map can be beside an image of {url}: {_OUT}")
        if dataset not in _READERS:
            raise InputError(f"the layout {dataset} has no place for added {self.kind} maps: {_OUT}")
        for item in (item for split in splits.values() for item in split.items):
            if not isinstance(item.image, File):
                raise InputError(f"{item.image.name} of {dataset} is not a file, so no map can be beside it: {_OUT}")
        for suffix in ("csv", "parquet"):
            if (self.data / f"images.{suffix}").is_file():
                raise InputError(
                    f"{self.data}/images.{suffix} lists the images, so new maps would not be found: {_OUT}"
                )
        return None

    def _check_out(self, out: Path, splits: Mapping[str, Split]) -> None:
        check_apart(out, data=sources_of(splits, self.data))
        others = [path for path in sorted(out.glob(".annotate-*")) if path.is_dir() and path != self.job_dir]
        if others:
            kind = others[0].name.removeprefix(".annotate-")
            raise InputError(
                f"{out} holds {kind} maps already: choose another folder. To add {self.kind} to them, pass "
                f"--dataset folder --data {out} --out OTHER"
            )

    def check_empty(self, splits: Mapping[str, Split], names: Sequence[str]) -> None:
        """Refuse folders with maps if this job has no plan; an interrupted job has one.

        Raises:
            InputError: a map or a list exists.
            UserError: other names of labels exist, which those of this job would replace.
        """
        if names:
            check_publish(self._root(splits), [LABELS_FILE], f"annotate-{self.kind}")
        if (self.job_dir / PLAN_FILE).exists():
            return
        found = [folder / name for folder in self.folders(splits) for name in find_files(folder, _FILLED)[:1]]
        found += [path for path in (self.list_file,) if path and path.exists()]
        if found:
            raise InputError(
                f"{found[0]} is there, and {self.job_dir} has no record that this command made it: {_MOVE}"
            )

    def check_name(self, splits: Mapping[str, Split]) -> Callable[[str], None]:
        """A function that refuses names of maps in a sidecar, relative to its folder, that are in no folder of maps."""
        folders, home = self.folders(splits), self.job_dir / "split"

        def check(name: str) -> None:
            place = Path(os.path.normpath(home / name))
            if not any(place.is_relative_to(folder) for folder in folders):
                raise ShardError(
                    f"{self.job_dir} names {name!r}, which is in no folder of maps: it is damaged, or hostile"
                )

        return check

    def journal_path(self, shard: PlannedShard) -> Path:
        """Journal of the files that a shard's worker has begun to write; the finished shard's sidecar replaces it."""
        return self.job_dir / shard.split / f"{shard.name}.made"

    def recorded(self, shard: PlannedShard, check_name: Callable[[str], None]) -> dict[Path, set[str]]:
        """File → SHA-256 of its contents that this job has written, or begun to write, for a shard."""
        found: dict[Path, set[str]] = {}
        home, journal = self.job_dir / shard.split, self.journal_path(shard)
        pairs: list[tuple[str, str]] = []
        if (self.job_dir / shard.split / f"{shard.name}.json").exists():
            sidecar = Sidecar.load(sidecar_path(self.job_dir, shard), check_name=check_name)
            pairs += [(name, record.sha256) for name, record in sidecar.files.items()]
        for line in journal.read_text().splitlines() if journal.exists() else ():
            sha256, mark, name = line.partition(" ")
            if mark and len(sha256) == 64:  # a killed worker may leave an incomplete last line
                check_name(name)
                pairs.append((name, sha256))
        for name, sha256 in pairs:
            found.setdefault(Path(os.path.normpath(home / name)), set()).add(sha256)
        return found

    def delete(self, splits: Mapping[str, Split]) -> None:
        """Delete the maps, copied images, list, names and records of this job, according to its records.

        Raises:
            InputError, ShardError: the folders of maps contain other or changed files; nothing is deleted.
        """
        if not (self.job_dir / PLAN_FILE).exists():
            return
        check_name, plan, recorded = self.check_name(splits), load_plan(self.job_dir), dict[Path, set[str]]()
        for shard in plan.each_shard():
            recorded |= self.recorded(shard, check_name)
        found = [folder / name for folder in self.folders(splits) for name in find_files(folder, _FILLED)]
        for path in found:
            if path not in recorded or sha256_of(path) not in recorded[path]:
                raise InputError(
                    f"{path} was not made by this command, or was changed since: {_MOVE}. Nothing was deleted"
                )
        self._publish({}, splits)
        for path in found:
            path.unlink()
        job_dir = open_store(self.job_dir)
        for shard in plan.each_shard():
            sidecar_path(job_dir, shard).delete()
            self.journal_path(shard).unlink(missing_ok=True)
        for name in (PLAN_FILE, SAMPLES_FILE):
            (job_dir / name).delete()
        for folder in (*self.folders(splits), self.job_dir):
            open_store(folder).remove_empty_folders()

    def write_lists(self, splits: Mapping[str, Split], sidecars: Sequence[Sidecar], names: Sequence[str]) -> None:
        """Write the names of the labels of masks, if there are any, and in `out` the list of images."""
        files = {LABELS_FILE: label_names_text(names)} if names else {}
        if self.out and self.list_file:
            files[self.list_file.name] = self._list(self.out, splits, sidecars)
        self._publish(files, splits)

    def _publish(self, files: Mapping[str, bytes], splits: Mapping[str, Split]) -> None:
        if self.out or self.kind == "segmentation":  # depth maps beside images have neither names nor a list
            publish(self._root(splits), files, f"annotate-{self.kind}")

    def _list(self, out: Path, splits: Mapping[str, Split], sidecars: Sequence[Sidecar]) -> bytes:
        """The images with their existing and new maps, as Parquet; failed samples are omitted.

        Conditions that are not files cannot be listed and are omitted.
        """
        import pyarrow as pa
        from pyarrow import parquet

        failed = {(sidecar.split, failure.key) for sidecar in sidecars for failure in sidecar.failures}
        rows: list[dict[str, Any]] = []
        for split, item in ((name, item) for name, samples in splits.items() for item in samples.items):
            if (split, item.key) in failed:
                continue
            image = self.copy_path(split, item) or Path(_local_path(item.image))
            maps = {name: Path(path) for name, source in item.conditions.items() if (path := _local_path(source))}
            paths = {"image": image, **maps, self.kind: self.map_path(split, item)}
            named = {
                name: path.relative_to(out).as_posix() if path.is_relative_to(out) else str(path)
                for name, path in paths.items()
            }
            rows.append({"label": item.label, "split": split, "key": unquote(item.key), **named})
        names = ["image", "label", "split", "key", *CONDITIONS]
        columns = {name: [row.get(name) for row in rows] for name in names}
        used = {name: column for name, column in columns.items() if any(value is not None for value in column)}
        file = io.BytesIO()
        parquet.write_table(pa.table(used), file)
        return file.getvalue()


def _images(splits: Mapping[str, Split]) -> Path:
    """The root folder of the images of the first split."""
    return _split_path(next(iter(splits.values())).items[0])[0]


def _local_path(source: object) -> str:
    """The path of a source that is a local file; "" for others."""
    return source.path if isinstance(source, File) and isinstance(source.path, str) else ""


def _split_path(item: Item) -> tuple[Path, str]:
    """The root folder of an image file, and its path from there, whose depth is that of its key."""
    folder, *parts = _local_path(item.image).rsplit("/", item.key.count("/") + 1)
    return Path(folder), "/".join(parts)


def encode_map(map_HW: npt.NDArray[Any], depth_format: str) -> bytes:
    """Encode a map: labels uint8 [H, W] as grey PNG, depth float32 [H, W] in a format of AnnotateConfig."""
    file = io.BytesIO()
    if map_HW.dtype == np.uint8:
        Image.fromarray(map_HW).save(file, "png")
    elif depth_format == "npy":
        np.save(file, map_HW.astype("<f4"))
    elif depth_format == "png16":
        low, high = float(map_HW.min()), float(map_HW.max())
        unit_HW = (map_HW.astype(np.float64) - low) / max(high - low, 1e-12)
        Image.fromarray((unit_HW * 65535).round().astype(np.uint16)).save(file, "png")
    else:
        packed_HW4 = np.ascontiguousarray(map_HW, "<f4").view(np.uint8).reshape(*map_HW.shape, 4)
        Image.fromarray(packed_HW4).save(
            file, "png", compress_level=1
        )  # a higher level gains little, because the low bits of floats are noise
    return file.getvalue()
