"""Outputs that detectors of every kind could have, and the settings of the programs that decode them."""

from __future__ import annotations

from typing import Any

import numpy

SIZE = [48, 64]
"""Height and width of the input that they are for."""
BATCHES = 2
_COMMON = {"size": SIZE, "least_score": 0.05, "candidates": 60, "overlap": 0.4, "most_boxes": 30}
_LEVELS = [
    {"size": [6, 8], "stride": [8.0, 8.0], "anchors": [[-6.0, -6.0, 14.0, 14.0], [-10.0, -2.0, 18.0, 10.0]]},
    {"size": [3, 4], "stride": [16.0, 16.0], "anchors": [[-8.0, -8.0, 24.0, 24.0], [-16.0, 0.0, 32.0, 16.0]]},
]
_CELLS = [{**_LEVELS[0], "anchors": [[0.0, 0.0, 8.0, 8.0]]}, {**_LEVELS[1], "anchors": [[0.0, 0.0, 16.0, 16.0]]}]
_DELTAS = {"weights": [10.0, 10.0, 5.0, 5.0], "most": 0.3}  # so little that some are more
_ROWS = 2 * (48 + 12)
_YOLO = {**_COMMON, "strides": [8, 16], "bins": 8, "masks": False, "keypoints": None}
_RCNN = {**_COMMON, **_DELTAS}


def _boxes_of(x: numpy.ndarray) -> numpy.ndarray:
    """Edges within the input, of numbers [..., 4]."""
    corners = (1 / (1 + numpy.exp(-x))).reshape(*x.shape[:-1], 2, 2)
    corners.sort(-2)
    return (corners.reshape(x.shape) * [SIZE[1], SIZE[0], SIZE[1], SIZE[0]]).astype("float32")


def _yolo(random: Any, bins: int, *more: int, last: tuple[int, ...] = ()) -> list[numpy.ndarray]:
    made = []
    for height, width in ((6, 8), (3, 4)):
        made += [random(4 * bins, height, width), 2 * random(3, height, width) - 2]
        made += [random(count, height, width) for count in more]
    return made + ([random(*last)] if last else [])


def cases() -> dict[str, tuple[str, dict[str, Any], list[numpy.ndarray]]]:
    """Name -> program, settings, outputs [BATCHES, ...]."""
    lot = numpy.random.default_rng(0)

    def random(*shape: int) -> numpy.ndarray:
        return lot.normal(size=(BATCHES, *shape)).astype("float32")

    proposals = _boxes_of(random(40, 4))
    two_stages = [random(9), random(9, 4), proposals, 2 * random(40, 4), random(40, 4, 4)]
    shares = 1 / (1 + numpy.exp(-random(20, 4)))
    one = {**_YOLO, "bins": 1, "overlap": None, "most_boxes": 9}
    return {
        "grid": ("decode_grid", {**_COMMON, "stride": 8}, [2 * random(9, 6, 8)]),
        "ssd": (
            "decode_ssd",
            {**_COMMON, **_DELTAS, "levels": _LEVELS, "candidates": 15},
            [2 * random(_ROWS, 4), 2 * random(_ROWS, 4)],
        ),
        "retina": (
            "decode_retina",
            {**_COMMON, **_DELTAS, "levels": _LEVELS, "candidates": 20, "most_boxes": 40},
            [random(_ROWS, 4), random(_ROWS, 4)],
        ),
        "fcos": (
            "decode_retina",
            {**_COMMON, "weights": None, "most": None, "levels": _CELLS},
            [random(60, 4), abs(2 * random(60, 4)), random(60, 1)],
        ),
        "detr": ("decode_detr", {"size": SIZE, "scores": "softmax", "most_boxes": 20}, [random(20, 5), shares]),
        "sigmoid_detr": (
            "decode_detr",
            {"size": SIZE, "scores": "sigmoid", "most_boxes": 25},
            [random(20, 4), shares, random(20, 4)],
        ),
        "rcnn": ("decode_rcnn", {**_RCNN, "parts": None}, two_stages),
        "mask_rcnn": (
            "decode_rcnn",
            {**_RCNN, "parts": "masks"},
            [*two_stages, 2 * random(25, 4), _boxes_of(random(25, 4)), random(25, 4, 6, 6)],
        ),
        "yolo": ("decode_yolo", _YOLO, _yolo(random, 8)),
        "one_to_one_yolo": ("decode_yolo", one, _yolo(random, 1)),
        "masks_yolo": ("decode_yolo", {**_YOLO, "masks": True}, _yolo(random, 8, 5, last=(5, 12, 16))),
        "keypoints_yolo": ("decode_yolo", {**_YOLO, "keypoints": [2, 3]}, _yolo(random, 8, 6)),
    }
