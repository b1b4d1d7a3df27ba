"""torchvision's one-stage detectors: SSD (and SSDlite), RetinaNet, FCOS.

Their raw form is backbone and head: image [B, 3, H, W], resized and normalised -> class logits [B, A, 1 + C] and box
codes [B, A, 4], of FCOS also how central a place is [B, A, 1]. Resizing, anchors, thresholds and suppression stay
outside; the loss is the detector's own, with its own anchors and matching. A anchors of all levels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.families.anchors import Grid, box_code, grid_of, levels_of, one_based
from deploy_prune.families.raw_form import Decode, Family, Inputs, RawForm, is_a

Targets = list[dict[str, Tensor]]


class Maps(nn.Module):
    """Backbone and head of a detector: image [B, 3, H, W] -> the head's maps, one after the other."""

    def __init__(self, detector: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.head, self.outputs = detector.backbone, detector.head, tuple(outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Class logits [B, A, 1 + C], box codes [B, A, 4] and what else ``outputs`` names, [B, A, ...]."""
        maps = self.head(levels_of(self.backbone(image)))
        return tuple(maps[name] for name in self.outputs)


Loss = Callable[[Any, Grid, Mapping[str, Tensor], Targets, list[Tensor]], Mapping[str, Tensor]]
"""(detector, grid, outputs by name, targets, anchors of every picture) -> the losses by name."""


def _ssd_loss(
    detector: Any, grid: Grid, outputs: Mapping[str, Tensor], targets: Targets, anchors: list[Tensor]
) -> Mapping[str, Tensor]:
    overlap = import_module("torchvision.ops").box_iou
    matched = [
        detector.proposal_matcher(overlap(t["boxes"], a)) if len(t["boxes"]) else torch.full_like(a[:, 0], -1).long()
        for t, a in zip(targets, anchors, strict=True)
    ]
    losses: Mapping[str, Tensor] = detector.compute_loss(targets, outputs, anchors, matched)
    return losses


def _retina_loss(
    detector: Any, grid: Grid, outputs: Mapping[str, Tensor], targets: Targets, anchors: list[Tensor]
) -> Mapping[str, Tensor]:
    losses: Mapping[str, Tensor] = detector.compute_loss(targets, outputs, anchors)
    return losses


def _fcos_loss(
    detector: Any, grid: Grid, outputs: Mapping[str, Tensor], targets: Targets, anchors: list[Tensor]
) -> Mapping[str, Tensor]:
    counts = [height * width for height, width in grid.sizes]
    losses: Mapping[str, Tensor] = detector.compute_loss(targets, outputs, anchors, counts)
    return losses


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One detector: the class's name, its head's outputs, its loss, and the program that decodes them."""

    name: str
    outputs: tuple[str, ...]
    loss: Loss
    program: str

    def raw(self, detector: Any, inputs: Inputs) -> RawForm:
        """The detector's raw form, for an input of this shape."""
        grid = grid_of(detector, detector.backbone, detector.anchor_generator, inputs[0])
        settings = {
            "size": list(grid.size), "levels": grid.levels, **box_code(detector),
            "least_score": detector.score_thresh, "candidates": detector.topk_candidates,
            "overlap": detector.nms_thresh, "most_boxes": detector.detections_per_img,
        }  # fmt: skip
        return RawForm(
            network=Maps(detector, self.outputs),
            loss=partial(self._total, detector, grid),
            decode=Decode(program=self.program, settings=settings),
        )

    def _total(self, detector: Any, grid: Grid, outputs: Sequence[Tensor], targets: Targets) -> Tensor:
        anchors, by_name = grid.of_batch(outputs), dict(zip(self.outputs, outputs, strict=True))
        losses = self.loss(detector, grid, by_name, one_based(targets, outputs[0].device), anchors)
        return torch.stack(list(losses.values())).sum()


_KINDS: Final = (
    _Kind(
        name="torchvision.models.detection.ssd.SSD",
        outputs=("cls_logits", "bbox_regression"),
        loss=_ssd_loss,
        program="decode_ssd",
    ),
    _Kind(
        name="torchvision.models.detection.retinanet.RetinaNet",
        outputs=("cls_logits", "bbox_regression"),
        loss=_retina_loss,
        program="decode_retina",
    ),
    _Kind(
        name="torchvision.models.detection.fcos.FCOS",
        outputs=("cls_logits", "bbox_regression", "bbox_ctrness"),
        loss=_fcos_loss,
        program="decode_retina",
    ),
)
FAMILIES: Final = tuple(Family(owns=partial(is_a, name=kind.name), raw=kind.raw) for kind in _KINDS)
