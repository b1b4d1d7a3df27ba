"""The raw form of torchvision's two-stage detectors: their own layers, losses, boxes, masks and keypoints."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectors import batched_nms, targets
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops

from deploy_prune.device.payload.decode_rcnn import _cubic, _linear, masks, resized
from deploy_prune.families import RawForm, raw_form
from deploy_prune.families.regions import Pooling, points_of
from deploy_prune.families.two_stage_loss import masks_in

SIZE = (96, 160)
CLASSES = 3
KINDS = pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])


class Body(nn.Module):
    """Two maps at strides 8 and 16."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.one(x)
        return {"0": x, "1": self.two(x.relu())}


def detector(kind: str) -> nn.Module:
    names = ["0", "1"]
    args = {
        "rpn_anchor_generator": AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        "box_roi_pool": MultiScaleRoIAlign(names, 4, 2, canonical_scale=30),
        "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 20, "num_classes": CLASSES + 1,
    }  # fmt: skip
    if kind == "masks":
        return MaskRCNN(Body(), mask_roi_pool=MultiScaleRoIAlign(names, 6, 2, canonical_scale=30), **args)
    if kind == "keypoints":
        pool = MultiScaleRoIAlign(names, 6, 2, canonical_scale=30)
        return KeypointRCNN(Body(), num_keypoints=5, keypoint_roi_pool=pool, **args)
    return FasterRCNN(Body(), **args)


@cache
def given(kind: str) -> tuple[nn.Module, RawForm, Tensor, tuple[Tensor, ...]]:
    """A detector whose weights tell proposals apart, its raw form, images and raw outputs."""
    torch.manual_seed(0)
    found = detector(kind).eval()
    for weight in (*found.rpn.head.parameters(), *found.roi_heads.box_predictor.parameters()):
        weight.data = torch.randn(weight.shape) / max(1, weight[0].numel()) ** 0.5
    images = torch.randn(2, 3, *SIZE)
    raw = raw_form(found, [images])
    with torch.no_grad():
        return found, raw, images, raw.network.eval()(images)


