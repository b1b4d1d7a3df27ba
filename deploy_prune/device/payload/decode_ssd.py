"""Boxes of a single-shot detector's outputs: class scores by softmax, the best of each class, then suppression.

B batch, A anchors, C classes, H W height and width of the network's input.
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
    """Predictions of class logits [B, A, 1 + C], whose first is no class, and box codes [B, A, 4].

    Settings: ``size`` [H, W]; ``levels``, the anchors; ``weights`` and ``most`` of the codes (see boxes.py);
    ``least_score``; ``candidates`` of a class; ``overlap`` of two boxes of a class; ``most_boxes`` of a picture.
    """
    anchors = _boxes.anchors(settings["levels"])
    return [_picture(logits, codes, anchors, settings) for logits, codes in zip(*outputs, strict=True)]


def _picture(
    logits: numpy.ndarray, codes: numpy.ndarray, anchors: numpy.ndarray, settings: Mapping[str, Any]
) -> dict[str, numpy.ndarray]:
    scores = _boxes.softmax(logits)[:, 1:]
    boxes = _boxes.from_deltas(codes, anchors, settings["weights"], settings["most"])
    boxes = _boxes.clipped(boxes, settings["size"])
    rows, labels = [], []
    for number, of_class in enumerate(scores.T):
        over = numpy.flatnonzero(of_class > settings["least_score"])
        rows.append(over[_boxes.highest(of_class[over], settings["candidates"])])
        labels.append(numpy.full(len(rows[-1]), number))
    row, label = numpy.concatenate(rows), numpy.concatenate(labels)
    stay = _boxes.suppressed(boxes[row], scores[row, label], label, settings["overlap"], settings["most_boxes"])
    row, label = row[stay], label[stay]
    found: dict[str, numpy.ndarray] = _boxes.prediction(boxes[row], scores[row, label], label)
    return found
