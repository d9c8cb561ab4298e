"""Maps beside an image: segmentation masks, depth maps, drawn poses."""

import math
from typing import Any, BinaryIO, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqgan.config import Modality
from vqgan.data.pictures import open_picture, to_labels, to_numbers, to_rgb, upright_size
from vqgan.data.sources import Source

CONDITIONS = tuple(name for name in get_args(Modality) if name != "rgb")
"""segmentation, depth and pose: the set is closed, because the shard format has a column for each and no others."""


class DepthMap(NamedTuple):
    """A depth map, scaled to [0, 1]."""

    unit: Image.Image
    """Mode F, from 0, the lowest value of the map, to 1, its highest."""
    low: float
    high: float

    def values(self, unit: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return scaled depth in the unit of the map."""
        return (self.low + unit.astype(np.float64) * (self.high - self.low)).astype(np.float32)


def read_map(name: str, source: Source, image_size: tuple[int, int], n_labels: int) -> Image.Image | DepthMap:
    """Read one map as a Pillow image of the size of its image.

    Args:
        name: segmentation, depth or pose (a drawn picture).
        source: The map: PNG, or for depth also .npy and .pfm.
        image_size: (width, height) of the image in pixels.
        n_labels: Number of labels that a mask may hold.

    Raises:
        ValueError: the map does not fit the image, or a value in it is invalid.
        OSError: it cannot be decoded.
    """
    if name == "depth":
        return _scaled(read_depth(source, image_size))
    with source.open() as file, open_picture(file) as opened:
        _check_size(name, upright_size(opened), image_size)  # of a PNG only, the pixels are decoded here
        if name == "pose":
            return to_rgb(opened, "black")
        return _mask(to_labels(opened, file), n_labels)


def read_depth(source: Source, image_size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Read a depth map as it is stored; the arguments and errors are those of `read_map`."""
    with source.open() as file:
        if source.name.lower().endswith(".npy"):
            pixels = _read_npy(file, image_size)
        else:
            with open_picture(file) as opened:
                _check_size("depth", upright_size(opened), image_size)
                pixels = to_numbers(opened)
    packed = pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint8
    if not packed and pixels.ndim != 2:
        raise ValueError(f"depth map has shape {pixels.shape}, expected grey or float32 packed in RGBA")
    # Packed as in the D-RIN release.
    return (np.ascontiguousarray(pixels).view("<f4")[..., 0] if packed else pixels).astype(np.float64)


def _check_size(name: str, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    if size != image_size:
        raise ValueError(f"{name} is {size}, its image {image_size} (width, height)")


def _read_npy(file: BinaryIO, image_size: tuple[int, int]) -> npt.NDArray[Any]:
    """Read a depth map [H, W], or [H, W, 4] of bytes; the header is compared with the image first.

    Raises:
        ValueError: its shape or type is another, or it has fewer bytes than the header declares.
    """
    major, _ = np.lib.format.read_magic(file)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(major)
    if read_header is None:
        raise ValueError(f"it is .npy of version {major}, which arrays of numbers do not use")
    try:
        shape, is_fortran, dtype = read_header(file)
    except (MemoryError, RecursionError):  # of the parser, which has a stack of its own
        raise ValueError("its header is broken") from None
    if dtype.kind not in "biuf" or len(shape) not in (2, 3):
        raise ValueError(f"depth map has shape {shape} of {dtype}, expected numbers [H, W]")
    _check_size("depth", (shape[1], shape[0]), image_size)
    if len(shape) == 3 and (shape[2] != 4 or dtype != np.uint8):
        raise ValueError(f"depth map has shape {shape}, expected grey or float32 packed in RGBA")
    data = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _mask(labels: npt.NDArray[np.uint8], n_labels: int) -> Image.Image:
    highest = int(labels.max())
    if highest >= n_labels:
        raise ValueError(f"mask holds label {highest}, wanted 0 … {n_labels - 1}")
    return Image.fromarray(labels)


def _scaled(depth: npt.NDArray[np.float64]) -> DepthMap:
    if not np.isfinite(depth).all():
        raise ValueError("depth map holds NaN or infinite values")
    low, high = float(depth.min()), float(depth.max())
    if low == high:
        raise ValueError(f"depth map is constant ({low:g} everywhere): there is nothing to learn from it")
    if high - low == math.inf:
        raise ValueError(f"depth map ranges from {low:g} to {high:g}, which overflows: divide it")
    return DepthMap(Image.fromarray(((depth - low) / (high - low)).astype(np.float32)), low, high)
