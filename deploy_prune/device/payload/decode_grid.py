"""Boxes of the built-in grid detector's map: the best places of each class, then suppression.

B batch, C classes, h w the map's height and width, N places that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy

_boxes: Any = SimpleNamespace(**run_path(str(Path(__file__).with_name("boxes.py"))))
_MOST = 10.0
"""Of a side's logarithm: what lies above is no box of any picture, and would overflow."""


def decode(outputs: Sequence[numpy.ndarray], settings: Mapping[str, Any]) -> list[dict[str, numpy.ndarray]]:
    """Predictions of one map [B, 5 + C, h, w]: how good the box is, its centre's shift, its sides' logarithms, classes.

    A score is the sigmoid of the first times the class's share. Settings: ``size`` [H, W] of the input; ``stride`` of
    the map in pixels; ``least_score``; ``candidates`` that are suppressed; ``overlap`` of two boxes of a class;
    ``most_boxes`` of a picture.
    """
    (grid,) = outputs
    return [_picture(one, settings) for one in grid]


def _picture(grid: numpy.ndarray, settings: Mapping[str, Any]) -> dict[str, numpy.ndarray]:
    codes = grid.reshape(len(grid), -1).T
    scores = _boxes.sigmoid(codes[:, :1]) * _boxes.softmax(codes[:, 5:])
    places = numpy.flatnonzero(scores > settings["least_score"])
    places = places[_boxes.highest(scores.flat[places], settings["candidates"])]
    place, label = numpy.unravel_index(places, scores.shape)
    boxes = _boxes.clipped(_around(codes[place, 1:5], place, grid.shape[2], settings["stride"]), settings["size"])
    stay = _boxes.suppressed(boxes, scores[place, label], label, settings["overlap"], settings["most_boxes"])
    found: dict[str, numpy.ndarray] = _boxes.prediction(boxes[stay], scores[place, label][stay], label[stay])
    return found


def _around(codes: numpy.ndarray, place: numpy.ndarray, width: int, stride: float) -> numpy.ndarray:
    """[N, 4]."""
    centre = numpy.stack([place % width, place // width], 1) + 0.5 + codes[:, :2]
    half = numpy.exp(numpy.minimum(codes[:, 2:], _MOST)) / 2
    boxes: numpy.ndarray = numpy.concatenate([centre - half, centre + half], 1) * stride
    return boxes
