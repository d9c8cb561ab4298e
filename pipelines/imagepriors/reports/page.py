"""Self-contained HTML pages: templates, embedded pictures, and the style that all pages share."""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

_CRISP = 96
"""Pictures up to this side in pixels are embedded without loss and enlarged without smoothing."""
_QUALITY = 85
"""WebP quality of larger pictures and of animations."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a page embeds it."""

    uri: str
    """Data URI."""
    width: int
    """Width in pixels."""
    height: int
    """Height in pixels."""
    alt: str
    """Description for those who do not see the picture."""
    caption: str = ""
    """Text below the picture."""
    crisp: bool = True
    """Whether to enlarge it without smoothing."""


def embed(pixels: npt.NDArray[np.uint8], alt: str, caption: str = "", *, crisp: bool = False) -> Picture:
    """Embed an RGB picture [H, W, 3] as WebP, without loss if it is small or `crisp`."""
    height, width, _ = pixels.shape
    crisp = crisp or max(height, width) <= _CRISP
    content = _webp(pixels, {"lossless": True, "quality": 0, "method": 1} if crisp else {"quality": _QUALITY})
    return Picture(_uri("webp", content), width, height, alt, caption, crisp)


def embed_frames(frames: Sequence[npt.NDArray[np.uint8]], alt: str, caption: str = "") -> Picture:
    """Embed the frames [H, W, 3] of an animation as one picture, one below the other."""
    height, width, _ = frames[0].shape
    content = _webp(np.concatenate(frames), {"quality": _QUALITY})
    return Picture(_uri("webp", content), width, height * len(frames), alt, caption, crisp=width <= _CRISP)


def embed_png(content: bytes, alt: str) -> Picture:
    """Embed the bytes of a PNG as they are."""
    width, height = struct.unpack(">II", content[16:24])  # of the header, which comes first
    return Picture(_uri("png", content), width, height, alt, crisp=False)


def _webp(pixels: npt.NDArray[np.uint8], options: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render(template: str, **values: Any) -> bytes:
    """Render a template of this package with these values, which are escaped."""
    environment = Environment(
        loader=PackageLoader("imagepriors.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{template}.html.jinja").render(values).encode()


def render_page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Mapping[str, Any]]) -> bytes:
    """Render a page of facts and sections.

    Args:
        title: Title of the page.
        facts: Name and value of each line of the table at the top.
        sections: Each with title and text, and optionally files (name → PNG bytes), tiles (:class:`Picture`),
            chart (:class:`.Chart`) and rows (a table).
    """
    empty: dict[str, Any] = {"files": {}, "tiles": [], "chart": None, "rows": []}
    filled = [empty | dict(section) for section in sections]
    for section in filled:
        section["images"] = [embed_png(png, f"{section['title']}: {name}") for name, png in section["files"].items()]
    return render("sections", title=title, facts=facts, sections=filled)