def wanted(kind: str, boxes: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Objects with masks and keypoints; the second picture's are where some boxes are."""
    found = targets(2, SIZE)
    if boxes is not None:
        found[1]["boxes"] = boxes[1, :2] + torch.tensor([0.0, 0.0, 2.0, 2.0])
    for target in found:
        num = len(target["boxes"])
        target["masks"] = torch.zeros(num, *SIZE, dtype=torch.uint8)
        target["keypoints"] = torch.cat([target["boxes"][:, None, :2].expand(-1, 5, 2), torch.ones(num, 5, 1)], 2)
        for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
            mask[top : (top + bottom) // 2, left:right] = 1
    return found


@KINDS
def test_the_layers_are_torchvisions_own(kind):
    """Its first stage's maps; and for the same proposals, its second stage's logits and codes."""
    found, _, images, made = given(kind)
    objectness, codes, proposals, logits, boxes = made[:5]
    with torch.no_grad():
        features = found.backbone(images)
        own = [list(x) for x in found.rpn.head(list(features.values()))]
        own_objectness, own_codes = concat_box_prediction_layers(*own)
        torch.testing.assert_close(objectness.reshape(-1, 1), own_objectness)
        torch.testing.assert_close(codes.reshape(-1, 4), own_codes)
        pooled = reference_pool(found.roi_heads.box_roi_pool, features, proposals)
        own_logits, own_boxes = found.roi_heads.box_predictor(found.roi_heads.box_head(pooled))
    torch.testing.assert_close(logits.flatten(0, 1), own_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes.flatten(0, 1).flatten(1), own_boxes, atol=1e-4, rtol=1e-4)
    width, height = proposals[..., 2] - proposals[..., 0], proposals[..., 3] - proposals[..., 1]
    assert (width >= 0).all()
    assert (height >= 0).all()
    assert (proposals.amax((0, 1)) <= torch.tensor([SIZE[1], SIZE[0]] * 2)).all()


def reference_pool(pooler: MultiScaleRoIAlign, features: dict[str, Tensor], proposals: Tensor) -> Tensor:
    """RoIAlign as its paper has it, point by point, each box from its own level."""
    made = []
    for number, boxes in enumerate(proposals):
        for box in boxes:
            side = (box[2:] - box[:2]).prod().sqrt()
            level = int((torch.log2(side / 30 + 1e-12) + 4 + 1e-6).floor().clamp(3, 4)) - 3
            x, scale = features[str(level)][number], (1 / 8, 1 / 16)[level]
            start, extent = box[:2] * scale, ((box[2:] - box[:2]) * scale).clamp(min=1)
            size, cells = pooler.output_size[0], torch.zeros(x.shape[0], *pooler.output_size)
            for i in range(2 * size):
                for j in range(2 * size):
                    at = start + extent * torch.tensor([(j + 0.5) / (2 * size), (i + 0.5) / (2 * size)])
                    cells[:, i // 2, j // 2] += bilinear(x, at) / 4
            made.append(cells)
    return torch.stack(made)


def bilinear(x: Tensor, at: Tensor) -> Tensor:
    most = torch.tensor([x.shape[2] - 1, x.shape[1] - 1])
    at = torch.minimum(at.clamp(min=0), most)
    low = at.floor().long()
    high, share = torch.minimum(low + 1, most), at - low
    top = x[:, low[1], low[0]] * (1 - share[0]) + x[:, low[1], high[0]] * share[0]
    bottom = x[:, high[1], low[0]] * (1 - share[0]) + x[:, high[1], high[0]] * share[0]
    return top * (1 - share[1]) + bottom * share[1]


def test_proposals_are_the_best_in_the_order_of_their_places():
    found, raw, _, made = given("boxes")
    best = made[0].topk(40, 1).indices.sort(1).values
    codes = made[1].gather(1, best[..., None].expand(-1, -1, 4))
    for number in range(2):
        own = found.rpn.box_coder.decode_single(codes[number], raw.network.anchors[best[number]])
        own = box_ops.clip_boxes_to_image(own, SIZE)
        torch.testing.assert_close(made[2][number], own, atol=1e-4, rtol=1e-5)


def test_boxes_are_torchvisions_own(monkeypatch):
    monkeypatch.setattr(box_ops, "batched_nms", batched_nms)
    found, raw, _, made = given("boxes")
    proposals, logits, codes = made[2:5]
    own = found.roi_heads.postprocess_detections(
        logits.flatten(0, 1), codes.flatten(0, 1).flatten(1), list(proposals), [SIZE] * 2
    )
    ours = raw.decode(made)
    assert sum(len(one["boxes"]) for one in ours) >= 20
    for one, boxes, scores, labels in zip(ours, *own, strict=True):
        np.testing.assert_allclose(one["boxes"], boxes, atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(one["scores"], scores, atol=1e-5)
        np.testing.assert_array_equal(one["labels"], labels - 1)


@pytest.mark.parametrize("kind", ["masks", "keypoints"])
def test_masks_and_keypoints_are_torchvisions_own(kind):
    _, raw, _, made = given(kind)
    logits, boxes, parts = made[5:]
    assert logits.shape == (2, 20, CLASSES + 1)
    every = made[3].softmax(-1)[..., 1:].amax(2)
    torch.testing.assert_close(
        logits.softmax(-1)[..., 1:].amax(2).sort(1).values, every.topk(20, 1, sorted=True).values.sort(1).values
    )
    found = raw.decode(made)
    assert sum(len(one["boxes"]) for one in found) >= 5
    for number, one in enumerate(found):
        own_boxes = torch.from_numpy(one["boxes"])
        places = (own_boxes[:, None] - boxes[number]).abs().sum(2).argmin(1)
        torch.testing.assert_close(boxes[number][places], own_boxes, atol=1e-3, rtol=1e-5)
        if kind == "masks":
            shares = parts[number][places, torch.from_numpy(one["labels"]) + 1].sigmoid()[:, None]
            own = roi_heads.paste_masks_in_image(shares, own_boxes, SIZE)[:, 0]
            clear = (own - 0.5).abs() > 1e-4
            assert (torch.from_numpy(one["masks"]) == (own > 0.5))[clear].all()
            assert 0.001 < one["masks"].mean() < 0.99
        else:
            own, _ = roi_heads.heatmaps_to_keypoints(parts[number][places], own_boxes)
            np.testing.assert_allclose(one["keypoints"], own, atol=1e-2)


def test_maps_are_resized_as_torch_resizes_them():
    maps = np.random.default_rng(0).normal(size=(2, 7, 5))
    for kernel, mode in ((_linear, "bilinear"), (_cubic, "bicubic")):
        for size in ((13, 4), (3, 11)):
            own = F.interpolate(torch.from_numpy(maps)[None], size=size, mode=mode, align_corners=False)[0]
            np.testing.assert_allclose(resized(maps, size, kernel), own, atol=1e-6)


def test_a_mask_beyond_the_edge_is_cut_off():
    found = masks(np.ones((1, 4, 4)), np.array([[-10.0, 2.0, 8.0, 30.0]]), (12, 16))
    assert found[0, 4:, :6].all()
    assert not found[0, :, 12:].any()


@KINDS
def test_losses_are_torchvisions_own(kind):
    found, raw, _, made = given(kind)
    heads, goals = found.roi_heads, wanted(kind, made[6] if len(made) > 5 else made[2])
    every = [x.clone().requires_grad_() if x.is_floating_point() else x for x in made]
    torch.manual_seed(3)
    total = raw.loss(every, goals)
    torch.manual_seed(3)
    own = sum(raw.loss._proposals(made[0], made[1], goals))
    one_based = [{**t, "labels": t["labels"] + 1} for t in goals]
    matches, labels = heads.assign_targets_to_proposals(
        list(made[2]), [t["boxes"] for t in one_based], [t["labels"] for t in one_based]
    )
    taken = heads.subsample(labels)
    box = [
        (t["boxes"] if len(t["boxes"]) else torch.zeros(1, 4))[m][i]
        for t, m, i in zip(goals, matches, taken, strict=True)
    ]
    codes = heads.box_coder.encode(box, [p[i] for p, i in zip(made[2], taken, strict=True)])
    flat = [torch.cat([x[n][taken[n]] for n in range(2)]) for x in (made[3], made[4].flatten(2))]
    own += sum(roi_heads.fastrcnn_loss(*flat, [x[i] for x, i in zip(labels, taken, strict=True)], list(codes)))
    assert total.item() >= own.item() - 1e-5
    if kind == "boxes":
        assert total.item() == pytest.approx(own.item(), rel=1e-5)
    else:
        assert total.item() > own.item() + 0.01  # the parts' loss
    total.backward()
    assert all(x.grad is not None for number, x in enumerate(every) if number in {0, 1, 3, 4, 7})


@KINDS
def test_pictures_without_boxes(kind):
    _, raw, images, _ = given(kind)
    raw.network.zero_grad()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    loss = raw.loss(raw.network(images), empty)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in raw.network.parameters())


def test_a_true_mask_in_its_box():
    mask = torch.zeros(1, 20, 20)
    mask[0, 4:8, 4:12] = 1
    shown = masks_in(mask, torch.tensor([[4.0, 4.0, 12.0, 12.0]]), 4)
    assert (shown[0, 0, :3] == 1).all()  # the others lie on the mask's edge
    assert (shown[0, :2] > 0.5).all()
    assert (shown[0, 2] < 0.5).all()
    assert (shown[0, 3] == 0).all()


def test_points_lie_evenly_in_a_box():
    points = points_of(torch.tensor([[2.0, 4.0, 6.0, 8.0]]), 0.5, (10, 20), 2)[0]
    x, y = (points[..., 0] + 1) * 20 / 2 - 0.5, (points[..., 1] + 1) * 10 / 2 - 0.5
    torch.testing.assert_close(x, torch.tensor([[1.5, 2.5]] * 2))
    torch.testing.assert_close(y, torch.tensor([[2.5, 2.5], [3.5, 3.5]]))


def test_one_level_is_read_as_it_is():
    pooling = Pooling(names=("0",), side=2, samples=2, scales=(0.5,), canonical=(224, 4))
    x = torch.arange(16.0).view(1, 1, 4, 4)
    found = pooling({"0": x}, torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]))
    assert found.shape == (1, 1, 2, 2)
    assert found[0, 0, 0, 0] < found[0, 0, 0, 1] < found[0, 0, 1, 1]
