"""Reading photos: ours against torchvision's ImageFolder with the same resize and crop, on one core.

Both decode with Pillow, make the shorter side 256 pixels (bicubic, antialiased) and cut the centre square. Runs are
interleaved, so that a busy moment of the machine hits both.
"""

import json
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from vqgan.datasets import CENTRE, Item, Split, open_splits, spread
from vqgan.datasets.files import File
from vqgan.errors import InputError

RESULTS = Path(__file__).parent / "results"
SIZE = 256
RIVAL = "torchvision ImageFolder"


def run(repeats: int, out: Path = RESULTS, data: Path | None = None, images: int = 200) -> str:
    """Measure, write decode-cpu.json and .md into `out`, return the table.

    Args:
        repeats: Rounds; the median counts.
        out: Folder for the results.
        data: Class folders of photos.
        images: Photos read a round.

    Raises:
        InputError: no photos there.
    """
    if data is None or not data.is_dir():
        raise InputError(f"no photos in {data}: pass --data, a folder with one sub-folder of photos per class")
    torch.set_num_threads(1)
    rival = ImageFolder(str(data), transform=Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE)]))
    places = spread(len(rival), images)
    paths = [rival.samples[place][0] for place in places]
    ours = Split([Item(key=str(number), image=File(path)) for number, path in enumerate(paths)])
    with tempfile.TemporaryDirectory() as folder:
        _official_tar(Path(folder), paths)
        tars = open_splits("imagenet", Path(folder))["train"]
        contenders: dict[str, Callable[[int], object]] = {
            RIVAL: lambda number: np.asarray(rival[places[number]][0]),
            "imagepriors, folders": lambda number: ours.read(number, SIZE),
            "imagepriors, ImageNet's tar of tars, in place": lambda number: tars.read(number % len(tars), SIZE),
            "imagepriors, folders, draft": lambda number: ours.read_views(number, SIZE, (CENTRE,), draft=True),
        }
        rates = _rates(contenders, len(places), repeats)
    gaps = [
        np.abs(np.asarray(rival[place][0]).astype(int) - ours.read(n, SIZE).image) for n, place in enumerate(places)
    ]
    return _write(out, rates, len(places), float(np.mean([gap.mean() for gap in gaps])))


def _rates(contenders: dict[str, Callable[[int], object]], count: int, repeats: int) -> dict[str, list[float]]:
    """Images/s of every round; a first one that warms the page cache is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, read in contenders.items():
            start = time.perf_counter()
            for number in range(count):
                read(number)
            if round_:
                rates[name].append(count / (time.perf_counter() - start))
    return rates


def _official_tar(folder: Path, paths: list[str]) -> None:
    """The same files as ILSVRC2012_img_train.tar: one tar per class inside a tar."""
    classes: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        classes.setdefault(path.parent.name, []).append(path)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for name, members in classes.items():
            with tarfile.open(folder / f"{name}.tar", "w") as inner:
                for path in members:
                    inner.add(path, path.name)
            outer.add(folder / f"{name}.tar", f"{name}.tar")


def _write(out: Path, rates: dict[str, list[float]], count: int, gap: float) -> str:
    out.mkdir(parents=True, exist_ok=True)
    (out / "decode-cpu.json").write_text(json.dumps({"images": count, "images_per_s": rates}, indent=2) + "\n")
    lines = [
        f"Decode, resize the shorter side to {SIZE} (bicubic), centre crop: one core, {platform.machine()}, "
        f"Pillow {PIL.__version__}, {count} photos, median of {len(rates[RIVAL])} interleaved rounds; `make bench`.",
        f"Pixels differ from the rival's by {gap:.2f} grey levels on average.",
        "",
        "| | images/s per core | × torchvision |",
        "|---|---|---|",
    ]
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[RIVAL], strict=True))
        lines.append(f"| {name} | {statistics.median(values):.0f} | {ratio:.2f} |")
    text = "\n".join(lines)
    (out / "decode-cpu.md").write_text(text + "\n")
    return text
