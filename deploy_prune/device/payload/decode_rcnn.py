"""Boxes, and masks or keypoints, of the outputs of a two-stage detector (Faster, Mask and Keypoint R-CNN).

B batch, K proposals, M of them with masks or keypoints, C classes, S side of a mask, P keypoints, H W height and width
of the network's input, N boxes of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy

_boxes: Any = SimpleNamespace(**run_path(str(Path(__file__).with_name("boxes.py"))))
_LEAST_SIDE = 1e-2
"""Of a box, in pixels."""
_CUBIC = -0.75
"""The parameter of bicubic interpolation that torch takes."""

Prediction = dict[str, numpy.ndarray]


def decode(outputs: Sequence[numpy.ndarray], settings: Mapping[str, Any]) -> list[Prediction]:
    """Predictions of the raw form's outputs (deploy_prune/families/two_stage.py names them); the first two are skipped.

    Settings: ``size`` [H, W]; ``weights`` and ``most`` of the box codes (see boxes.py); ``least_score``; ``overlap`` of
    two boxes of a class; ``most_boxes`` of a picture; ``parts``: masks, keypoints or null.
    """
    return [_picture(one, settings) for one in zip(*outputs[2:], strict=True)]


def _picture(outputs: Sequence[numpy.ndarray], settings: Mapping[str, Any]) -> Prediction:
    if settings["parts"] is None:
        proposals, logits, codes = outputs
        scores = _boxes.softmax(logits)[:, 1:]
        boxes = _boxes.from_deltas(codes[:, 1:], proposals[:, None], settings["weights"], settings["most"])
        boxes = _boxes.clipped(boxes, settings["size"])
        row, label = numpy.divmod(numpy.arange(scores.size), scores.shape[1])
        box, score = boxes[row, label], scores[row, label]
    else:
        scores, box = _boxes.softmax(outputs[3])[:, 1:], outputs[4]
        label, score = scores.argmax(1), scores.max(1)
    real = (score > settings["least_score"]) & ((box[:, 2:] - box[:, :2]) >= _LEAST_SIDE).all(1)
    places = numpy.flatnonzero(real)
    stay = _boxes.suppressed(box[places], score[places], label[places], settings["overlap"], settings["most_boxes"])
    places = places[stay]
    found: Prediction = _boxes.prediction(box[places], score[places], label[places])
    if settings["parts"] == "masks":
        shares = _boxes.sigmoid(outputs[5][places, label[places] + 1])
        found["masks"] = masks(shares, box[places], settings["size"])
    elif settings["parts"] == "keypoints":
        found["keypoints"] = keypoints(outputs[5][places], box[places])
    return found


def masks(shares: numpy.ndarray, boxes: numpy.ndarray, size: Sequence[int]) -> numpy.ndarray:
    """Bool [N, H, W]: each box's mask [N, S, S] (0 to 1), laid into its box [N, 4], where it is more than a half."""
    side = shares.shape[-1]
    padded, grow = numpy.pad(shares, ((0, 0), (1, 1), (1, 1))), (side + 2) / side
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * grow
    corners = numpy.concatenate([centre - half, centre + half], 1).astype(numpy.int64)  # towards 0
    found = numpy.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom), out in zip(padded, corners.tolist(), found, strict=True):
        laid = resized(mask, (max(bottom - top + 1, 1), max(right - left + 1, 1)), _linear) > 0.5
        rows, columns = slice(max(top, 0), min(bottom + 1, size[0])), slice(max(left, 0), min(right + 1, size[1]))
        out[rows, columns] = laid[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return found


def keypoints(maps: numpy.ndarray, boxes: numpy.ndarray) -> numpy.ndarray:
    """Float32 [N, P, 3]: x, y in pixels of the input, and 1: where each map [N, P, S, S], over its box, is highest."""
    found = numpy.ones((len(boxes), maps.shape[1], 3), numpy.float32)
    for of_box, box, out in zip(maps, boxes, found, strict=True):
        width, height = numpy.maximum(box[2:] - box[:2], 1).tolist()
        columns = ceil(width)
        laid = resized(of_box, (ceil(height), columns), _cubic)
        y, x = numpy.divmod(laid.reshape(len(of_box), -1).argmax(1), columns)
        out[:, 0] = (x + 0.5) * width / columns + box[0]
        out[:, 1] = (y + 0.5) * height / ceil(height) + box[1]
    return found


def resized(maps: numpy.ndarray, size: Sequence[int], kernel: Any) -> numpy.ndarray:
    """Maps [..., h, w] at another size [H, W], as torch's ``interpolate`` without aligned corners has them."""
    rows, columns = (_weights(old, new, kernel) for old, new in zip(maps.shape[-2:], size, strict=True))
    found: numpy.ndarray = rows @ maps @ columns.T
    return found


def _weights(old: int, new: int, kernel: Any) -> numpy.ndarray:
    """[new, old]: what each old place gives to a new one; beyond the edge is the edge."""
    at = (numpy.arange(new) + 0.5) * old / new - 0.5
    found = numpy.zeros((new, old))
    for step in (-1, 0, 1, 2):
        tap = numpy.floor(at) + step
        numpy.add.at(found, (numpy.arange(new), tap.clip(0, old - 1).astype(int)), kernel(numpy.abs(at - tap)))
    return found


def _linear(far: numpy.ndarray) -> numpy.ndarray:
    return (1 - far).clip(0)


def _cubic(far: numpy.ndarray) -> numpy.ndarray:
    """Cubic convolution (Keys 1981, equation 4)."""
    near = ((_CUBIC + 2) * far - (_CUBIC + 3)) * far**2 + 1
    rest = _CUBIC * (((far - 5) * far + 8) * far - 4)
    found: numpy.ndarray = numpy.where(far <= 1, near, numpy.where(far < 2, rest, 0))
    return found
