"""A small detector without anchors: one map that says where objects are, how large, and of which class.

As in FCOS (arXiv 1904.01355) every place of the map near an object's centre finds its box; as in YOLOX (arXiv
2107.08430) one number says how good that box is. B batch, C classes, H W height and width of the input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4
"""Pixels between places of the map."""
PLACE = 5
"""Channels before the classes: how good the box is (logit), its centre's shift, its sides' logarithms, in strides."""
_RARE = 0.05
"""How good a box is said to be before training, so that the many places without an object don't drown the others."""


class GridDetector(nn.Module):
    """[B, in_channels, H, W] -> [B, 5 + C, H / 4, W / 4], rounded up.

    204 thousand parameters for 5 classes; a box may be of any size from about 4 pixels on.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 24) -> None:
        super().__init__()
        self.stem = _conv(in_channels, width, 2)
        self.fine = nn.Sequential(_conv(width, 2 * width, 2), _conv(2 * width, 2 * width))
        self.coarse = nn.Sequential(_conv(2 * width, 4 * width, 2), _conv(4 * width, 4 * width))
        self.side = _conv(4 * width, 2 * width, size=1)
        self.head = nn.Sequential(_conv(2 * width, 2 * width), _conv(2 * width, 2 * width))
        self.place = nn.Conv2d(2 * width, PLACE, 1)
        self.classes = nn.Conv2d(2 * width, num_classes, 1)
        assert self.place.bias is not None
        with torch.no_grad():
            self.place.bias[0] = math.log(_RARE / (1 - _RARE))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, 5 + C, H / 4, W / 4]."""
        fine = self.fine(self.stem(x))
        coarse = self.side(self.coarse(fine))
        x = self.head(fine + F.interpolate(coarse, fine.shape[2:], mode="nearest"))
        return torch.cat([self.place(x), self.classes(x)], 1)


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())
