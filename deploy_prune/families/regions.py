"""Regions of interest as a fixed graph: boxes from codes, and features pooled from boxes.

B batch, K boxes of a picture, C channels, H W height and width of a feature map, S side of what is pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def boxes_of(codes: Tensor, anchors: Tensor, coder: Any, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of codes as torchvision's BoxCoder writes them, cut off at the edges of an input of H, W."""
    shift, growth = codes[..., :2], codes[..., 2:]
    side = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + side / 2 + shift / codes.new_tensor(coder.weights[:2]) * side
    half = (growth / codes.new_tensor(coder.weights[2:])).clamp(max=coder.bbox_xform_clip).exp() * side / 2
    height, width = size
    corners = torch.cat([centre - half, centre + half], -1)
    return torch.minimum(corners.clamp(min=0), codes.new_tensor([width, height, width, height]))


def points_of(boxes: Tensor, scale: float, shape: tuple[int, int], side: int) -> Tensor:
    """Where RoIAlign reads a map of H, W: side x side points evenly in each box [..., 4], [..., side, side, 2].

    In the coordinates of `grid_sample` without aligned corners: -1 to 1. ``scale``: of the map to the boxes' pixels.
    """
    steps = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) / side
    start, extent = boxes[..., :2] * scale, ((boxes[..., 2:] - boxes[..., :2]) * scale).clamp(min=1)
    at = start[..., None, :] + extent[..., None, :] * steps[:, None]
    x, y = (2 * at[..., 0] + 1) / shape[1] - 1, (2 * at[..., 1] + 1) / shape[0] - 1
    grid = torch.Size([*boxes.shape[:-1], side, side])
    return torch.stack([x[..., None, :].expand(grid), y[..., :, None].expand(grid)], -1)


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """torchvision's MultiScaleRoIAlign with fixed shapes: every level is read for every box, and one of them counts.

    ``names``: of the backbone's maps; ``side``: S; ``samples``: points a cell, along a side; ``scales``: the maps' to
    the input; ``canonical``: a box of so many pixels (the first) belongs to level 2**-(the second).
    """

    names: tuple[str, ...]
    side: int
    samples: int
    scales: tuple[float, ...]
    canonical: tuple[float, int]

    def __call__(self, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """Features [B K, C, S, S] of boxes [B, K, 4] in pixels of the input."""
        maps = [features[name] for name in self.names]
        levels = self._levels(boxes)
        read = [self._read(x, boxes, scale) for x, scale in zip(maps, self.scales, strict=True)]
        if len(read) == 1:
            return read[0].flatten(0, 1)
        counts = [(levels == number).to(boxes.dtype)[..., None, None, None] for number in range(len(read))]
        return torch.stack([x * count for x, count in zip(read, counts, strict=True)]).sum(0).flatten(0, 1)

    def _levels(self, boxes: Tensor) -> Tensor:
        """The number of the map that a box is read from, [B, K] (Lin et al., arXiv 1612.03144, equation 1)."""
        pixels, level = self.canonical
        sides = boxes[..., 2:] - boxes[..., :2]
        area = (sides[..., 0] * sides[..., 1]).clamp(min=1e-6)
        found = torch.floor(level + torch.log2(area.sqrt() / pixels) + 1e-6)
        first, last = (-int(torch.tensor(s).log2().round()) for s in (self.scales[0], self.scales[-1]))
        return found.clamp(first, last) - first

    def _read(self, x: Tensor, boxes: Tensor, scale: float) -> Tensor:
        """[B, K, C, S, S] of one map [B, C, H, W]."""
        side, num = self.side * self.samples, boxes.shape[1]
        points = points_of(boxes, scale, (x.shape[-2], x.shape[-1]), side)
        read = F.grid_sample(x, points.flatten(1, 2), padding_mode="border", align_corners=False)
        cells: Tensor = F.avg_pool2d(read, self.samples).unflatten(2, (num, self.side))
        return cells.permute(0, 2, 1, 3, 4)


def pooling_of(pooler: Any, sizes: Sequence[tuple[int, int]], names: Sequence[str], size: tuple[int, int]) -> Pooling:
    """What a MultiScaleRoIAlign does for maps of these names and sizes, of an input of H, W pixels.

    (Where it chooses the number of points by a box's size, there are two.)
    """
    read = tuple(name for name in names if name in pooler.featmap_names)
    heights = [height for name, (height, _) in zip(names, sizes, strict=True) if name in read]
    return Pooling(
        names=read, side=pooler.output_size[0], samples=max(pooler.sampling_ratio, 0) or 2,
        scales=tuple(2.0 ** float(torch.tensor(height / size[0]).log2().round()) for height in heights),
        canonical=(pooler.canonical_scale, pooler.canonical_level),
    )  # fmt: skip


def chosen(values: Tensor, places: Tensor) -> Tensor:
    """[B, M, ...] of values [B, K, ...], at places [B, M]."""
    index = places.reshape(*places.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def best_places(scores: Tensor, most: int) -> Tensor:
    """Where the highest scores [B, K] are, [B, M], in the order of their places.

    That order doesn't depend on which of two nearly equal scores is the higher: in another precision or another runtime
    it is the same, unless one of them is the last that is taken.
    """
    return scores.detach().topk(min(most, scores.shape[1]), 1).indices.sort(1).values
