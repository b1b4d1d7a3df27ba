"""One image file as pixels, the same on a device as in training. Needs numpy and Pillow.

H W height and width, C channels. What a viewer shows is what is read:

- A photo is turned upright, as its EXIF orientation says.
- Transparency is laid on white.
- 16 bits of grey are scaled by the file's bit depth, whatever range of it is used: 65535 is white (4095 in a TIFF of
  12 bits).
- Of an animation or of several pages, the first one is read.
- CMYK becomes red, green and blue without a colour profile; profiles are not applied.

Images of 32 bits a value have no agreed white and are refused. Only the formats of FORMATS are opened, whatever the
file is called, so that no other program is ever started for one.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy
    from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
"""Pillow's names of what is read."""
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif"}
)
"""What files of these formats are called."""
MIN_SIDE_PX = 4
"""Less is no picture of anything, but the trace of a failed download or conversion."""
_TIFF_BITS, _TIFF_WHITE = 258, 262  # tags: BitsPerSample; PhotometricInterpretation, where 0 says that 0 is white
_OTHERS = {
    b"%PDF": "PDF", b"<html": "an HTML page", b"<!doctype html": "an HTML page", b"<svg": "SVG", b"<?xml": "XML",
    b"pk\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"version https://git-lfs": "a Git LFS pointer",
}  # fmt: skip


def read(path: Path, width: int, height: int, channels: int) -> numpy.ndarray:
    """uint8 [H, W, C]: upright, scaled (bilinear) so that it covers the size, what is too much cut off on both sides.

    Raises:
        ValueError: it is no image of FORMATS, is cut off, has 32 bits a value or a side of less than MIN_SIDE_PX, or
            would unpack to more pixels than Pillow takes for harmless (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    import numpy
    from PIL import Image, ImageOps

    name = os.fsencode(path).decode("utf-8", "backslashreplace")
    if not path.is_file():  # a pipe would be waited for
        message = f"{name} can't be read as an image: it is no regular file"
        raise ValueError(message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; what matters is raised
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(path) as image:
                small = min(image.size) < MIN_SIDE_PX
                plain = image if small else _plain(image, "L" if channels == 1 else "RGB")
    except Exception as error:  # decoders' exceptions have no common base but Exception
        reason = str(error).rstrip(".") or type(error).__name__
        message = f"{name} can't be read as an image: {reason}"
        raise ValueError(message) from error
    if small:
        wide, high = plain.size
        message = f"{name} is an image of {wide}x{high} pixels; each side must have {MIN_SIDE_PX} or more"
        raise ValueError(message)
    fitted = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
    return numpy.asarray(fitted).reshape(height, width, channels)


def _open(path: Path) -> Image.Image:
    """The image, not decoded yet."""
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        kind = _kind(path)
        message = f"its content is {kind}" if kind else "it is damaged, or none of " + ", ".join(FORMATS)
        raise ValueError(message) from None


def _kind(path: Path) -> str | None:
    """What a file that isn't read is, by its first bytes alone."""
    from PIL import Image

    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "empty"
    if start[4:8] == b"ftyp" and start[8:12] in {b"heic", b"heix", b"mif1", b"heif", b"hevc"}:
        return "HEIC, which must be converted first"
    for prefix, name in _OTHERS.items():
        if start.lower().startswith(prefix.lower()):
            return name
    for name, (_, accepts) in Image.OPEN.items():
        if name not in FORMATS and accepts and accepts(start) is True:
            return f"{name}, which is not read"
    return None


def _upright(image: Image.Image) -> Image.Image:
    """The image, decoded, as its EXIF orientation says; as stored where its EXIF data is damaged."""
    from PIL import Image

    image.load()  # before the look: Pillow turns some formats itself, and then says so
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # whatever a damaged block of metadata leads to
        return image
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[orientation]) if orientation in turns else image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image, decoded and upright, in 8 bits of grey (L) or colour (RGB)."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        message = f"it has 32 bits a value (Pillow's mode {image.mode}), of which none is white by agreement; "
        message += "save it with 8 or 16"
        raise ValueError(message)
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    full, is_negative = 2 ** tags.get(_TIFF_BITS, (16,))[0] - 1, tags.get(_TIFF_WHITE) == 0
    image = _upright(image)
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        image = _eight_bits(image, full, is_negative, clear)
    elif image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or clear is not None:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", coloured.size, "white")
        image.paste(coloured, mask=coloured)
    return image.convert(mode)


def _eight_bits(image: Image.Image, full: int, is_negative: bool, clear: int | None) -> Image.Image:
    """Grey from 0 to ``full`` as 0 to 255; in a negative 0 is white. The value ``clear`` is transparent."""
    import numpy
    from PIL import Image

    stored = numpy.asarray(image)
    grey = stored.astype(numpy.float32)
    grey *= numpy.float32(255 / full)
    numpy.rint(grey, out=grey)
    found = grey.clip(0, 255, out=grey).astype(numpy.uint8)
    if is_negative:
        found = 255 - found
    if clear is not None:
        found[stored == clear] = 255
    return Image.fromarray(found)
