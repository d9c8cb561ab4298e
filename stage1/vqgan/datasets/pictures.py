"""The one place where picture files are opened: which formats, and which way up."""

import functools
import io
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its suffix. It starts another program for PostScript, and its decoders of
rare formats are little used; a JPEG may be an MPO, and PPM is PBM, PGM and PFM as well."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → what puts the picture upright; every other value means that it is."""
_SIDEWAYS = tuple(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
"""Chunks of a PNG that decide its pixels and which way up they are."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(file: BinaryIO) -> Image.Image:
    """Open a picture of one of the FORMATS; use it as a context manager.

    Args:
        file: The bytes, seekable.

    Raises:
        Exception: what Pillow raises for bytes that are no picture or announce too many pixels.
    """
    try:
        image = Image.open(file, formats=_formats())
        if image.format == "PNG":
            image.load()  # a chunk after the pixels may be the one that Pillow refuses
    except (ValueError, OSError) as error:
        file.seek(0)
        data = file.read()
        if not data.startswith(_PNG):
            if isinstance(error, UnidentifiedImageError):  # whose message has an address, another one in each process
                raise OSError(f"cannot identify image file: it is none of {', '.join(_formats())}") from error
            raise
        image = Image.open(io.BytesIO(_pixels_alone(data)), formats=("PNG",))
    return image


def _pixels_alone(png: bytes) -> bytes:
    """A PNG without its texts and colour profile, for which Pillow refuses the whole where they are long or broken."""
    kept, place = [_PNG], len(_PNG)
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] in _PNG_PIXELS:
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of what `upright` gives; of an image that has not been loaded."""
    size = image.size
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]  # some versions of Pillow swap `size` before loading, some not
        size = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    return size[::-1] if _method(image) in _SIDEWAYS else size


def upright(image: Image.Image) -> Image.Image:
    """The decoded image, transposed as its EXIF orientation says; its metadata are not touched."""
    method = None if image.format == "TIFF" else _method(image)  # Pillow transposes TIFFs itself
    image.load()
    return image if method is None else image.transpose(method)


def _method(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - odd metadata raise anything, and the pixels may be whole
        return None
