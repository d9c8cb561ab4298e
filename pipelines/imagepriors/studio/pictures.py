"""Pictures as the page sends and receives them: data URIs."""

import base64
import binascii
import io
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from imagepriors.reports.figures import colorize
from imagepriors.reports.page import embed
from runkit.errors import UserError
from vqgan.data.pictures import open_picture, to_rgb
from vqgan.tokenizer import Tokenizer

_T = TypeVar("_T")
MAX_BYTES = 16 * 2**20
"""Size of a request's body."""
LARGEST_FILE = MAX_BYTES * 3 // 4 - 2**12
"""Size of a picture's file that fits into a request in base64."""
_MAX_PIXELS = 40_000_000
"""Pixels of an uploaded picture: more than most cameras have, and at most 160 MB in memory."""
_MAX_SCANS = 500
"""Scans of a JPEG: cameras and programs write at most some tens, and each takes as long as a whole picture."""
_JPEG, _SCAN = b"\xff\xd8\xff", b"\xff\xda"
"""Begin of a JPEG, also in another format, and of each of its scans."""
_AT_ONCE = 4
"""Pictures that an answer decodes from codes at the same time."""
decoding = threading.Lock()
"""Held while an upload is decoded, so that several at once do not fill the memory."""
_computing = threading.Lock()
"""Held while an answer decodes codes, for the same reason."""


def uris(pictures: npt.NDArray[Any], *, exact: bool = False) -> list[str]:
    """Return pictures of any modality [N, H, W, (3)] as data URIs, small or `exact` ones without loss."""
    return [embed(picture, "", crisp=exact).uri for picture in colorize(pictures)]


def decode_few(tokenizer: Tokenizer, codes_Nhw: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Decode codes in an answer: a few pictures at a time, and for one answer at a time, so that they fit in memory."""
    parts = []
    for start in range(0, len(codes_Nhw), _AT_ONCE):
        with _computing:
            parts.append(tokenizer.decode(codes_Nhw[start : start + _AT_ONCE]))
    return np.concatenate(parts)


def read_bytes(uri: str) -> bytes:
    """Return the bytes of a data URI.

    Raises:
        UserError: It is no data URI in base64.
    """
    head, mark, content = uri.partition(";base64,")
    try:
        if not (head.startswith("data:") and mark):
            raise binascii.Error
        return base64.b64decode(content, validate=True)
    except ValueError:  # binascii.Error, or that of characters that are not ASCII
        raise UserError(f"the picture begins with {uri[:24]!r}: send a data URI in base64") from None


def read_picture(uri: str) -> Image.Image:
    """Decode an uploaded picture to RGB, upright, with the reader of all datasets.

    Raises:
        UserError: It is no picture, is damaged, or has too many pixels.
    """
    return read_picture_as(uri, to_rgb)


def read_picture_as(uri: str, convert: Callable[[Image.Image], _T]) -> _T:
    """Return what `convert` makes of an uploaded picture that is open; errors as :func:`read_picture`."""
    content = read_bytes(uri)
    if _JPEG in content and (scans := content.count(_SCAN)) > _MAX_SCANS:
        raise UserError(f"the picture has {scans} scans: save it again, as a PNG or a JPEG that is not progressive")
    try:
        with decoding, open_picture(io.BytesIO(content), _MAX_PIXELS) as picture:
            return convert(picture)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # decoders raise anything on broken files
        raise UserError(f"the picture cannot be read: {error}") from error
