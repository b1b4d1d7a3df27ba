"""The masks of single objects, drawn when they are taken: outlines, run lengths, or stored ones.

N objects, H W height and width of the picture, upright.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image

from deploy_prune.data.pictures import Array, Size, array_digest
from deploy_prune.device.payload import picture

MIN_POINTS: Final = 3
"""Of an outline."""
REACH: Final = 1.0
"""How far an outline may reach out of its picture: so many times its sides. It takes memory to draw."""


class Instances(Protocol):
    """The masks of a picture's objects."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of them."""

    def drawn(self) -> Array:
        """uint8 [N, H, W], 0 or 1."""

    def kept(self, is_kept: Array) -> Instances:
        """Those of some objects alone; ``is_kept``: bool [N]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlines:
    """Shapes as COCO has them, one an object: outlines [x, y, x, y, ...], or run lengths {"size", "counts"}.

    ``size``: width and height of the picture they are drawn on, as stored; ``orientation``: how that is turned then.
    """

    shapes: tuple[Any, ...]
    size: Size
    orientation: int

    @property
    def digest(self) -> bytes:
        """SHA-256 of shapes, size and orientation."""
        return hashlib.sha256(json.dumps([self.shapes, self.size, self.orientation]).encode()).digest()

    def drawn(self) -> Array:
        """uint8 [N, H, W], 0 or 1."""
        wide, high = self.size
        whole = (Image.fromarray(_drawn(shape, self.size)) for shape in self.shapes)
        found = [np.asarray(picture.turned(image, self.orientation)) for image in whole]
        turned = (wide, high) if self.orientation in {5, 6, 7, 8} else (high, wide)
        return np.stack(found) if found else np.zeros((0, *turned), np.uint8)

    def kept(self, is_kept: Array) -> Outlines:
        """Those of some objects alone; ``is_kept``: bool [N]."""
        shapes = tuple(shape for shape, yes in zip(self.shapes, is_kept.tolist(), strict=True) if yes)
        return Outlines(shapes=shapes, size=self.size, orientation=self.orientation)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredInstances:
    """Masks in memory: uint8 [N, H, W], 0 or 1."""

    stored: Array

    @property
    def digest(self) -> bytes:
        """SHA-256 of shape and bytes."""
        return array_digest(self.stored)

    def drawn(self) -> Array:
        """uint8 [N, H, W], 0 or 1."""
        return self.stored

    def kept(self, is_kept: Array) -> StoredInstances:
        """Those of some objects alone; ``is_kept``: bool [N]."""
        return StoredInstances(stored=self.stored[is_kept])


def _drawn(shape: Any, size: Size) -> Array:
    """uint8 [H, W] of one object, by COCO's own program.

    Raises:
        ValueError: the run lengths are damaged.
    """
    from pycocotools import mask

    runs = mask.frPyObjects(shape, size[1], size[0]) if not _is_packed(shape) else shape
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of how it asks numpy for an array
        found: Array = mask.decode(mask.merge(runs) if isinstance(runs, list) else runs)
    return found


def _is_packed(shape: Any) -> bool:
    return isinstance(shape, dict) and isinstance(shape["counts"], str)


def fault_of_shape(shape: Any, size: Size) -> str | None:
    """What is wrong with an object's shape on a picture of this width and height; None if nothing is."""
    if isinstance(shape, dict):
        return _fault_of_runs(shape, size)
    if not isinstance(shape, list) or not shape:
        return "has no outline"
    if not all(_is_outline(outline, size) for outline in shape):
        return f"has an outline that is not {MIN_POINTS} or more pairs of numbers near its picture"
    return None


def _fault_of_runs(shape: dict[str, Any], size: Size) -> str | None:
    counts = shape.get("counts")
    if shape.get("size") != [size[1], size[0]]:
        return f"has run lengths of another size than [{size[1]}, {size[0]}]"
    if isinstance(counts, str):
        try:
            _drawn(shape, size)
        except ValueError:
            return "has damaged run lengths"
        return None
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return None if whole and sum(counts or ()) == size[0] * size[1] else "has run lengths that don't add up"


def _is_outline(outline: Any, size: Size) -> bool:
    if not isinstance(outline, Sequence) or len(outline) < 2 * MIN_POINTS or len(outline) % 2:
        return False
    if not all(isinstance(value, int | float) for value in outline):
        return False
    reach = [REACH * side for side in size]
    return all(-reach[i % 2] <= value <= size[i % 2] + reach[i % 2] for i, value in enumerate(outline))
