"""One image file as pixels, by the code that a bundle's user runs: what is trained on is what is read on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError

SUFFIXES = picture.SUFFIXES
MIN_SIDE_PX = picture.MIN_SIDE_PX


def read_image(path: Path, size: int, channels: int) -> np.ndarray[Any, Any]:
    """uint8 [S, S, C]: upright, scaled (bilinear) so that the shorter side is S, cut in the middle.

    What becomes of transparency, 16 bits and animations: `device.payload.picture`.

    Args:
        path: of a file in one of ``picture.FORMATS``, by its content; its name doesn't matter.
        size: S.
        channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        DataError: it is no such image, is cut off, has 32 bits a value, a side of less than MIN_SIDE_PX, or would
            unpack to more pixels than Pillow takes for harmless (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    try:
        return picture.read(path, size, size, channels)
    except ValueError as error:
        message = f"data.root: {error}"
        raise DataError(message) from error
