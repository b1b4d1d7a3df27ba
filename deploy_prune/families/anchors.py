"""Anchors as a few numbers a level, as a program on a device reads them; targets as torchvision takes them.

H W height and width of a level's map, K anchors at each of its places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

PIXELS: Final = 1e-2
"""An anchor may lie so far from where its level's grid puts it: float32 resolves 6e-5 pixels at 1000."""


def grid_levels(anchors: Tensor, sizes: Sequence[tuple[int, int]], per_place: Sequence[int]) -> list[dict[str, Any]]:
    """Levels, as device/payload/boxes.py has them, of anchors [sum H W K, 4] on grids of these sizes (H, W).

    Raises:
        ValueError: they don't stand on such grids.
    """
    counts = [height * width * k for (height, width), k in zip(sizes, per_place, strict=True)]
    if sum(counts) != len(anchors):
        message = f"there are {len(anchors)} anchors, and maps for {sum(counts)}"
        raise ValueError(message)
    split = zip(anchors.double().cpu().split(counts), sizes, per_place, strict=True)
    return [_grid(of_level.view(*size, k, 4)) for of_level, size, k in split]


def _grid(anchors_HWK4: Tensor) -> dict[str, Any]:
    height, width = anchors_HWK4.shape[:2]
    first = anchors_HWK4[0, 0]
    step_y = float(anchors_HWK4[-1, 0, 0, 1] - first[0, 1]) / max(height - 1, 1)
    step_x = float(anchors_HWK4[0, -1, 0, 0] - first[0, 0]) / max(width - 1, 1)
    y, x = torch.meshgrid(torch.arange(height) * step_y, torch.arange(width) * step_x, indexing="ij")
    rebuilt = first + torch.stack([x, y, x, y], -1)[:, :, None]
    if not (rebuilt - anchors_HWK4).abs().max() <= PIXELS:
        message = f"the anchors of a level of {height} x {width} places aren't the same at each of them"
        raise ValueError(message)
    return {"size": [height, width], "stride": [step_y, step_x], "anchors": first.tolist()}


def one_based(targets: Sequence[Mapping[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    """Targets with labels from 1, as torchvision's detectors take them, where 0 is no class."""
    return [{name: (x + 1 if name == "labels" else x).to(device) for name, x in t.items()} for t in targets]
