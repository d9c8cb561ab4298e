"""Tokenizers of other packages: what they must provide, how they are found, and what is recorded of them.

Axes: N pictures, H W pixels, h w the grid of codes.
"""

import functools
import inspect
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqgan.config import ModelConfig
from vqgan.errors import InputError
from vqgan.plugins import find_plugin

Array = npt.NDArray[Any]
_ASK = "correct the package that provides it"
_REQUIRED = ("resolution", "grid", "codebook_size", "fingerprint")
_OPTIONAL = ("modality", "n_labels", "geometry")
_NAMED: set[str] = set()
"""Names that a person, and not a file, has given in this process."""


class PictureTokenizer(Protocol):
    """What a tokenizer of another package provides. Its codes may be a row, grid = (1, N).

    A factory without arguments, or with `device` ("cpu", "cuda") and `precision` ("float32", "bfloat16"), makes it.
    These attributes are optional: `modality` ("rgb", "segmentation", "depth" or "pose"; default "rgb"), `n_labels` of
    segmentation, and `geometry` ("crop", "pad" or "stretch"; default "crop").
    """

    resolution: int
    """Side of the square pictures in pixels."""
    grid: tuple[int, int]
    """Rows and columns of codes, (h, w)."""
    codebook_size: int
    """Number of codes; each code is in 0 … codebook_size - 1."""
    fingerprint: str
    """Identifies the weights: equal fingerprints mean equal codes."""

    def encode(self, pictures: Array) -> Array:
        """Return the codes, integers [N, h, w].

        Args:
            pictures: Colours uint8 [N, H, W, 3], labels uint8 [N, H, W], or depth float32 [N, H, W] in [0, 1].
        """

    def decode(self, codes: Array) -> Array:
        """Return the pictures of codes [N, h, w], in the form in which `encode` takes them."""


def plugin_name(path: Path | str) -> str:
    """Return the name of the plug-in that stands in place of a tokenizer's folder; "" if it is a folder.

    A name is `package.module:function`, or an entry point of the group `imagepriors.tokenizers`. A folder of that name
    comes first.
    """
    text = str(path)
    if "/" in text or Path(text).exists():
        return ""
    known = ":" in text or any(point.name == text for point in entry_points(group="imagepriors.tokenizers"))
    return text if known else ""


def load_plugin(name: str, device: str = "cpu", precision: str = "float32", *, from_file: bool = False) -> Any:
    """Return the tokenizer that a plug-in makes.

    Args:
        name: Its name.
        device: "cpu" or "cuda", for a factory that takes it.
        precision: "float32" or "bfloat16", for a factory that takes it.
        from_file: Whether the name is from a file, which must not choose what is imported: then only that of an
            installed package is accepted, or one that was loaded by name in this process.

    Raises:
        InputError: It cannot be found or made.
    """
    if from_file and ":" in name and name not in _NAMED:
        raise InputError(
            f"the codes were made by the tokenizer {name!r}, which is not imported because a file names it: pass "
            f"{name} as the tokenizer"
        )
    factory = find_plugin("tokenizer", name, {}, allow_path=":" in name)
    if not from_file:
        _NAMED.add(name)
    return _make(factory, name, device, precision)


@functools.lru_cache(maxsize=4)
def _make(factory: Any, name: str, device: str, precision: str) -> Any:
    try:
        taken = inspect.signature(factory).parameters
        offered = {"device": device, "precision": precision}
        return factory(**{key: value for key, value in offered.items() if key in taken})
    except Exception as error:
        raise InputError(f"the tokenizer {name!r} cannot be made: {type(error).__name__}: {error}") from error


def interface(tokenizer: Any, name: str) -> ModelConfig:
    """Return what a plug-in's attributes say, checked.

    Raises:
        InputError: An attribute or a method is missing, or has a value that is not allowed.
    """
    try:
        missing = [key for key in ("encode", "decode") if not callable(getattr(tokenizer, key, None))]
        missing += [key for key in _REQUIRED if not hasattr(tokenizer, key)]
        if missing:
            raise InputError(f"it is a {type(tokenizer).__name__} without {missing[0]}")
        optional = {key: getattr(tokenizer, key) for key in _OPTIONAL if hasattr(tokenizer, key)}
        height, width = tokenizer.grid
        return ModelConfig(
            kind=name, resolution=tokenizer.resolution, codebook_size=tokenizer.codebook_size,
            plugin_grid=(int(height), int(width)), plugin_fingerprint=tokenizer.fingerprint, **optional,
        )  # fmt: skip
    except Exception as error:  # an attribute may be computed by the package
        raise InputError(f"the tokenizer {name!r}: {error}; {_ASK}") from error


def encode_with(tokenizer: Any, config: ModelConfig, pictures: Array) -> Array:
    """Return the codes int64 [N, h, w] of a plug-in, checked.

    Raises:
        InputError: It fails, or its codes have another shape, are no integers or are not in its codebook.
    """
    codes = _call(tokenizer.encode, config, pictures)
    expected = (len(pictures), *config.grid)
    if codes.shape != expected or codes.dtype.kind not in "iu":
        raise InputError(
            f"the tokenizer {config.kind!r} has encoded {len(pictures)} pictures to {codes.dtype} {codes.shape}, "
            f"expected integers {expected}: {_ASK}"
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook_size:
        raise InputError(
            f"the tokenizer {config.kind!r} gives codes {codes.min()} … {codes.max()}, but its codebook_size is "
            f"{config.codebook_size}: {_ASK}"
        )
    return codes.astype(np.int64)


def decode_with(tokenizer: Any, config: ModelConfig, codes: Array) -> Array:
    """Return the pictures of a plug-in's codes, checked: uint8 [N, H, W, 3], labels uint8 or depth float32 [N, H, W].

    Raises:
        InputError: It fails, or its pictures have another shape or type.
    """
    pictures = _call(tokenizer.decode, config, codes)
    side, colours = config.resolution, (3,) if config.modality in ("rgb", "pose") else ()
    expected, dtype = (len(codes), side, side, *colours), np.float32 if config.modality == "depth" else np.uint8
    if pictures.shape != expected or not np.can_cast(pictures.dtype, dtype, casting="same_kind"):
        raise InputError(
            f"the tokenizer {config.kind!r} has decoded {len(codes)} grids of codes to {pictures.dtype} "
            f"{pictures.shape}, expected {np.dtype(dtype)} {expected}: {_ASK}"
        )
    return pictures.astype(dtype, copy=False)


def _call(method: Any, config: ModelConfig, values: Array) -> Array:
    try:
        return np.asarray(method(values))
    except Exception as error:
        raise InputError(
            f"the tokenizer {config.kind!r} cannot {method.__name__} {values.dtype} {values.shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
