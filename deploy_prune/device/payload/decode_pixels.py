"""The class of each pixel, of a segmenter's logits.

B batch, C classes, h w height and width of the outputs, H W those of the network's input.
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
    """For each picture ``classes`` uint8 [H, W]: the highest of one map of logits [B, C, h, w], scaled to the input.

    Settings: ``size`` [H, W].
    """
    (maps,) = outputs
    return [{"classes": _picture(one, settings["size"])} for one in maps]


def _picture(logits: numpy.ndarray, size: Sequence[int]) -> numpy.ndarray:
    if list(logits.shape[1:]) != list(size):
        down, across = (_boxes.scaling(a, b) for a, b in zip(logits.shape[1:], size, strict=True))
        logits = down @ logits @ across.T
    classes: numpy.ndarray = logits.argmax(0).astype(numpy.uint8)
    return classes
