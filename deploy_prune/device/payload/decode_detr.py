"""Boxes of the outputs of DETR (arXiv 2005.12872) and its like: one box a query, no suppression.

B batch, Q queries, C classes, H W height and width of the network's input.
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
    """Predictions of class logits [B, Q, C] and boxes [B, Q, 4], centre, width, height as shares of the input.

    Settings: ``size`` [H, W]; ``scores``: softmax (there is one logit more, the last, for no class, and a query's best
    class counts) or sigmoid (the best of all queries' classes count); ``most_boxes`` of a picture. What else is among
    the outputs only serves the loss.
    """
    return [_picture(logits, boxes, settings) for logits, boxes in zip(*outputs[:2], strict=True)]


def _picture(logits: numpy.ndarray, shares: numpy.ndarray, settings: Mapping[str, Any]) -> dict[str, numpy.ndarray]:
    height, width = settings["size"]
    if settings["scores"] == "softmax":
        every = _boxes.softmax(logits)[:, :-1]
        query, label = numpy.arange(len(every)), every.argmax(1)
    else:
        every = _boxes.sigmoid(logits)
        query, label = numpy.divmod(numpy.arange(every.size), every.shape[1])
    best = _boxes.highest(every[query, label], settings["most_boxes"])
    query, label = query[best], label[best]
    centre, half = shares[query, :2], shares[query, 2:] / 2
    boxes = numpy.concatenate([centre - half, centre + half], 1) * [width, height, width, height]
    found: dict[str, numpy.ndarray] = _boxes.prediction(boxes, every[query, label], label)
    return found
