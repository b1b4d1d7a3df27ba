"""Read an image file, by the code that a bundle's user runs: training and device see the same pixels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError

SUFFIXES = picture.SUFFIXES
MIN_SIDE_PX = picture.MIN_SIDE_PX


def read_image(path: Path, size: tuple[int, int], channels: int) -> np.ndarray[Any, Any]:
    """uint8 [H, W, C]: upright, scaled (bilinear) so that it covers H x W, cut in the middle.

    What becomes of transparency, 16 bits and animations: `device.payload.picture`.

    Args:
        path: of a file in one of ``picture.FORMATS``, by its content; its name doesn't matter.
        size: H and W.
        channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        DataError: it is no such image, is cut off, has 32 bits a value, a side of less than MIN_SIDE_PX, or would
            unpack to more pixels than Pillow takes for harmless (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    try:
        return picture.read(path, size[1], size[0], channels)
    except ValueError as error:
        message = f"data.root: {error}"
        raise DataError(message) from error


def read_mask(path: Path, orientation: int = 1) -> np.ndarray[Any, Any]:
    """int32 [H, W]: a mask's values as they are stored, of a palette's colours their numbers.

    ``orientation``: by which it is turned as a photo is (EXIF, 1 to 8).

    Raises:
        ValueError: it is no image, is damaged, has colours instead of values, or was compressed with losses.
    """
    try:
        if not path.is_file():
            message = "it is no regular file"
            raise ValueError(message)
        Image.init()
        formats = [name for name in picture.FORMATS if name in Image.OPEN]
        bomb = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
        with bomb, Image.open(path, formats=formats) as image:
            kind = image.format
            values = np.asarray(picture.turned(image, orientation))
    except Exception as error:  # decoders' exceptions have no common base
        message = f"{path} can't be read as a mask: {str(error).rstrip('.') or type(error).__name__}"
        raise ValueError(message) from error
    if values.ndim == 3 and (values[..., :1] == values[..., : min(values.shape[2], 3)]).all():
        values = values[..., 0]  # grey, stored as colour
    problem = None
    if values.ndim == 3 or values.dtype.kind == "f":
        problem = "has colours or fractions; a mask's values must be classes' numbers"
    elif kind == "JPEG":
        problem = "is a JPEG, which changes a mask's values; save it as PNG"
    if problem:
        message = f"{path} {problem}"
        raise ValueError(message)
    return values.astype(np.int32)
