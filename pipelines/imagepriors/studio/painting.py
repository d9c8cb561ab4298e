"""Painting: maps that a person paints, encoded as a condition of a prior.

Axes: N maps, h × w the grid of codes, H × W pixels, K joints.
"""

import base64
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from codeprior.sample_config import SampleConfig
from imagepriors.decode.rows import read_rows
from imagepriors.reports.figures import colorize, png_bytes
from imagepriors.studio.contents import Contents
from imagepriors.studio.drawing import DrawRequest, sampling_of, shards_elsewhere
from imagepriors.studio.jobs import Event
from imagepriors.studio.pictures import decode_few, decoding, read_bytes, read_picture_as, uris
from runkit.configs import check_fields, require
from runkit.errors import UserError
from vqgan.data.conditions import DepthMap, read_map
from vqgan.data.geometry import CENTRE, cut
from vqgan.data.pictures import upright_size
from vqgan.data.poses import JOINTS, LIMB_COLORS, LIMB_WIDTH, LIMBS, draw_pose
from vqgan.data.sources import Memory

_LEVELS = 255
"""Highest level of a painted depth map."""
_BRIGHT = 128
"""Highest channel of a pixel that belongs to a limb, in a pose that was decoded from codes."""
_MOST = 24
"""Maps in one answer."""
_STANDING = (
    (0.500, 0.170), (0.500, 0.270), (0.430, 0.275), (0.385, 0.395), (0.370, 0.510), (0.570, 0.275), (0.615, 0.395),
    (0.630, 0.510), (0.455, 0.515), (0.450, 0.680), (0.445, 0.850), (0.545, 0.515), (0.550, 0.680), (0.555, 0.850),
    (0.480, 0.150), (0.520, 0.150), (0.455, 0.165), (0.545, 0.165),
)  # fmt: skip
"""Joints of a standing figure as (x, y), relative to the side of the picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasRequest:
    """A condition to paint."""

    prior: str
    """Name of the prior."""
    condition: str
    """segmentation, depth or pose."""

    def __post_init__(self) -> None:
        check_fields(self)


def canvas(contents: Contents, request: CanvasRequest) -> Event:
    """Describe what a condition is painted with.

    Returns:
        ``resolution``, the side of a map in pixels; ``colors`` of labels or of levels of depth; or ``joints`` by name,
        their ``standing`` positions in pixels, and the ``limbs`` between them with their ``limb_colors`` and
        ``limb_width`` in pixels.

    Raises:
        UserError: The prior has no such condition, or its tokenizer is unknown.
    """
    config = contents.condition_tokenizer(request.prior, request.condition).config
    side = config.resolution
    if config.modality == "pose":
        return {
            "resolution": side,
            "joints": list(JOINTS),
            "standing": [[x * side, y * side] for x, y in _STANDING],
            "limbs": [list(limb) for limb in LIMBS],
            "limb_colors": [list(color) for color in LIMB_COLORS],
            "limb_width": max(1, round(side * LIMB_WIDTH)),
        }
    values = np.arange(config.n_labels or _LEVELS + 1, dtype=np.uint8)[None, None]
    return {"resolution": side, "colors": colorize(_as_input(values, config.modality))[0, 0].tolist()}


@dataclass(frozen=True, kw_only=True, slots=True)
class MapsRequest(CanvasRequest):
    """Maps of validation pictures to start from."""

    page: int = 0
    """Index of the page."""
    count: int = 12
    """Maps per page."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.page >= 0, "page", self.page, "use 0 or more")
        require(1 <= self.count <= _MOST, "count", self.count, f"use 1 to {_MOST}")


