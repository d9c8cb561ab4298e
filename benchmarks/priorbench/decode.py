"""Reading photos, compared with torchvision's ImageFolder with the same resize and crop: `python -m priorbench decode`.

Both decode with Pillow, resize the shorter side to 256 pixels (bicubic, antialiased) and crop the centre square. All
contenders run in one process with one thread. Decoding without any processing is the upper bound.
"""

import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from priorbench import harness
from vqgan.data import CENTRE, Item, Split, open_splits, spread
from vqgan.data.files import find_files
from vqgan.data.sources import File
from vqgan.errors import InputError

SIZE = 256
RIVAL, OURS = "torchvision ImageFolder", "imagepriors, folders"
LIMIT = "Pillow decodes, nothing more"
RENDERED = 64
"""Number of scenes that are rendered without photos."""


def run(repeats: int, *, out: Path = harness.RESULTS, data: Path | None = None, images: int = 200) -> str:
    """Measure, write the report, and return it as Markdown.

    Args:
        repeats: Number of rounds.
        out: Folder for the results.
        data: Folder of photos; None renders scenes.
        images: Maximum number of photos per round.

    Raises:
        InputError: `data` has no photos, or an unreadable one.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos, what = _photos(data, work, images)
        rival = ImageFolder(str(photos), transform=Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE)]))
        paths = [path for path, _ in rival.samples]
        ours = Split([Item(key=str(number), image=File(path)) for number, path in enumerate(paths)])
        gaps = [
            np.abs(ours.read(number, SIZE).image - np.asarray(rival[number][0]).astype(int)).mean()
            for number in range(len(paths))
        ]
        _official_tar(work / "tar", paths)
        tars = open_splits("imagenet", work / "tar")["train"]
        contenders: dict[str, Callable[[int], object]] = {
            LIMIT: lambda number: Image.open(paths[number]).convert("RGB"),
            RIVAL: lambda number: np.asarray(rival[number][0]),
            OURS: lambda number: ours.read(number, SIZE),
            "imagepriors, ImageNet's tar of tars, in place": lambda number: tars.read(number % len(tars), SIZE),
            "imagepriors, folders, draft": lambda number: ours.read_views(number, SIZE, (CENTRE,), draft=True),
            "imagepriors, folders, resized by torch": lambda number: ours.read(number, SIZE, resampler="torch"),
            "torchvision decodes, torch resizes": lambda number: _resized(decode_image(paths[number], mode="RGB")),
        }
        for read in contenders.values():
            _rate(read, len(paths))  # fill the page cache
        return harness.run_rounds(
            "bench decode",
            contenders,
            lambda name: {"images_per_s": _rate(contenders[name], len(paths))},
            lambda found: _report(out, found, what, float(np.mean(gaps))),
            repeats,
        )


def _resized(image_CHW: torch.Tensor) -> torch.Tensor:
    """Return the centre square in SIZE, resized by torch with antialiasing."""
    side, (height, width) = min(image_CHW.shape[1:]), image_CHW.shape[1:]
    top, left = (height - side) // 2, (width - side) // 2
    square = image_CHW[None, :, top : top + side, left : left + side]
    return torch.nn.functional.interpolate(square, (SIZE, SIZE), mode="bicubic", antialias=True)[0]


def _photos(data: Path | None, work: Path, images: int) -> tuple[Path, str]:
    """Write class folders of links to the photos, and return the folder and a description of the photos."""
    source = data or harness.photos(work / "rendered", min(images, RENDERED))
    found = find_files(source)
    if not found:
        raise InputError(f"no photos in {data}: pass --data, a folder of photos, or leave it out")
    chosen = [source / found[index] for index in spread(len(found), images)]
    for number, path in enumerate(chosen):
        link = work / "photos" / path.absolute().parent.name / f"{number:06d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    kilobytes = sum(path.stat().st_size for path in chosen) / len(chosen) / 1000
    kind = "photos of --data" if data else "rendered scenes with grain, JPEG of 500×375"
    return work / "photos", f"{len(chosen)} {kind} ({kilobytes:.0f} kB each)"


def _rate(read: Callable[[int], object], count: int) -> float:
    """Images/s of reading all photos."""
    start = time.perf_counter()
    for number in range(count):
        read(number)
    return count / (time.perf_counter() - start)


def _official_tar(folder: Path, paths: Sequence[str]) -> None:
    """Write the same files as ILSVRC2012_img_train.tar: a tar with one tar per class."""
    folder.mkdir()
    classes: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        classes.setdefault(path.parent.name, []).append(path)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for name, members in classes.items():
            with tarfile.open(folder / f"{name}.tar", "w", dereference=True) as inner:
                for path in members:
                    inner.add(path, path.name)
            outer.add(folder / f"{name}.tar", f"{name}.tar")


def _report(out: Path, found: dict[str, harness.Rounds], what: str, gap: float) -> str:
    rates = {name: [figures["images_per_s"] for figures in of_one] for name, of_one in found.items()}
    figures = {"photos": what, "images_per_s": rates, "grey_levels": gap}
    count = len(rates[RIVAL])
    text = (
        f"Decode, resize the shorter side to {SIZE} (bicubic), centre crop: {what}, one thread, page cache warm, "
        f"{harness.rounds(count)}. Pixels differ from the rival's by {gap:.2f} grey levels on average; draft decoding "
        "affects only large photos."
    )
    return harness.save(
        out, "decode", table(figures), command=harness.command("decode", count, "--data" in what), text=text,
        figures=figures, packages=("torchvision", "pillow"),
    )  # fmt: skip


def table(figures: dict[str, Any]) -> harness.Table:
    """Images/s and ratios."""
    rates = figures["images_per_s"]
    rows = [
        [name, f"{harness.median(values):.0f}", harness.ratio(values, rates[RIVAL]),
         harness.ratio(values, rates[LIMIT])]
        for name, values in rates.items()
    ]  # fmt: skip
    over = harness.ratio(rates[OURS], rates[RIVAL])
    return harness.table_of(
        ["", "images/s per core", "× torchvision", "× decoding alone"], rows,
        {"reading photos on one core, over torchvision's ImageFolder": over},
    )  # fmt: skip
