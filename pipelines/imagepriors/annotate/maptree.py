"""Where the maps that the annotate job makes go, and what their files hold."""

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
from runkit.folders import check_apart, publish
from vqgan.data import Item, Split, sources_of
from vqgan.data.conditions import CONDITIONS
from vqgan.data.files import IMAGE_SUFFIXES, MAP_SUFFIXES, find_files, map_folder
from vqgan.data.sources import File
from vqgan.errors import InputError

_READERS: dict[str, dict[Kind, str]] = {
    "folder": {"depth": "folder", "segmentation": "folder"},
    "cifar10": {"depth": "cifar10", "segmentation": "cifar10"},
    "imagenet": {"depth": "imagenet-depth", "segmentation": "folder"},
    "imagenet-depth": {"depth": "imagenet-depth", "segmentation": "folder"},
    "restricted-imagenet": {"depth": "imagenet-depth", "segmentation": "folder"},
}
"""Datasets whose maps may lie in folders beside the images' → the reader that finds them there."""
_FILLED = IMAGE_SUFFIXES | MAP_SUFFIXES | {".img"}
"""Suffixes of maps, and of copies of images."""
_MOVE = "move it away, or choose another output folder"
_OUT = "pass --out DIR, which becomes a dataset that --dataset folder reads"


@dataclass(frozen=True, kw_only=True, slots=True)
class MapTree:
    """Where the maps of one kind go: into folders beside the images', or by key into a folder of their own."""

    kind: Kind
    suffix: str
    """Of the maps, with its dot."""
    data: Path
    """The dataset's folder."""
    out: Path | None = None
    """The folder of their own; None: beside the images'."""

    @property
    def book(self) -> Path:
        """Folder of the job's plan and sidecars, hidden from the readers."""
        return (self.out or self.data) / f".annotate-{self.kind}"

    @property
    def list_file(self) -> Path | None:
        """The list that makes `out` a dataset."""
        return self.out / "images.parquet" if self.out else None

    def map_path(self, split: str, item: Item) -> Path:
        """The item's map: under the image's own relative path, or in `out` under its key."""
        name = item.key if self.out else _divide(item)[1].rpartition(".")[0]
        return Path(f"{self._folder(split, item)}/{name}{self.suffix}")

    def copy_path(self, split: str, item: Item) -> Path | None:
        """Where `out` gets a copy of an image that is no file of its own, for a list can only name files."""
        if self.out is None or isinstance(item.image, File):
            return None
        suffix = Path(item.image.name).suffix.lower()
        return Path(f"{self.out}/{split}_images/{item.key}{suffix if suffix in IMAGE_SUFFIXES else '.img'}")

    def _folder(self, split: str, item: Item) -> Path:
        return self.out / f"{split}_{self.kind}" if self.out else map_folder(_divide(item)[0], self.kind)

    def folders(self, splits: Mapping[str, Split]) -> tuple[Path, ...]:
        """All folders that the job fills."""
        found = {self._folder(name, item) for name, split in splits.items() for item in split.items}
        copies = {
            f"{name}_images" for name, split in splits.items() for item in split.items if self.copy_path(name, item)
        }
        return tuple(sorted(found | {self.out / name for name in copies if self.out}))

    def reader(self, dataset: str, splits: Mapping[str, Split]) -> tuple[str, Path]:
        """Name and folder of the dataset under which images and maps are read together."""
        if self.out:
            return "folder", self.out
        images, _ = _divide(next(iter(splits.values())).items[0])
        if images == self.data:  # the root itself is the split
            return "folder", self.data
        return _READERS[dataset][self.kind], images.parent

    def check_place(self, dataset: str, splits: Mapping[str, Split]) -> None:
        """Refuse a place in which no reader would find the maps.

        Raises:
            InputError: no reader looks beside these images, or `out` is taken.
        """
        if self.out:
            return self._check_out(self.out, splits)
        if dataset not in _READERS:
            raise InputError(f"the reader {dataset} looks for no {self.kind} that was added later: {_OUT}")
        for item in (item for split in splits.values() for item in split.items):
            if not isinstance(item.image, File):
                raise InputError(f"{item.image.name} of {dataset} is no file, to have a map beside it: {_OUT}")
        for suffix in ("csv", "parquet"):
            if (self.data / f"images.{suffix}").is_file():
                raise InputError(f"{self.data}/images.{suffix} lists the images and would not know of new maps: {_OUT}")
        return None

    def _check_out(self, out: Path, splits: Mapping[str, Split]) -> None:
        check_apart(out, data=sources_of(splits, self.data))
        others = [path for path in sorted(out.glob(".annotate-*")) if path.is_dir() and path != self.book]
        if others:
            kind = others[0].name.removeprefix(".annotate-")
            raise InputError(
                f"{out} holds {kind} maps already: choose another folder. To add {self.kind} to them, pass "
                f"--dataset folder --data {out} --out OTHER"
            )

    def check_empty(self, splits: Mapping[str, Split]) -> None:
        """Refuse folders with maps that no plan of this job accounts for; those of an interrupted job are its own.

        Raises:
            InputError: there are some.
        """
        if (self.book / PLAN_FILE).exists():
            return
        found = [folder / name for folder in self.folders(splits) for name in find_files(folder, _FILLED)[:1]]
        found += [path for path in (self.list_file,) if path and path.exists()]
        if found:
            raise InputError(f"{found[0]} is there, and {self.book} has no record that this command made it: {_MOVE}")

    def check_name(self, splits: Mapping[str, Split]) -> Callable[[str], None]:
        """What refuses the name of a map in a sidecar, a path from the sidecar's folder, that leads elsewhere."""
        folders, home = self.folders(splits), self.book / "split"

        def check(name: str) -> None:
            place = Path(os.path.normpath(home / name))
            if not any(place.is_relative_to(folder) for folder in folders):
                raise ShardError(
                    f"{self.book} names {name!r}, which is in no folder of maps: it is damaged, or hostile"
                )

        return check

    def journal_path(self, shard: PlannedShard) -> Path:
        """The list of files that the shard's job has begun to write; the finished shard's sidecar takes its place."""
        return self.book / shard.split / f"{shard.name}.made"

    def recorded(self, shard: PlannedShard, check_name: Callable[[str], None]) -> dict[Path, set[str]]:
        """File → sha256 of what this job has written, or begun to write, for a shard."""
        found: dict[Path, set[str]] = {}
        home, journal = self.book / shard.split, self.journal_path(shard)
        pairs: list[tuple[str, str]] = []
        if (self.book / shard.split / f"{shard.name}.json").exists():
            sidecar = Sidecar.load(sidecar_path(self.book, shard), check_name=check_name)
            pairs += [(name, record.sha256) for name, record in sidecar.files.items()]
        for line in journal.read_text().splitlines() if journal.exists() else ():
            sha256, mark, name = line.partition(" ")
            if mark and len(sha256) == 64:  # a kill has torn the last line
                check_name(name)
                pairs.append((name, sha256))
        for name, sha256 in pairs:
            found.setdefault(Path(os.path.normpath(home / name)), set()).add(sha256)
        return found

    def delete(self, splits: Mapping[str, Split]) -> None:
        """Delete what this job has made, by its records: maps, copies of images, the list and the records themselves.

        Raises:
            InputError, ShardError: there is anything else in the folders of maps, or it was changed since; nothing was
                deleted then.
        """
        if not (self.book / PLAN_FILE).exists():
            return
        check_name, plan, ours = self.check_name(splits), load_plan(self.book), dict[Path, set[str]]()
        for shard in plan.each_shard():
            ours |= self.recorded(shard, check_name)
        there = [folder / name for folder in self.folders(splits) for name in find_files(folder, _FILLED)]
        for path in there:
            if path not in ours or sha256_of(path) not in ours[path]:
                raise InputError(
                    f"{path} was not made by this command, or was changed since: {_MOVE}. Nothing was deleted"
                )
        if self.out:
            publish(self.out, {}, f"annotate-{self.kind}")
        for path in there:
            path.unlink()
        book = open_store(self.book)
        for shard in plan.each_shard():
            sidecar_path(book, shard).delete()
            self.journal_path(shard).unlink(missing_ok=True)
        for name in (PLAN_FILE, SAMPLES_FILE):
            (book / name).delete()
        for folder in (*self.folders(splits), self.book):
            open_store(folder).remove_empty_folders()

    def write_list(self, splits: Mapping[str, Split], sidecars: Sequence[Sidecar]) -> None:
        """List the images with their maps, old and new, in `out`; failed samples are left out.

        Conditions that are no files of their own cannot be listed and stay behind.
        """
        import pyarrow as pa
        from pyarrow import parquet

        if self.out is None or self.list_file is None:
            return
        failed = {(sidecar.split, failure.key) for sidecar in sidecars for failure in sidecar.failures}
        rows: list[dict[str, Any]] = []
        for split, item in ((name, item) for name, samples in splits.items() for item in samples.items):
            if (split, item.key) in failed:
                continue
            image = self.copy_path(split, item) or Path(item.image.path if isinstance(item.image, File) else "")
            maps = {name: Path(source.path) for name, source in item.conditions.items() if isinstance(source, File)}
            paths = {"image": image, **maps, self.kind: self.map_path(split, item)}
            named = {
                name: path.relative_to(self.out).as_posix() if path.is_relative_to(self.out) else str(path)
                for name, path in paths.items()
            }
            rows.append({"label": item.label, "split": split, "key": unquote(item.key), **named})
        names = ["image", "label", "split", "key", *CONDITIONS]
        columns = {name: [row.get(name) for row in rows] for name in names}
        used = {name: column for name, column in columns.items() if any(value is not None for value in column)}
        file = io.BytesIO()
        parquet.write_table(pa.table(used), file)
        publish(self.out, {self.list_file.name: file.getvalue()}, f"annotate-{self.kind}")


def _divide(item: Item) -> tuple[Path, str]:
    """The folder of images that an image file belongs to, and its path from there: the key tells how deep it lies."""
    assert isinstance(item.image, File)
    folder, *parts = item.image.path.rsplit("/", item.key.count("/") + 1)
    return Path(folder), "/".join(parts)


def encode_map(map_HW: npt.NDArray[Any], depth_format: str) -> bytes:
    """A map as a file: labels uint8 [H, W] as grey PNG, depth float32 [H, W] in a format of AnnotateConfig."""
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
        )  # low bits of floats are noise: more gains little
    return file.getvalue()
