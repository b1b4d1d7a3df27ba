"""One image file as pixels, the same on a device as in training; and where in it a network's input lies.

Needs numpy and Pillow. H W height and width, C channels. What a viewer shows is what is read:

- A photo is turned upright, as its EXIF orientation says.
- Transparency is laid on white.
- 16 bits of grey are scaled by the file's bit depth, whatever range of it is used: 65535 is white (4095 in a TIFF of
  12 bits).
- Of an animation or of several pages, the first one is read.
- CMYK becomes red, green and blue without a colour profile; profiles are not applied.

Images of 32 bits a value have no agreed white and are refused. Only the formats of FORMATS are opened, whatever the
file is called, so that no other program is ever started for one.

A picture is brought to the input's size in one of three ways (FITS):

- cut: scaled so that it covers the input; what is too much is cut off evenly on both sides.
- letterbox: scaled so that the whole of it fits in; what is left is grey (PAD), evenly on both sides.
- stretch: height and width are scaled on their own.

Places are in pixels from the left and the top edge: pixel 0 reaches from 0 to 1.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

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


FITS = ("cut", "letterbox", "stretch")
PAD = 114
"""The byte around a picture in a letterbox, in every channel: what YOLO networks are trained with."""


class Placement(NamedTuple):
    """``box``: the part of the picture that is used (left, top, right, bottom); ``at``: where it lies in the input."""

    box: tuple[float, float, float, float]
    at: tuple[int, int, int, int]


def read(path: Path, width: int, height: int, channels: int, fit: str = "cut") -> numpy.ndarray:
    """uint8 [H, W, C]: upright, scaled (bilinear) and fitted to the size, as FITS says.

    Raises:
        ValueError: as `load`.
    """
    return _put(decoded(path, channels), channels, width, height, fit, PAD, _bilinear())


def load(path: Path, channels: int) -> numpy.ndarray:
    """uint8 [H, W, C], upright and of its own size.

    Raises:
        ValueError: as `decoded`.
    """
    import numpy

    image = decoded(path, channels)
    return numpy.asarray(image).reshape(image.height, image.width, channels)


def decoded(path: Path, channels: int) -> Image.Image:
    """The image upright and of its own size, in 8 bits of grey (1 channel) or colour.

    Raises:
        ValueError: it is no image of FORMATS, is cut off, has 32 bits a value or a side of less than MIN_SIDE_PX, or
            would unpack to more pixels than Pillow takes for harmless (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    from PIL import Image

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
                found = image if small else upright(image, "L" if channels == 1 else "RGB")
    except Exception as error:  # decoders' exceptions have no common base but Exception
        reason = str(error).rstrip(".") or type(error).__name__
        message = f"{name} can't be read as an image: {reason}"
        raise ValueError(message) from error
    wide, high = found.size
    if small:
        message = f"{name} is an image of {wide}x{high} pixels; each side must have {MIN_SIDE_PX} or more"
        raise ValueError(message)
    return found


def placement(size: tuple[int, int], width: int, height: int, fit: str) -> Placement:
    """Where the parts of a picture (``size``: its width and height) lie in an input of this width and height."""
    wide, high = size
    if fit == "cut":
        used_wide, used_high = min(wide, high * width / height), min(high, wide * height / width)
        left, top = (wide - used_wide) / 2, (high - used_high) / 2
        return Placement((left, top, left + used_wide, top + used_high), (0, 0, width, height))
    whole = (0.0, 0.0, float(wide), float(high))
    if fit == "stretch":
        return Placement(whole, (0, 0, width, height))
    if fit != "letterbox":
        message = f"there is no fit {fit!r}; known: {', '.join(FITS)}"
        raise ValueError(message)
    scale = min(width / wide, height / high)
    inner_wide, inner_high = max(1, round(wide * scale)), max(1, round(high * scale))
    left, top = (width - inner_wide) // 2, (height - inner_high) // 2
    return Placement(whole, (left, top, left + inner_wide, top + inner_high))


def fitted(pixels: numpy.ndarray, width: int, height: int, fit: str, pad: int = PAD) -> numpy.ndarray:
    """Bytes uint8 [H, W, C] of the size asked for, of a picture's, scaled (bilinear). ``pad``: around a letterbox."""
    return _put(_image(pixels), pixels.shape[2], width, height, fit, pad, _bilinear())


def fitted_mask(mask: numpy.ndarray, width: int, height: int, fit: str, pad: int) -> numpy.ndarray:
    """A mask uint8 [H, W] as `fitted`, but each pixel has the value of the nearest one."""
    from PIL import Image

    return _put(_image(mask[..., None]), 1, width, height, fit, pad, Image.Resampling.NEAREST)[..., 0]


def to_input(boxes: numpy.ndarray, size: tuple[int, int], width: int, height: int, fit: str) -> numpy.ndarray:
    """Boxes [..., 4] (left, top, right, bottom) or points [..., 2] of a picture, in pixels of the network's input.

    They may reach beyond the input. ``size``: the picture's width and height, upright.
    """
    scale, shift = _map(boxes, placement(size, width, height, fit))
    found: numpy.ndarray = boxes * scale + shift
    return found


def to_picture(boxes: numpy.ndarray, size: tuple[int, int], width: int, height: int, fit: str) -> numpy.ndarray:
    """What undoes `to_input`: boxes or points of the network's input in pixels of the picture, cut at its edges."""
    import numpy

    scale, shift = _map(boxes, placement(size, width, height, fit))
    edge = numpy.tile(numpy.array(size, boxes.dtype), boxes.shape[-1] // 2)
    found: numpy.ndarray = numpy.clip((boxes - shift) / scale, 0, edge)
    return found


def mask_to_picture(mask: numpy.ndarray, size: tuple[int, int], fit: str, outside: int) -> numpy.ndarray:
    """A mask uint8 [H, W] of the network's input, for each pixel of the picture: that of the nearest one.

    ``size``: the picture's width and height. ``outside``: the value of pixels that the input doesn't show.
    """
    import numpy

    height, width = mask.shape
    scale, shift = _map(numpy.zeros(2), placement(size, width, height, fit))
    x, y = (
        numpy.floor((numpy.arange(n) + 0.5) * k + d).astype(int) for n, k, d in zip(size, scale, shift, strict=True)
    )
    found: numpy.ndarray = mask[y.clip(0, height - 1)][:, x.clip(0, width - 1)]
    found[(y < 0) | (y >= height)] = outside
    found[:, (x < 0) | (x >= width)] = outside
    return found


def _map(boxes: numpy.ndarray, placed: Placement) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Scale and shift of x, y, x, y ... from the picture to the input."""
    import numpy

    (left, top, right, bottom), at = placed
    scale = numpy.array([(at[2] - at[0]) / (right - left), (at[3] - at[1]) / (bottom - top)])
    shift = numpy.array(at[:2]) - numpy.array([left, top]) * scale
    times = boxes.shape[-1] // 2
    return numpy.tile(scale, times).astype(boxes.dtype), numpy.tile(shift, times).astype(boxes.dtype)


def _bilinear() -> Any:
    from PIL import Image

    return Image.Resampling.BILINEAR


def _image(pixels: numpy.ndarray) -> Image.Image:
    """Of bytes [H, W, 1 or 3]."""
    import numpy
    from PIL import Image

    return Image.fromarray(numpy.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]))


def _put(
    image: Image.Image, channels: int, width: int, height: int, fit: str, pad: int, resample: Any
) -> numpy.ndarray:
    import numpy

    box, (left, top, right, bottom) = placement(image.size, width, height, fit)
    inner = numpy.asarray(image.resize((right - left, bottom - top), resample, box=box))
    inner = inner.reshape(bottom - top, right - left, channels)
    if inner.shape[:2] == (height, width):
        return inner
    found = numpy.full((height, width, channels), pad, "uint8")
    found[top:bottom, left:right] = inner
    return found


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


def orientation(image: Image.Image) -> int:
    """What its EXIF data says, 1 to 8: how it must be turned or mirrored; 1 where it says nothing, or is damaged."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # whatever a damaged block of metadata leads to
        return 1
    return found if found in range(1, 9) else 1


def turned(image: Image.Image, how: int) -> Image.Image:
    """The image upright, if its EXIF orientation is this."""
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    return image.transpose(turns[how]) if how in turns else image


def upright(image: Image.Image, mode: str) -> Image.Image:
    """The image, decoded and turned as its EXIF data says, in 8 bits of grey (L) or colour (RGB).

    Raises:
        ValueError: as `plain`.
    """
    found = plain(image, mode)  # before the look: Pillow turns some formats when it decodes them, and then says so
    return turned(found, orientation(image))


def plain(image: Image.Image, mode: str) -> Image.Image:
    """The image, decoded, in 8 bits of grey (L) or colour (RGB).

    Raises:
        ValueError: it has 32 bits a value.
    """
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        message = f"it has 32 bits a value (Pillow's mode {image.mode}), of which none is white by agreement; "
        message += "save it with 8 or 16"
        raise ValueError(message)
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    full, is_negative = 2 ** tags.get(_TIFF_BITS, (16,))[0] - 1, tags.get(_TIFF_WHITE) == 0
    image.load()
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        image = _eight_bits(image, full, is_negative, clear)
    elif image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or clear is not None:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", coloured.size, "white")
        image.paste(coloured, mask=coloured)
    return image if image.mode == mode else image.convert(mode)


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
