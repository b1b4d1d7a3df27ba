"""Boxes of a dense detector's outputs: class scores by sigmoid, the best of each level, then suppression.

RetinaNet (arXiv 1708.02002) and FCOS (arXiv 1904.01355), which has a third output, how central a place is: the score is
the root of the product. B batch, A anchors, C classes, H W height and width of the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy

_boxes: Any = SimpleNamespace(**run_path(str(Path(__file__).with_name("boxes.py"))))


def decode(outputs: Sequence[numpy.ndarray], settings: Mapping[str, Any]) -> list[dict[str, numpy.ndarray]]:
    """Predictions of class logits [B, A, 1 + C], whose first is never learned, and box codes [B, A, 4].

    Settings: ``size`` [H, W]; ``levels``, the anchors; ``weights`` and ``most`` of the codes, or null where they are
    distances (see boxes.py); ``least_score``; ``candidates`` of a level; ``overlap`` of two boxes of a class;
    ``most_boxes`` of a picture.
    """
    anchors = _boxes.anchors(settings["levels"])
    return [_picture(*one[:2], *one[2:], anchors=anchors, settings=settings) for one in zip(*outputs, strict=True)]


def _picture(
    logits: numpy.ndarray,
    codes: numpy.ndarray,
    centred: numpy.ndarray | None = None,
    *,
    anchors: numpy.ndarray,
    settings: Mapping[str, Any],
) -> dict[str, numpy.ndarray]:
    scores = _boxes.sigmoid(logits)
    if centred is not None:
        scores = numpy.sqrt(scores * _boxes.sigmoid(centred))
    places = _best_of_levels(scores, settings)
    row, label = places // scores.shape[1], places % scores.shape[1]
    if settings["weights"] is None:
        boxes = _boxes.from_distances(codes[row], anchors[row])
    else:
        boxes = _boxes.from_deltas(codes[row], anchors[row], settings["weights"], settings["most"])
    boxes = _boxes.clipped(boxes, settings["size"])
    stay = _boxes.suppressed(boxes, scores[row, label], label, settings["overlap"], settings["most_boxes"])
    stay = stay[label[stay] > 0]
    found: dict[str, numpy.ndarray] = _boxes.prediction(boxes[stay], scores[row, label][stay], label[stay] - 1)
    return found


def _best_of_levels(scores: numpy.ndarray, settings: Mapping[str, Any]) -> numpy.ndarray:
    """Places in the flat scores [A * C], the best of each level."""
    flat, classes, start, found = scores.reshape(-1), scores.shape[1], 0, []
    for level in settings["levels"]:
        end = start + level["size"][0] * level["size"][1] * len(level["anchors"]) * classes
        over = start + numpy.flatnonzero(flat[start:end] > settings["least_score"])
        found.append(over[_boxes.highest(flat[over], settings["candidates"])])
        start = end
    return numpy.concatenate(found)
