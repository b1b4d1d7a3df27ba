"""A detector and a segmenter for small pictures: MobileNet at its full width, with SSDlite's heads or LRASPP's.

The last two of its blocks are left out, for small pictures have no need of them.

Howard et al., arXiv 1704.04861, table 1; Sandler et al., arXiv 1801.04381, section 6.2; Howard et al., arXiv
1905.02244, section 6.4.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Final

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.ops import Conv2dNormActivation

LEVELS: Final = (((64, 1), (128, 2), (128, 1)), ((256, 2), (256, 1)), ((512, 2), *[(512, 1)] * 5))
"""Channels and strides of the blocks; a level's heads see the last one's output."""
SCALES: Final = (0.075, 0.19, 0.34, 0.5)
"""Sides of the levels' anchors over the picture's, and of what would be next: platelets, red and white cells."""
SHAPE: Final = 4 / 3
"""Anchors are also so much wider or higher: a round cell is, in shares of a picture of 4:3."""


class Backbone(nn.Module):
    """Image [B, 3, H, W] -> levels [B, C, H/4, W/4], [B, C, H/8, W/8] and [B, C, H/16, W/16]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(3, 32, 3, stride=2)
        channels, levels = 32, []
        for blocks in LEVELS:
            made = []
            for width, stride in blocks:
                made += [
                    Conv2dNormActivation(channels, channels, 3, stride, groups=channels),
                    Conv2dNormActivation(channels, width, 1),
                ]
                channels = width
            levels.append(nn.Sequential(*made))
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        """The levels' features, by number."""
        features, found = self.stem(image), OrderedDict[str, Tensor]()
        for number, level in enumerate(self.levels):
            found[str(number)] = features = level(features)
        return found


def ssdlite(num_classes: int, size: tuple[int, int]) -> SSD:
    """The detector, for pictures of this height and width."""
    anchors = DefaultBoxGenerator([[SHAPE]] * len(LEVELS), scales=[*SCALES])
    norm = partial(nn.BatchNorm2d, eps=0.001)
    head = SSDLiteHead([blocks[-1][0] for blocks in LEVELS], anchors.num_anchors_per_location(), num_classes + 1, norm)
    return SSD(Backbone(), anchors, size[::-1], num_classes + 1, head=head)


class TwoLevels(Backbone):
    """The same, with the last two levels by LRASPP's names."""

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        """The features of 1/8 and of 1/16 of the picture's size."""
        found = super().forward(image)
        return OrderedDict([("low", found["1"]), ("high", found["2"])])


def lraspp(num_classes: int) -> LRASPP:
    """The segmenter."""
    return LRASPP(TwoLevels(), LEVELS[1][-1][0], LEVELS[2][-1][0], num_classes)
