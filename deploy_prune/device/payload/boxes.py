"""Boxes in numpy: what the programs that decode detectors' outputs share.

A boxes [A, 4] are left, top, right, bottom in pixels of the network's input. N boxes, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy


def softmax(logits: numpy.ndarray) -> numpy.ndarray:
    """Over the last axis."""
    raised = numpy.exp(logits - logits.max(-1, keepdims=True))
    shares: numpy.ndarray = raised / raised.sum(-1, keepdims=True)
    return shares


def sigmoid(logits: numpy.ndarray) -> numpy.ndarray:
    """Of each number; none of them overflows."""
    found: numpy.ndarray = numpy.exp(-numpy.logaddexp(0, -logits))
    return found


def scaling(small: int, large: int) -> numpy.ndarray:
    """Shares [large, small] of linear interpolation between the pixels' centres; the edges' values reach outwards."""
    at = ((numpy.arange(large) + 0.5) * small / large - 0.5).clip(0, small - 1)
    shares: numpy.ndarray = (1 - abs(at[:, None] - numpy.arange(small))).clip(0)
    return shares.astype(numpy.float32)


def anchors(levels: Sequence[Mapping[str, Any]]) -> numpy.ndarray:
    """All anchors [A, 4], float32, level after level, in a level row after row, at a place in their order.

    A level has ``size`` [H, W] of its map, ``stride`` [y, x] in pixels, and ``anchors``, boxes at the first place.
    """
    return numpy.concatenate([_of_level(**level) for level in levels]).astype(numpy.float32)


def _of_level(size: Sequence[int], stride: Sequence[float], anchors: Sequence[Sequence[float]]) -> numpy.ndarray:
    y, x = (numpy.arange(n) * step for n, step in zip(size, stride, strict=True))
    shift = numpy.stack(numpy.broadcast_arrays(x[None], y[:, None], x[None], y[:, None]), -1)
    found: numpy.ndarray = (shift[:, :, None] + numpy.asarray(anchors)).reshape(-1, 4)
    return found


def from_deltas(codes: numpy.ndarray, anchors: numpy.ndarray, weights: Sequence[float], most: float) -> numpy.ndarray:
    """Boxes of codes [..., 4]: shifts of the centre in sides of the anchor, and logarithms of the sides' growth.

    Each is divided by its weight first (Ren et al., arXiv 1506.01497, section 3.1.2). ``most``: of a logarithm.
    """
    codes = codes / numpy.asarray(weights, codes.dtype)
    side = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + side / 2 + codes[..., :2] * side
    half = numpy.exp(numpy.minimum(codes[..., 2:], most)) * side / 2
    return numpy.concatenate([centre - half, centre + half], -1)


def from_distances(codes: numpy.ndarray, anchors: numpy.ndarray) -> numpy.ndarray:
    """Boxes of codes [..., 4]: how far the four edges are from the anchor's centre, in sides of the anchor.

    (Tian et al., arXiv 1904.01355, section 3.1.)
    """
    side = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + side / 2
    return numpy.concatenate([centre - codes[..., :2] * side, centre + codes[..., 2:] * side], -1)


def clipped(boxes: numpy.ndarray, size: Sequence[int]) -> numpy.ndarray:
    """Boxes, cut off at the edges of an input of H, W pixels."""
    height, width = size
    return boxes.clip(0, numpy.asarray([width, height, width, height], boxes.dtype))


def highest(scores: numpy.ndarray, most: int) -> numpy.ndarray:
    """The places of the highest scores, at most so many, falling."""
    return numpy.argsort(-scores, kind="stable")[:most]


def suppressed(
    boxes: numpy.ndarray, scores: numpy.ndarray, labels: numpy.ndarray, threshold: float, most: int
) -> numpy.ndarray:
    """Non-maximum suppression: the places of the boxes that stay, their scores falling, at most so many.

    A box goes if one of its label with a higher score stays that it overlaps by more than the threshold (the
    intersection's area over the union's).
    """
    stay = [_of_label(places, boxes, scores, threshold) for places in _by_label(labels)]
    places = numpy.concatenate([numpy.zeros(0, numpy.int64), *stay])
    best: numpy.ndarray = places[highest(scores[places], most)]
    return best


def _by_label(labels: numpy.ndarray) -> list[numpy.ndarray]:
    return [numpy.flatnonzero(labels == label) for label in numpy.unique(labels)]


def _of_label(places: numpy.ndarray, boxes: numpy.ndarray, scores: numpy.ndarray, threshold: float) -> numpy.ndarray:
    order, stay = places[highest(scores[places], len(places))], []
    while len(order):
        best, order = order[0], order[1:]
        stay.append(best)
        order = order[overlap(boxes[best], boxes[order]) <= threshold]
    return numpy.asarray(stay, numpy.int64)


def overlap(box: numpy.ndarray, others: numpy.ndarray) -> numpy.ndarray:
    """Intersection over union of one box [4] and others [N, 4]: [N]; 0 where neither has an area."""
    side = (numpy.minimum(box[2:], others[:, 2:]) - numpy.maximum(box[:2], others[:, :2])).clip(0)
    both = side.prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - both
    share: numpy.ndarray = numpy.divide(both, union, out=numpy.zeros_like(both), where=union > 0)
    return share


def prediction(boxes: numpy.ndarray, scores: numpy.ndarray, labels: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Of one picture: boxes float32 [N, 4], scores float32 [N], labels int64 [N]."""
    return {
        "boxes": boxes.astype(numpy.float32),
        "scores": scores.astype(numpy.float32),
        "labels": labels.astype(numpy.int64),
    }
