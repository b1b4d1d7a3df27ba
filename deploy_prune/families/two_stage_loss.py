"""The losses of torchvision's two-stage detectors, of the outputs of their raw form (see two_stage.py).

B batch, K proposals, M of them with masks or keypoints, C classes, S side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deploy_prune.families.anchors import Grid, one_based
from deploy_prune.families.regions import points_of

Targets = list[dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoStageLoss:
    """The sum of both stages' losses, and of the masks' or keypoints'. ``rpn``, ``heads``: the dense detector's."""

    rpn: Any
    heads: Any
    grid: Grid

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """Scalar, of raw outputs and targets with labels from 0."""
        objectness, codes, proposals, logits, boxes = outputs[:5]
        wanted = one_based(targets, logits.device)
        losses = self._proposals(objectness, codes, wanted) + self._boxes(proposals, logits, boxes, wanted)
        if len(outputs) > 5:
            losses += (self._parts(outputs[6], outputs[7], wanted),)
        return torch.stack(losses).sum()

    def _proposals(self, objectness: Tensor, codes: Tensor, targets: Targets) -> tuple[Tensor, ...]:
        """Of the first stage, its own."""
        anchors = self.grid.of_batch([objectness])
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        wanted = self.rpn.box_coder.encode(matched, anchors)
        return tuple(self.rpn.compute_loss(objectness.reshape(-1, 1), codes.reshape(-1, 4), labels, wanted))

    def _boxes(self, proposals: Tensor, logits: Tensor, codes: Tensor, targets: Targets) -> tuple[Tensor, ...]:
        """Of the second stage, its own, of proposals that it samples itself."""
        boxes = list(proposals.detach())
        matches, labels = self._matched(boxes, targets)
        sampled = self.heads.subsample(labels)
        true = [_true_boxes(t, m, p) for t, m, p in zip(targets, matches, boxes, strict=True)]
        taken = [[x[i] for x, i in zip(xs, sampled, strict=True)] for xs in (boxes, true, labels)]
        wanted = self.heads.box_coder.encode(taken[1], taken[0])
        chosen = [torch.cat([x[i] for x, i in zip(xs, sampled, strict=True)]) for xs in (logits, codes.flatten(2))]
        loss = import_module("torchvision.models.detection.roi_heads").fastrcnn_loss
        return tuple(loss(*chosen, taken[2], list(wanted)))

    def _matched(self, boxes: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        """Of each box, the number of its true box, and its label: 0 background, -1 neither."""
        true, labels = [t["boxes"] for t in targets], [t["labels"] for t in targets]
        found: tuple[list[Tensor], list[Tensor]] = self.heads.assign_targets_to_proposals(boxes, true, labels)
        return found

    def _parts(self, boxes: Tensor, parts: Tensor, targets: Targets) -> Tensor:
        """Of masks or keypoints, for those boxes that meet an object."""
        kind = "masks" if self.heads.has_mask() else "keypoints"
        matches, labels = self._matched(list(boxes.detach()), targets)
        met = [label > 0 if kind in t else label < -1 for label, t in zip(labels, targets, strict=True)]
        pictures = [number for number, of_picture in enumerate(met) if bool(of_picture.any())]
        if not pictures:
            return parts.sum() * 0
        found = torch.cat([parts[n][met[n]] for n in pictures])
        where, match = [boxes[n][met[n]].detach() for n in pictures], [matches[n][met[n]] for n in pictures]
        true = [targets[n][kind] for n in pictures]
        if kind == "masks":
            wanted = [masks_in(m[i], b, parts.shape[-1]) for m, i, b in zip(true, match, where, strict=True)]
            label = torch.cat([labels[n][met[n]] for n in pictures])
            own = found[torch.arange(len(found), device=found.device), label]
            return F.binary_cross_entropy_with_logits(own, torch.cat(wanted))
        loss = import_module("torchvision.models.detection.roi_heads").keypointrcnn_loss
        total: Tensor = loss(found, where, true, match)
        return total


def _true_boxes(target: dict[str, Tensor], matches: Tensor, boxes: Tensor) -> Tensor:
    """The true box of each box [K, 4]; zeros where the picture has none."""
    return target["boxes"][matches] if len(target["boxes"]) else torch.zeros_like(boxes)


def masks_in(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What each box [N, 4] shows of its mask [N, H, W]: [N, S, S], 0 to 1, two points a cell along a side."""
    size = (masks.shape[-2], masks.shape[-1])
    points = points_of(boxes, 1.0, size, 2 * side)
    read = F.grid_sample(masks[:, None].to(boxes.dtype), points, padding_mode="border", align_corners=False)
    return F.avg_pool2d(read, 2)[:, 0]
