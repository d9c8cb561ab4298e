"""The package of docs/extending.md, installed into a folder, and data that it reads."""

import re
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def install(site: Path, name: str, module: str, code: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Write a package as pip installs it: its module, and beside it the metadata with its entry points."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in points.items()), ""])
        for group, points in entry_points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    (site / f"{module}.py").write_text(code)


def install_page(site: Path, *, registered: bool = True) -> Path:
    """Install the package of the page, or copy its module alone."""
    (project,) = (tomllib.loads(block)["project"] for block in blocks("toml"))
    points = project["entry-points"] if registered else {}
    install(site, project["name"], "photo_scores", "\n\n".join(blocks("python")), points)
    return site


def write_photos(root: Path, count: int = 40) -> Path:
    """Photos whose red is their number, with classes and depth maps, in the layout that the package reads."""
    rng = np.random.default_rng(0)
    for folder in ("photos", "depth"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        pixels[..., 0] = number
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
        np.savetxt(root / "depth" / f"{number}.txt", np.arange(32 * 32).reshape(32, 32) + number)
    lines = [f"{number}.png\t{'high' if number >= 10 else 'low'}" for number in range(count)]
    (root / "scores.tsv").write_text("\n".join(lines))
    return root
