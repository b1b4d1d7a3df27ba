"""A picture's mask of pixels, drawn from the masks of its objects.

H W height and width of the picture, upright.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from deploy_prune.data.annotated import Annotated, Corners, Fault, Findings, said_of
from deploy_prune.data.instances import Outlines, fault_of_shape
from deploy_prune.data.pictures import Array, Scan, Size

VOID: Final = 255
"""Instead of a class: the pixel has none, or it isn't known, and doesn't count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectsMask:
    """Objects, drawn when they are taken. ``labels``: of each its class, 1 or more, or VOID.

    Where some overlap, the one with the smallest area counts, as what lies on something is smaller as a rule; of two of
    the same area the later one. VOID lies below all of them. What none covers is 0.
    """

    objects: Outlines
    labels: tuple[int, ...]

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        return hashlib.sha256(self.objects.digest + bytes(self.labels)).digest()

    def classes(self) -> Array:
        """uint8 [H, W]: 0 to C - 1, or VOID."""
        drawn_NHW = self.objects.drawn()
        areas = drawn_NHW.sum((1, 2), dtype=np.int64)
        found = np.zeros(drawn_NHW.shape[1:], np.uint8)
        for i in sorted(range(len(areas)), key=lambda i: (self.labels[i] != VOID, -areas[i])):
            found[drawn_NHW[i] > 0] = self.labels[i]
        return found


def mask_of(one: Annotated, scan: Scan, findings: Findings) -> ObjectsMask:
    """The mask of a picture's objects. Of one without a whole mask, which is a fault, the whole box is VOID."""
    size = said_of(one, scan)
    shapes, labels = [], []
    for box in one.boxes:
        shape, label = box.shape, box.label
        if problem := fault_of_shape(shape, size):
            what = f"the object {problem}", "objects without a whole mask"
            findings.faults.append(Fault(f"{one.annotation}, {box.where}", *what))
            shape, label = _within(box.corners, size), VOID
        shapes.append(shape)
        labels.append(label)
    orientation = 1 if size == scan.picture.size else scan.orientation
    objects = Outlines(shapes=tuple(shapes), size=size, orientation=orientation)
    return ObjectsMask(objects=objects, labels=tuple(labels))


def _within(corners: Corners, size: Size) -> Any:
    """The outline of what lies of a box within a picture."""
    left, top, right, bottom = (min(max(0.0, x), float(size[i % 2])) for i, x in enumerate(corners))
    return [[left, top, right, top, right, bottom, left, bottom]]
