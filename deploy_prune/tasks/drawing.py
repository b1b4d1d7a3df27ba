"""What drawing boxes and drawing masks have in common: pictures to draw in, colours and names of classes.

B batch, C classes, H W height and width of the network's input, h w those of what is drawn.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from deploy_prune.data.splits import TransferData

SIDE: Final = 320
"""Pixels of a drawn picture's longer side: what a page shows beside others."""


def pictures(data: TransferData, places: Tensor) -> Tensor:
    """These of the target's test pictures, in colour and enlarged or reduced to be drawn in: uint8 [B, 3, h, w]."""
    test: Any = data.target_test
    found: Tensor = test.pixels(places)
    scale = SIDE / max(found.shape[2:])
    size = [max(1, round(side * scale)) for side in found.shape[2:]]
    found = F.interpolate(found, size, mode="bicubic", antialias=True)
    return (found.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def image(picture_3hw: Tensor) -> Image.Image:
    """As Pillow has it."""
    return Image.fromarray(picture_3hw.permute(1, 2, 0).contiguous().numpy())


def names(data: TransferData) -> tuple[str, ...]:
    """Of the target classes; their numbers where they have none."""
    return data.target_names or tuple(map(str, data.target_classes))


def colours(num: int) -> list[str]:
    """A colour for each class, "#e41a1c" and so on; they come again after 15."""
    from matplotlib import color_sequences
    from matplotlib.colors import to_hex

    known = [to_hex(one) for one in (*color_sequences["Set1"][:8], *color_sequences["Set2"][:7])]  # all but greys
    return [known[i % len(known)] for i in range(num)]
