"""The built-in grid detector: its loss, and the decoding of its map.

B batch, C classes, N boxes of a picture, P places of the map (h times w), S places near an object of any picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy_prune.families import confidence
from deploy_prune.families.raw_form import Decode, Family, Inputs, RawForm
from deploy_prune.networks.grid_detector import PLACE, STRIDE, GridDetector
from deploy_prune.networks.libraries import import_torchvision

_NEAR = 1.5
"""Strides between an object's centre and the places that find it (FCOS's centre sampling, its code's 1.5)."""
_SETTINGS: Final = {"stride": STRIDE, "least_score": 0.02, "candidates": 400, "overlap": 0.5, "most_boxes": 100}


def loss(grid: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Of a map [B, 5 + C, h, w]: a scalar, the sum of three terms over the number of places near an object.

    1 - generalised IoU of the boxes (arXiv 1902.09630) and cross entropy of the classes at these places; at all places,
    cross entropy of how good the box is, which is its IoU near an object and 0 elsewhere.
    """
    ops = import_torchvision().ops
    centres = _centres(grid)
    nearest = torch.stack([_nearest(target["boxes"].to(grid), centres) for target in targets])  # [B, P], -1: none
    codes = grid.float().flatten(2).transpose(1, 2)  # [B, P, 5 + C]
    near = nearest >= 0
    boxes = _boxes(codes[near], centres.expand(len(grid), -1, -1)[near])
    real = torch.cat([t["boxes"].to(boxes)[n[n >= 0]] for t, n in zip(targets, nearest, strict=True)])
    labels = torch.cat([t["labels"].to(grid.device)[n[n >= 0]] for t, n in zip(targets, nearest, strict=True)])
    good = torch.zeros_like(codes[..., 0])
    good[near] = _overlap(boxes.detach(), real)
    terms = (
        ops.generalized_box_iou_loss(boxes, real, reduction="sum"),
        F.cross_entropy(codes[near][:, PLACE:], labels, reduction="sum"),
        F.binary_cross_entropy_with_logits(codes[..., 0], good, reduction="sum"),
    )
    return sum(terms, start=grid.new_zeros(())) / near.sum().clamp(min=1)


def distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of maps [B, 5 + C, h, w]: boxes and classes where the teacher says that its box is good, and that everywhere.

    A detector of scenes, cut to 35% of its MACs and trained for 80 steps, half by its teacher, has an mAP of 0.489 with
    it (mean of two seeds), 0.459 with `tasks.distance.relative`, and 0.460 without a teacher; 0.546 before the cut.
    """
    own, told = (x.float().flatten(2).transpose(1, 2) for x in (student, teacher.detach()))  # each [B, P, 5 + C]
    sure = told[..., 0].sigmoid()
    good = confidence.of_yes_or_no(own[..., :1], told[..., :1], sure)
    boxes = confidence.of_numbers(own[..., 1:PLACE], told[..., 1:PLACE], sure)
    return good + boxes + confidence.of_shares(own[..., PLACE:], told[..., PLACE:], sure, temperature)


def _centres(grid: Tensor) -> Tensor:
    """In pixels, x and y of every place: [P, 2]."""
    rows, columns = (torch.arange(n, device=grid.device) + 0.5 for n in grid.shape[2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * STRIDE


def _nearest(boxes: Tensor, centres: Tensor) -> Tensor:
    """Which box every place finds, int64 [P]; -1: none. Of several it is the smallest.

    A place is near a box if it lies in it and near its centre; the one that holds the centre always is, so that a box
    between places is found, too.
    """
    if len(boxes) == 0:
        return torch.full_like(centres[:, 0], -1, dtype=torch.int64)
    apart = centres[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2  # [P, N, 2]
    inside = ((centres[:, None] > boxes[:, :2]) & (centres[:, None] < boxes[:, 2:])).all(-1)
    near = inside & (apart.abs().amax(-1) < _NEAR * STRIDE)
    holds = ((apart > -STRIDE / 2) & (apart <= STRIDE / 2)).all(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    least, which = torch.where(near | holds, area, torch.inf).min(1)
    return which.where(least < torch.inf, -1)


def _boxes(codes: Tensor, centres: Tensor) -> Tensor:
    """[S, 4] of [S, 5 + C] and [S, 2]; device/payload/decode_grid.py does the same in numpy."""
    middle = centres + codes[:, 1:3] * STRIDE
    half = codes[:, 3:PLACE].clamp(max=10).exp() * STRIDE / 2
    return torch.cat([middle - half, middle + half], 1)


def _overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of pairs: [S]."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    common = sides.clamp(min=0).prod(1)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (boxes, others)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-9)


def _raw(network: nn.Module, inputs: Inputs) -> RawForm:
    height, width = inputs[0].shape[2:]
    settings = {**_SETTINGS, "size": [height, width]}
    decode = Decode(program="decode_grid", settings=settings)
    return RawForm(network=network, loss=loss, decode=decode, distance=distance)


FAMILIES: Final = (Family(owns=lambda network: isinstance(network, GridDetector), raw=_raw),)
