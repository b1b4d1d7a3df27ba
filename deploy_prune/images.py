"""One image file as pixels. H W height and width of the file's image, S the side of the square that is taken of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

from deploy_prune.errors import DataError

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
MIN_SIDE_PX: Final = 4
"""Less is no picture of anything, but the trace of a failed download or conversion."""


def read_image(path: Path, size: int, channels: int) -> np.ndarray[Any, Any]:
    """uint8 [S, S, C]: scaled (bilinear) so that the shorter side is S, cut in the middle.

    Palettes are resolved, 16 bits of grey become 8, and transparency is left out: a pixel has its own colour. An
    animation's first frame counts.

    Args:
        path: of a file in any format that Pillow knows.
        size: S.
        channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        DataError: it is no image, is cut off, has a side of less than MIN_SIDE_PX, or would unpack to more pixels
            than Pillow takes for harmless (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                plain = _plain(image, "L" if channels == 1 else "RGB")
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        message = f"data.root: {path} can't be read as an image: {reason}"
        raise DataError(message) from error
    if min(plain.size) < MIN_SIDE_PX:
        wide, high = plain.size
        message = f"data.root: {path} is an image of {wide}x{high} pixels; each side must have {MIN_SIDE_PX} or more"
        raise DataError(message)
    fitted = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(size, size, channels)


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image, decoded, in 8 bits of grey or colour."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would cut off at 255
        pixels = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(pixels.round().astype(np.uint8)).convert(mode)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)
