"""Conversion of images and codes from paths, PIL, numpy and torch to the arrays that tokenizers take."""

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imagepriors.api.defaults import as_path
from vqgan.config import ModelConfig
from vqgan.data.geometry import CENTRE, cut
from vqgan.data.pictures import open_picture, to_rgb
from vqgan.errors import InputError

Array = npt.NDArray[Any]


def to_arrays(images: Any, config: ModelConfig) -> tuple[list[Array], bool]:
    """Pictures at the tokenizer's resolution, and whether `images` is a single one.

    Raises:
        InputError: They are not images of the tokenizer's modality; the message says what is expected.
    """
    channels = config.modality in ("rgb", "pose")
    if isinstance(images, str | os.PathLike | Image.Image):
        return [_to_array(images, config)], True
    if not hasattr(images, "shape"):
        if not hasattr(images, "__iter__"):
            raise InputError(f"images is a value of type {type(images).__name__}: pass {_wanted(config)}")
        return [_to_array(image, config) for image in images], False
    array = _numbers(images)
    if array.ndim == 2 + channels:
        return [_to_array(array, config)], True
    if array.ndim == 3 + channels:
        return [_to_array(image, config) for image in array], False
    raise _unusable(array, config)


def to_codes(codes: Any, grid: tuple[int, int]) -> tuple[Array, bool]:
    """Grids of codes [N, h, w], and whether `codes` is a single grid.

    Args:
        codes: An array, a tensor or nested sequences: [h, w], [N, h, w], or rows [N, h · w] as shards
            have them. An array of the shape of `grid` is one grid.
        grid: Rows and columns of the tokenizer's own grid.

    Raises:
        InputError: They are not whole numbers from 0 in one or several grids.
    """
    array = _numbers([_numbers(grid) for grid in codes] if isinstance(codes, list | tuple) else codes)
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise InputError(
            f"codes are {array.dtype} {list(array.shape)}: pass integers from 0 of the shape [h, w] or [N, h, w]"
        )
    if array.ndim == 2 and array.shape != grid and array.shape[1] == math.prod(grid):
        return array.reshape(-1, *grid), False
    return (array, False) if array.ndim == 3 else (array[None], True)


def _to_array(image: Any, config: ModelConfig) -> Array:
    if config.modality in ("rgb", "pose"):
        return _square(_to_picture(image, config), config)
    array = _numbers(np.asarray(image) if isinstance(image, Image.Image) else image)
    if array.shape != (config.resolution, config.resolution):
        raise _unusable(array, config)
    return array.astype(np.float32 if config.modality == "depth" else np.uint8)


def _to_picture(image: Any, config: ModelConfig) -> Image.Image:
    """One image as an RGB picture of its own size."""
    if isinstance(image, str | os.PathLike):
        path = as_path(image)
        try:
            with path.open("rb") as file, open_picture(file) as opened:
                return to_rgb(opened)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: pass the path of an image") from None
        except Exception as error:  # decoders raise anything on broken files
            raise InputError(f"{path} cannot be read as an image: {error}") from error
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except ValueError as error:
            raise InputError(f"a picture of mode {image.mode} cannot be converted to RGB: {error}") from error
    array = _numbers(image)
    if array.ndim == 3 and array.shape[0] == 3 != array.shape[2]:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or not array.size:
        raise _unusable(array, config)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise InputError(f"the image has floats from {low:g} to {high:g}: scale them to 0 … 1, or pass uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise _unusable(array, config)
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _square(picture: Image.Image, config: ModelConfig) -> Array:
    window = CENTRE.window(*picture.size, config.geometry)
    return cut("pose" if config.modality == "pose" else "image", picture, config.resolution, window, picture.size)


def _numbers(value: Any) -> Array:
    """An array of an array, a tensor on any device, or nested lists."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
        return np.asarray(value)
    except (TypeError, ValueError, NotImplementedError) as error:  # sparse tensors, tensors without data
        raise InputError(f"a {type(value).__name__} cannot be read as an array: {error}") from error


def _unusable(array: Array, config: ModelConfig) -> InputError:
    return InputError(f"{array.dtype} {list(array.shape)} is no image of this tokenizer: pass {_wanted(config)}")


def _wanted(config: ModelConfig) -> str:
    side = config.resolution
    return {
        "segmentation": f"label maps uint8 [{side}, {side}] or a batch of them",
        "depth": f"depth maps in 0 … 1 [{side}, {side}] or a batch of them",
    }.get(config.modality, "a PIL image, a path, uint8 [H, W, 3] or [N, H, W, 3], or a sequence of these")
