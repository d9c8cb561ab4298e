"""Opening image files, and only here: formats, orientation, and the meaning of pixel values."""

import functools
import io
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may recognise, whatever the suffix. Of others, PostScript starts another program, and decoders of
rare formats are little tested. JPEG includes MPO, and PPM includes PBM, PGM and PFM."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → the transposition that makes the image upright; with any other value it is upright."""
_SIDEWAYS = tuple(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE = 256, 257, 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, (1,)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")
"""Chunks of a PNG that determine its pixels and their orientation."""


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(file: BinaryIO, most_pixels: int | None = None) -> Image.Image:
    """Open an image of one of the FORMATS; use it as a context manager.

    Args:
        file: The bytes, seekable.
        most_pixels: Pixels that the image may have; None: as many as Pillow allows. No pixel of a larger image is
            decoded.

    Raises:
        Exception: Pillow's, for bytes that are not an image; or it declares too many pixels.
    """
    try:
        image = _checked(Image.open(file, formats=_formats()), most_pixels)
        if image.format == "PNG":
            image.load()  # Pillow may refuse a chunk after the pixels
    except (ValueError, OSError) as error:
        file.seek(0)
        data = file.read()
        if not data.startswith(_PNG):
            if isinstance(error, UnidentifiedImageError):  # its message has an address, which differs per process
                raise OSError(f"cannot identify image file: it is not one of {', '.join(_formats())}") from error
            raise
        image = _checked(Image.open(io.BytesIO(_without_metadata(data)), formats=("PNG",)), most_pixels)
    return image


def _checked(image: Image.Image, most_pixels: int | None) -> Image.Image:
    width, height = image.size
    if most_pixels is not None and width * height > most_pixels:
        raise ValueError(f"it has {width:,}×{height:,} pixels; at most {most_pixels // 10**6} megapixels are allowed")
    return image


def _without_metadata(png: bytes) -> bytes:
    """Return a PNG without texts and colour profile: Pillow refuses the whole image if these are long or broken."""
    kept, place = [_PNG], len(_PNG)
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] in _PNG_PIXELS:
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of `upright(image)` in pixels, without loading the image."""
    size = image.size
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]  # some versions of Pillow swap `size` before loading, some not
        size = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    return size[::-1] if _method(image) in _SIDEWAYS else size


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and transpose it as its EXIF orientation says; its metadata do not change."""
    method = None if image.format == "TIFF" else _method(image)  # Pillow transposes TIFFs itself
    image.load()
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Decode an image, upright, to RGB with 8 bits per channel.

    Grey of 12 or 16 bits keeps its upper 8 bits. Palettes and CMYK become RGB by Pillow's rules.

    Args:
        image: The opened image.
        background: Colour behind transparent pixels.

    Raises:
        ValueError: its pixels are floats, or signed or 32-bit integers.
    """
    picture = upright(image)
    if picture.mode == "F" or (picture.mode == "I" and image.format == "TIFF"):
        kind = "floats" if picture.mode == "F" else "signed or 32-bit integers"
        raise ValueError(
            f"its pixels are {kind}, and no rule says which of them are black and white: save it with 8 or 16 bits"
        )
    if picture.mode.startswith("I"):  # Pillow scales those of PGM to 16 bits
        levels = _levels(image, picture)
        grey = Image.fromarray((levels >> (_tiff_tag(image, _TIFF_BITS, (16,))[0] - 8)).astype(np.uint8))
        if "transparency" in picture.info:
            grey.putalpha(Image.fromarray(levels != picture.info["transparency"]).convert("L"))
        picture = grey
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_numbers(image: Image.Image) -> npt.NDArray[Any]:
    """Decode an image, upright, to the numbers of its pixels: grey levels or floats [H, W], or more channels.

    Raises:
        ValueError: it has colours.
    """
    picture = upright(image)
    if picture.mode not in ("P", "RGB"):
        return _levels(image, picture)
    pixels: npt.NDArray[np.uint8] = np.asarray(picture.convert("RGB"))
    if (pixels != pixels[..., :1]).any():
        raise ValueError(f"it has colours (mode {picture.mode}), expected grey levels")
    return pixels[..., 0]


def to_labels(image: Image.Image, file: BinaryIO) -> npt.NDArray[np.uint8]:
    """Decode an image, upright, to labels; this undoes Pillow's scaling of grey with less than 8 bits.

    Args:
        image: The opened image.
        file: Its bytes.

    Raises:
        ValueError: it has more than one number of 8 bits per pixel.
    """
    highest = _highest_grey(image, file)  # before the pixels are loaded
    picture = upright(image)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"mask has mode {picture.mode}, expected one 8-bit label per pixel (L or P)")
    labels: npt.NDArray[np.uint8] = np.asarray(picture)
    if picture.mode == "L" and highest < 255:
        labels = np.round(labels * (highest / 255)).astype(np.uint8)
    return labels


def _highest_grey(image: Image.Image, file: BinaryIO) -> int:
    """Return the stored grey level that Pillow scales to 255."""
    bits = 8
    if image.format == "PPM":
        how = image.tile[0].args  # type: ignore[attr-defined]  # a raw mode, or one with the highest level
        return 255 if isinstance(how, str) else int(how[1])
    if image.format == "PNG":
        file.seek(len(_PNG) + 16)  # skips length and name of the first chunk, width and height
        bits = file.read(1)[0]
    if image.format == "TIFF":
        bits = _tiff_tag(image, _TIFF_BITS, (1,))[0]
    return int(2**bits - 1)


def _levels(image: Image.Image, picture: Image.Image) -> npt.NDArray[Any]:
    """Return the numbers of the upright `picture` of `image`.

    Pillow ignores two tags of TIFFs: 16 bits whose white is 0 are a negative, and 32 bits may be unsigned.
    """
    levels: npt.NDArray[Any] = np.asarray(picture)
    if picture.mode.startswith("I;16") and _tiff_tag(image, _TIFF_PHOTOMETRIC, None) == _WHITE_IS_ZERO:
        levels = np.invert(levels).astype(np.uint16)
    elif picture.mode == "I" and image.format == "TIFF" and _tiff_tag(image, _TIFF_SAMPLE, _UNSIGNED) == _UNSIGNED:
        levels = levels.view(np.uint32)
    return levels


def _tiff_tag(image: Image.Image, number: int, default: Any) -> Any:
    return image.tag_v2.get(number, default) if image.format == "TIFF" else default  # type: ignore[attr-defined]


def _method(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken metadata raise any exception, and the pixels may be intact
        return None
