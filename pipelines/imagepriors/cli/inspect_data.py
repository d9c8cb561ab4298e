"""`imagepriors inspect`."""

from pathlib import Path

import tyro

from imagepriors.api.defaults import run_folder
from vqgan.config import Geometry


def inspect_data(
    dataset: tyro.conf.Positional[str] = "auto",
    *,
    data: Path,
    out: Path | None = None,
    limit: int = 2_000,
    shown: int = 24,
    size: int = 128,
    geometry: Geometry | None = None,
) -> str:
    """Inspect a dataset: counts, sizes, labels, unreadable files, a contact sheet.

    Args:
        dataset: Layout of the data, as for train-vqgan.
        data: Folder or URL of the dataset.
        out: Folder for inspection.json and the contact sheets; default: runs/NAME/inspect, where NAME
            is the name of the data's folder.
        limit: Samples to decode per split, evenly spread over it; 0: all.
        shown: Samples on a contact sheet.
        size: Side of its pictures, in pixels.
        geometry: How pictures that are not square become square; default: as suits the dataset (deepfashion: pad).

    Example:
        imagepriors inspect --data data/photos
    """
    from imagepriors.reports.dataset import inspect_dataset

    where = out or run_folder(data) / "inspect"
    return inspect_dataset(dataset, data, where, limit=limit, shown=shown, size=size, geometry=geometry)
