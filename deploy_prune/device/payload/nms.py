"""Suppression of boxes that lie on better ones, greedy and class by class, with numpy alone: every decoder calls it.

N boxes: left, top, right, bottom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    Array = numpy.ndarray[Any, Any]


def nms(boxes: Array, scores: Array, iou: float, labels: Array | None = None) -> Array:
    """Indices int64 [kept] of the boxes that stay, from the best score down; equal scores stay in their order.

    A box goes if its intersection over union with a better one that stays is above ``iou``. ``boxes`` float [N, 4],
    ``scores`` float [N]. With ``labels``, int [N], boxes of different classes leave each other alone.
    """
    kept: list[int] = []
    left = numpy.argsort(-scores, kind="stable")
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        hidden = overlap(boxes[best], boxes[left]) > iou
        if labels is not None:
            hidden &= labels[left] == labels[best]
        left = left[~hidden]
    return numpy.array(kept, dtype=numpy.int64)


def overlap(box: Array, boxes: Array) -> Array:
    """Intersection over union, float [N], of a box [4] with others [N, 4]; 0 where both are of no area."""
    sides = numpy.minimum(box[2:], boxes[:, 2:]) - numpy.maximum(box[:2], boxes[:, :2])
    common = sides.clip(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
    shared: Array = numpy.divide(common, union, out=numpy.zeros_like(common), where=union > 0)
    return shared
