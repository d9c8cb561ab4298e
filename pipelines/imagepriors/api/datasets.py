"""Datasets of pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imagepriors.api.defaults import PathLike, as_path
from runkit.places import as_typed, url_of
from vqgan.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from vqgan.data import Split


class ImageDataset(Mapping[str, "Split"]):
    """A dataset of pictures: split name → split, with the folder and the layout as which it is read.

    Make one with :func:`open_dataset`. All functions that take a folder of pictures take it as well. It cannot be
    changed, because the Ray job opens the folder again.
    """

    def __init__(self, splits: Mapping[str, "Split"], path: Path, layout: str) -> None:
        self._splits = dict(splits)
        self.path = path
        self.layout = layout

    def __getitem__(self, split: str) -> "Split":
        return self._splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def __repr__(self) -> str:
        counts = " and ".join(f"{len(split):,} {name}" for name, split in self.items())
        return f"ImageDataset({as_typed(self.path)!r}, layout {self.layout}: {counts} images)"

    def images(self, split: str = "train", n: int = 8) -> "list[Image.Image]":
        """`n` whole pictures of a split, evenly spread over it.

        Raises:
            InputError: The dataset has no such split, or a picture cannot be decoded.
        """
        from PIL import Image

        from vqgan.data import spread

        if isinstance(n, bool) or not hasattr(n, "__index__") or n < 0:
            raise InputError(f"n is {n!r}: pass a whole number from 0")
        if split not in self:
            raise InputError(f"{as_typed(self.path)} has no split {split!r}: choose among {', '.join(self)}")
        return [Image.fromarray(self[split].read_whole(index)) for index in spread(len(self[split]), n)]


def open_dataset(data: PathLike, dataset: str = "auto") -> ImageDataset:
    """Open a folder of pictures; "train" and "val" are always among its splits.

    Args:
        data: The folder, as it was downloaded, or its URL.
        dataset: Its layout; "auto" recognises it.

    Raises:
        InputError: The folder does not exist, holds no pictures, or the layout is unknown.
    """
    from vqgan.data import open_splits, resolve

    path = as_path(data)
    path = path if url_of(path) else path.absolute()
    return ImageDataset(open_splits(dataset, path), path, resolve(dataset, path))


def dataset_of(data: "PathLike | ImageDataset", dataset: str) -> tuple[Path, str]:
    """The folder of a dataset and the name of its layout."""
    if isinstance(data, ImageDataset):
        return data.path, data.layout if dataset == "auto" else dataset
    return as_path(data), dataset
