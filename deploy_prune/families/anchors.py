"""Anchors as a few numbers a level, as a program on a device reads them; targets as torchvision takes them.

H W height and width of a level's map, K anchors at each of its places, A anchors in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.networks.unchanged import unchanged

PIXELS: Final = 1e-2
"""An anchor may lie so far from where its level's grid puts it: float32 resolves 6e-5 pixels at 1000."""


def levels_of(features: Tensor | Mapping[str, Tensor]) -> list[Tensor]:
    """A backbone's feature maps, one a level."""
    return [features] if isinstance(features, Tensor) else list(features.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """What a detector makes of the shape of its input, once: anchors [A, 4], the maps' names and their sizes (H, W)."""

    anchors: Tensor
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    per_place: tuple[int, ...]
    size: tuple[int, int]

    @property
    def levels(self) -> list[dict[str, Any]]:
        """As a program on a device reads them."""
        return grid_levels(self.anchors, self.sizes, self.per_place)

    def of_batch(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The anchors for every picture of outputs [B, A, ...].

        Raises:
            ValueError: the outputs are of another input's shape.
        """
        if outputs[0].shape[1] != len(self.anchors):
            message = f"the loss is for inputs of {self.size[0]} x {self.size[1]} pixels, which have "
            message += f"{len(self.anchors)} anchors; these outputs have {outputs[0].shape[1]}"
            raise ValueError(message)
        return [self.anchors.to(outputs[0].device)] * len(outputs[0])


def grid_of(detector: nn.Module, backbone: nn.Module, generator: Any, image: Tensor) -> Grid:
    """The anchors that a detector's generator makes for this input [B, 3, H, W]; both are left as they were."""
    image_list = import_module("torchvision.models.detection.image_list").ImageList
    image = image[:1].to(next(detector.parameters()).device)
    size = (image.shape[-2], image.shape[-1])
    with unchanged(detector), torch.no_grad():
        features = backbone.eval()(image)
        maps = levels_of(features)
        (anchors,) = generator(image_list(image, [size]), maps)
    names = ("0",) if isinstance(features, Tensor) else tuple(features)
    sizes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
    per_place = tuple(generator.num_anchors_per_location())
    return Grid(anchors=anchors.cpu(), names=names, sizes=sizes, per_place=per_place, size=size)


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


def box_code(detector: Any) -> dict[str, Any]:
    """How a detector's coder writes boxes, as a program on a device reads it; distances have no weights."""
    coder = detector.box_coder
    return {"weights": getattr(coder, "weights", None), "most": getattr(coder, "bbox_xform_clip", None)}
