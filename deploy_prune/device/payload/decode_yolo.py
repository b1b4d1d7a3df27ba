"""Boxes, masks and keypoints of the raw outputs of Ultralytics' detectors, of all scales together, then suppression.

B batch, A places of all scales, C classes, R bins of a distance, E numbers of a mask or of K keypoints, N boxes, h w a
map's height and width, H W the input's.
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
    """Predictions of maps: of each scale distances [B, 4 R, h, w], class logits [B, C, h, w] and, if there are masks or
    keypoints, these [B, E, h, w]; last the masks' prototypes [B, E, h, w].

    Settings: ``size`` [H, W]; ``strides`` of the scales in pixels; ``bins`` R; ``masks``, whether there are; the
    ``keypoints``' shape [K, 2 or 3], or null; ``least_score``; ``candidates`` that are suppressed; ``overlap`` of two
    boxes of a class, or null, where none is suppressed; ``most_boxes`` of a picture.
    """  # noqa: D205
    scales = len(settings["strides"])
    kinds = (len(outputs) - bool(settings["masks"])) // scales
    maps = [_places(outputs[kind : kinds * scales : kinds]) for kind in range(kinds)]
    centres, strides = _grid([x.shape[2:] for x in outputs[: kinds * scales : kinds]], settings["strides"])
    found = []
    for number in range(len(outputs[0])):
        picture, places = _picture(maps[0][number], maps[1][number], centres, strides, settings)
        more = maps[2][number][places] if kinds > 2 else None
        if more is not None and settings["masks"]:
            picture["masks"] = _masks(more, outputs[-1][number], picture["boxes"], settings["size"])
        elif more is not None:
            picture["keypoints"] = _keypoints(more, centres[places], strides[places], settings["keypoints"])
        found.append(picture)
    return found


def _places(maps: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """[B, A, channels]."""
    flat = [x.reshape(*x.shape[:2], -1) for x in maps]
    return numpy.concatenate(flat, 2).swapaxes(1, 2).astype(numpy.float32)


def _grid(shapes: Sequence[Sequence[int]], strides: Sequence[int]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """In pixels, the places' centres [A, 2] and strides [A, 1]."""
    centres, steps = [], []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y, x = numpy.divmod(numpy.arange(height * width), width)
        centres.append((numpy.stack([x, y], 1) + 0.5) * stride)
        steps.append(numpy.full((height * width, 1), stride))
    return numpy.concatenate(centres).astype(numpy.float32), numpy.concatenate(steps).astype(numpy.float32)


def _picture(
    codes: numpy.ndarray,
    logits: numpy.ndarray,
    centres: numpy.ndarray,
    strides: numpy.ndarray,
    settings: Mapping[str, Any],
) -> tuple[dict[str, numpy.ndarray], numpy.ndarray]:
    """The picture's boxes, and the places that they are of, int64 [N]."""
    scores = _boxes.sigmoid(logits)
    best = numpy.flatnonzero(scores > settings["least_score"])
    best = best[_boxes.highest(scores.flat[best], settings["candidates"])]
    place, label = numpy.unravel_index(best, scores.shape)
    apart = _distances(codes[place], settings["bins"]) * strides[place]
    boxes = numpy.concatenate([centres[place] - apart[:, :2], centres[place] + apart[:, 2:]], 1)
    stay = numpy.arange(min(len(boxes), settings["most_boxes"]))
    if settings["overlap"] is not None:
        stay = _boxes.suppressed(boxes, scores.flat[best], label, settings["overlap"], settings["most_boxes"])
    boxes = _boxes.clipped(boxes[stay], settings["size"])
    return _boxes.prediction(boxes, scores.flat[best[stay]], label[stay]), place[stay]


def _distances(codes: numpy.ndarray, bins: int) -> numpy.ndarray:
    """To left, top, right and bottom in strides, [N, 4]: the mean of a distribution over 0, 1, ... R - 1.

    (Li et al., arXiv 2006.04388, section 3.) Of a single bin it is the number itself.
    """
    if bins == 1:
        return codes
    means: numpy.ndarray = _boxes.softmax(codes.reshape(-1, 4, bins)) @ numpy.arange(bins, dtype=numpy.float32)
    return means


def _masks(
    factors: numpy.ndarray, prototypes: numpy.ndarray, boxes: numpy.ndarray, size: Sequence[int]
) -> numpy.ndarray:
    """Bool [N, H, W]: where the sum of the prototypes, scaled up to the input, is positive within the box.

    (Bolya et al., arXiv 1904.02689, section 3.)
    """
    down, across = (_boxes.scaling(a, b) for a, b in zip(prototypes.shape[1:], size, strict=True))
    y, x = (numpy.arange(n) for n in size)
    masks = numpy.zeros((len(factors), *size), bool)
    for number, (factor, (left, top, right, bottom)) in enumerate(zip(factors, boxes, strict=True)):
        rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
        small = numpy.tensordot(factor, prototypes, 1)
        masks[number][numpy.ix_(rows, columns)] = down[rows] @ small @ across[columns].T > 0
    return masks


def _keypoints(
    codes: numpy.ndarray, centres: numpy.ndarray, strides: numpy.ndarray, shape: Sequence[int]
) -> numpy.ndarray:
    """Float32 [N, K, 3]: x and y in pixels, and how surely it is seen (1 where the network doesn't say)."""
    codes = codes.reshape(len(codes), *shape)
    corners = centres - strides / 2
    points = codes[..., :2] * 2 * strides[:, None] + corners[:, None]
    seen = _boxes.sigmoid(codes[..., 2:]) if shape[1] > 2 else numpy.ones_like(codes[..., :1])
    found: numpy.ndarray = numpy.concatenate([points, seen], -1).astype(numpy.float32)
    return found