def validation_maps(contents: Contents, request: MapsRequest) -> Event:
    """Decode the maps of validation pictures. The rows of a page are evenly spaced, because rows are sorted by class.

    Returns:
        The number of ``pages``; ``maps`` with ``key``, ``codes`` [h·w], the ``picture`` in colours and the ``values``
        as in :class:`MapRequest` (null for poses); ``counts``, the pixels of each label in these maps (empty for
        others); and the usual ``top`` and ``bottom`` of a pose in pixels.

    Raises:
        UserError: The prior has no such condition, its tokenizer is unknown, or a shard is damaged.
    """
    tokenizer, name = contents.condition_tokenizer(request.prior, request.condition), contents.shards_of(request.prior)
    dataset = contents.dataset(name) if name else None
    total = dataset.rows("val") if dataset and "val" in dataset.splits else 0
    pages = -(-total // request.count)
    indices = np.arange(request.page, total, max(1, pages))
    if dataset is None or not len(indices):
        return {"pages": pages, "maps": [], "counts": [], **_extent(np.empty(0))}
    found = read_rows(dataset, "val", ["key", column := f"cond_{request.condition}"], indices)
    maps = decode_few(tokenizer.loaded, found[column].reshape(-1, *tokenizer.config.grid))
    values = [None] * len(maps) if maps.ndim == 4 else [_values(one) for one in maps]
    n_labels = tokenizer.config.n_labels
    return {
        "pages": pages,
        "maps": [
            {"key": str(key), "codes": codes.tolist(), "picture": picture, "values": value}
            for key, codes, picture, value in zip(
                found["key"], found[column], uris(maps, exact=True), values, strict=True
            )
        ],
        "counts": np.bincount(maps.ravel(), minlength=n_labels).tolist() if n_labels else [],
        **_extent(maps if maps.ndim == 4 else np.empty(0)),
    }


def _extent(poses: npt.NDArray[Any]) -> dict[str, float | None]:
    """Median top and bottom of drawn poses [N, H, W, 3] in pixels; None without any."""
    rows = [np.flatnonzero(pose.max(2).max(1) > _BRIGHT) for pose in poses]
    ends = [(found[0], found[-1]) for found in rows if len(found)]
    top, bottom = np.median(ends, 0).tolist() if ends else (None, None)
    return {"top": top, "bottom": bottom}


@dataclass(frozen=True, kw_only=True, slots=True)
class MapRequest(CanvasRequest):
    """A painted map."""

    values: str = ""
    """Labels or levels of depth, one byte per pixel in raster order, in base64."""
    joints: list[list[float]] | None = None
    """Joints of a pose as x and y in pixels; -1 and -1 for a joint that is missing."""

    def __post_init__(self) -> None:
        check_fields(self)


def encode_map(contents: Contents, request: MapRequest) -> Event:
    """Encode a painted map.

    Returns:
        ``codes`` [h·w] in raster order, what they decode to (``seen``), and the map as a PNG (``file``): labels, levels
        of depth, or a drawn pose.

    Raises:
        UserError: The prior has no such condition, or the map does not fit its tokenizer.
    """
    tokenizer = contents.condition_tokenizer(request.prior, request.condition)
    modality, side = tokenizer.config.modality, tokenizer.config.resolution
    pixels = _drawn(request, side) if modality == "pose" else _painted(request, side)
    codes_Nhw = tokenizer.loaded.encode([_as_input(pixels, modality)])
    return {
        "codes": codes_Nhw.reshape(-1).tolist(),
        "seen": uris(decode_few(tokenizer.loaded, codes_Nhw), exact=True)[0],
        "file": f"data:image/png;base64,{base64.b64encode(png_bytes(Image.fromarray(pixels))).decode()}",
    }


def _painted(request: MapRequest, side: int) -> npt.NDArray[np.uint8]:
    content = read_bytes(f"data:;base64,{request.values}")
    if len(content) != side * side:
        raise UserError(
            f"the map has {len(content)} pixels: {request.prior} takes {request.condition} of {side}×{side}"
        )
    return np.frombuffer(content, np.uint8).reshape(side, side)


def _drawn(request: MapRequest, side: int) -> npt.NDArray[np.uint8]:
    joints = request.joints or []
    if len(joints) != len(JOINTS) or any(len(joint) != 2 or not np.isfinite(joint).all() for joint in joints):
        raise UserError(f"the pose has {len(joints)} joints: send {len(JOINTS)} with x and y in pixels")
    if (highest := np.max(joints)) >= side:
        raise UserError(f"a joint is at {highest:g}: the picture has {side}×{side} pixels")
    return np.array(draw_pose(np.array(joints, np.float32), (0, 0, side, side), side))


def _as_input(pixels: npt.NDArray[np.uint8], modality: str) -> npt.NDArray[Any]:
    """Pixels of a map as its tokenizer takes them."""
    return pixels.astype(np.float32) / _LEVELS if modality == "depth" else pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadRequest(CanvasRequest):
    """A mask or depth map of the person."""

    picture: str
    """Data URI of a PNG as a dataset stores it: labels, or depth in any unit."""

    def __post_init__(self) -> None:
        check_fields(self)


def read_upload(contents: Contents, request: UploadRequest) -> Event:
    """Read a map as the dataset of the tokenizer is read: cut to a square, depth scaled to its range.

    Returns:
        The ``values`` as in :class:`MapRequest`.

    Raises:
        UserError: It is no picture, has too many pixels, or holds what such a map cannot.
    """
    config = contents.condition_tokenizer(request.prior, request.condition).config
    if config.modality == "pose":
        raise UserError("a pose is drawn by its joints: drag them, or choose a validation pose")
    size = read_picture_as(request.picture, upright_size)
    try:
        with decoding:
            found = read_map(config.modality, Memory("map.png", read_bytes(request.picture)), size, config.n_labels)
    except Exception as error:  # decoders raise anything on broken files
        raise UserError(f"the map cannot be read: {error}") from error
    image = found.unit if isinstance(found, DepthMap) else found
    window = CENTRE.window(*size, config.geometry)
    return {"values": _values(cut(config.modality, image, config.resolution, window, size))}


def _values(pixels: npt.NDArray[Any]) -> str:
    """Labels, or depth in [0, 1], as values in base64: browsers that guard privacy alter pixels that a page reads."""
    levels = pixels if pixels.dtype == np.uint8 else np.rint(pixels.clip(0, 1) * _LEVELS).astype(np.uint8)
    return base64.b64encode(levels.tobytes()).decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptRequest:
    """Pictures whose drawing in Python is asked for."""

    draw: DrawRequest
    """What was drawn."""
    painted: list[str]
    """Conditions whose map was painted; it is read from a file in the script."""

    def __post_init__(self) -> None:
        check_fields(self)


def script(contents: Contents, request: ScriptRequest) -> Event:
    """Write Python code that draws the same codes.

    Returns:
        The ``script``; empty if a condition is taken from validation rows.

    Raises:
        UserError: The prior has no such condition, or its tokenizer is unknown.
    """
    drawn = request.draw
    prior, shards = contents.prior(drawn.prior), shards_elsewhere(contents, drawn.prior)
    conditions: dict[str, str] = {}
    lines: list[str] = []
    for part in prior.sequence.conditions:
        if part.name == "class":
            conditions["class"] = repr(drawn.conditions.get("class", [i % part.vocabulary for i in range(drawn.n)]))
            continue
        if part.name not in drawn.conditions:
            return {"script": ""}
        lines += _codes_lines(contents, request, part.name)
        conditions[part.name] = f"np.stack([{part.name}] * {drawn.n})"
    defaults, chosen = asdict(SampleConfig()), asdict(sampling_of(contents, drawn))
    settings = "".join(f", {name}={value!r}" for name, value in chosen.items() if value != defaults[name])
    pairs = ", ".join(f'"{name}": {value}' for name, value in conditions.items())
    lines += [
        f"prior = ip.load_prior({contents.typed[drawn.prior]!r}{f', shards={shards!r}' if shards else ''})",
        f"samples = prior.sample({drawn.n}, condition={{{pairs}}}{settings})",
        'samples[0].save("sample.png")',
    ]
    heads = ["import numpy as np", "from PIL import Image", "", "import imagepriors as ip", ""]
    return {"script": "\n".join(heads + lines)}


def _codes_lines(contents: Contents, request: ScriptRequest, name: str) -> list[str]:
    """Python code that makes the codes of a condition: of a saved map, or as they are."""
    if name not in request.painted:
        return [f"{name} = np.array({request.draw.conditions[name]})"]
    tokenizer = contents.condition_tokenizer(request.draw.prior, name)
    typed = contents.typed[contents.fingerprints[tokenizer.fingerprint]]
    opened = {
        "segmentation": f'np.asarray(Image.open("{name}.png"))',
        "depth": f'np.asarray(Image.open("{name}.png"), np.float32) / {_LEVELS}',
        "pose": f'"{name}.png"',
    }[tokenizer.config.modality]
    return [f"tokenizer = ip.load_tokenizer({typed!r})", f"{name} = tokenizer.encode({opened})"]
