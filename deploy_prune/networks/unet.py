"""A small U-Net: Ronneberger, Fischer, Brox, arXiv 1505.04597, with batch norm and padded convolutions."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARES = (1, 2, 4, 6)
"""Channels of each level, of half the resolution of the one before, in widths."""


class UNet(nn.Module):
    """[B, in_channels, H, W] -> logits [B, num_classes, H, W]. 387 thousand parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        channels = [share * width for share in SHARES]
        self.first = _twice(in_channels, channels[0])
        self.down = nn.ModuleList(_twice(a, b) for a, b in pairwise(channels))
        self.up = nn.ModuleList(_twice(a + b, a) for a, b in reversed([*pairwise(channels)]))
        self.classes = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> logits [B, num_classes, H, W]."""
        x = self.first(x)
        seen = []
        for level in self.down:
            seen.append(x)
            x = level(F.max_pool2d(x, 2))
        for level in self.up:
            beside = seen.pop()
            x = level(torch.cat([beside, F.interpolate(x, beside.shape[2:], mode="nearest")], 1))
        logits: Tensor = self.classes(x)
        return logits


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_conv(inputs, outputs), *_conv(outputs, outputs))


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
