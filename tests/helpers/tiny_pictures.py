"""Small pictures, masks and archives on disk, and what a split reads of them."""

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

TINY = """
[vqgan]
batch_size = 2
steps = 1
device = "cpu"
[vqgan.model]
resolution = 16
ch = 8
ch_mult = [1, 1]
num_res_blocks = 1
attn_resolutions = []
z_channels = 8
embed_dim = 8
codebook_size = 8
[vqgan.loss]
perceptual = "none"
disc_weight = 0.0
"""
"""A preset of a tokenizer that trains in a second."""


def png(shade: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """A picture whose red is `shade`."""
    return _encoded(Image.new("RGB", size, (shade, 0, 0)))


def mask(label: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A mask of one label."""
    return _encoded(Image.new("L", size, label))


def gradient(size: tuple[int, int] = (8, 8)) -> bytes:
    """A depth map that grows from top to bottom."""
    return _encoded(Image.linear_gradient("L").resize(size))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, data: bytes | None = None) -> None:
    """Write a file, by default a picture, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def tar_bytes(*members: Any, mode: str = "w") -> bytes:
    """A tar of (name, bytes), of dicts of them, and of links as TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for entry in (one for part in members for one in (part.items() if isinstance(part, dict) else [part])):
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def put_tar(path: Path, *members: Any, mode: str = "w") -> None:
    """Write a tar; members as of `tar_bytes`."""
    put(path, tar_bytes(*members, mode=mode))


def shades(split: Any) -> dict[str, tuple[int, int | None]]:
    """Key → (the red of its picture, its label)."""
    return {item.key: (int(split.read(index, 8).image[0, 0, 0]), item.label) for index, item in enumerate(split.items)}


def all_shades(splits: Any) -> dict[str, tuple[int, int | None]]:
    """`shades` of train and val together."""
    return shades(splits["train"]) | shades(splits["val"])
