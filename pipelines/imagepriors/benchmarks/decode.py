"""Reading photos: ours against torchvision's ImageFolder with the same resize and crop, on one core.

Both decode with Pillow, make the shorter side 256 pixels (bicubic, antialiased) and cut the centre square. Runs are
interleaved, so that a busy moment of the machine hits both.
"""

import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from imagepriors.benchmarks import harness
from vqgan.datasets import CENTRE, Item, Split, open_splits, spread
from vqgan.datasets.files import File
from vqgan.errors import InputError

SIZE = 256
RIVAL, OURS = "torchvision ImageFolder", "imagepriors, folders"


def run(repeats: int = 3, *, data: Path | None = None, out: Path = harness.RESULTS, images: int = 200) -> str:
    """Measure, write the report, and return it as Markdown.

    Args:
        repeats: Rounds.
        data: Folder of photos; without it scenes of a photo's size are rendered.
        out: Folder for the report.
        images: Photos read a round.

    Raises:
        InputError: `data` holds no photos.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = _classes(data, work / "photos") if data else harness.photos(work / "photos", 32)
        rates, count, gap = _compare(source, work, repeats, images)
    return _report(rates, f"{count} {'photos of --data' if data else 'rendered scenes'}", gap, out)


def _classes(data: Path, links: Path) -> Path:
    """A folder with one sub-folder a class, as the rival wants it: `data`, or links to the photos below it."""
    if any(next(folder.glob("*.*"), None) for folder in data.iterdir() if folder.is_dir()):
        return data
    photos = [path for path in sorted(data.rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg", ".png")]
    if not photos:
        raise InputError(f"no JPEG or PNG files below {data}: pass --data, a folder of photos, or leave it out")
    (links / "photos").mkdir(parents=True)
    for number, photo in enumerate(photos):
        (links / "photos" / f"{number:06d}{photo.suffix}").symlink_to(photo.resolve())
    return links


def _compare(data: Path, work: Path, repeats: int, images: int) -> tuple[dict[str, list[float]], int, float]:
    """Images/s of all rounds, how many photos a round reads, and the mean difference of pixels in grey levels."""
    rival = ImageFolder(str(data), transform=Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE)]))
    places = spread(len(rival), images)
    paths = [rival.samples[place][0] for place in places]
    ours = Split([Item(key=str(number), image=File(path)) for number, path in enumerate(paths)])
    (work / "tars").mkdir()
    _official_tar(work / "tars", paths)
    tars = open_splits("imagenet", work / "tars")["train"]
    contenders: dict[str, Callable[[int], object]] = {
        RIVAL: lambda number: np.asarray(rival[places[number]][0]),
        OURS: lambda number: ours.read(number, SIZE),
        "imagepriors, ImageNet's tar of tars, in place": lambda number: tars.read(number % len(tars), SIZE),
        "imagepriors, folders, draft": lambda number: ours.read_views(number, SIZE, (CENTRE,), draft=True),
    }
    rates = _rates(contenders, len(places), repeats)
    gaps = [
        np.abs(np.asarray(rival[place][0]).astype(int) - ours.read(n, SIZE).image) for n, place in enumerate(places)
    ]
    return rates, len(places), float(np.mean([gap.mean() for gap in gaps]))


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


def _report(rates: dict[str, list[float]], photos: str, gap: float, out: Path) -> str:
    ratios = {name: harness.ratio(values, rates[RIVAL]) for name, values in rates.items()}
    rows = [[name, f"{harness.median(values):.0f}", ratios[name]] for name, values in rates.items()]
    text = (
        f"Decode, resize the shorter side to {SIZE} (bicubic), centre crop: one core, {photos}, {len(rates[RIVAL])} "
        f"rounds. Pixels differ from the rival's by {gap:.2f} grey levels on average."
    )
    return harness.save(
        out, "decode", command="imagepriors bench decode", text=text,
        columns=["", "images/s per core", "× torchvision"], rows=rows,
        figures={"images_per_s": rates, "difference_levels": gap}, packages=("torch", "torchvision", "pillow"),
        headlines={"reading photos, over torchvision's ImageFolder": ratios[OURS]},
    )  # fmt: skip
