"""The raw form of torchvision's one-stage detectors: the same network, the same loss, the same boxes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from detectors import batched_nms, targets, with_statistics
from torch import Tensor, nn
from torchvision.models import detection, get_model
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import boxes as box_ops

from deploy_prune.families import RawForm, raw_form

SIZE = (96, 160)
CLASSES = 3


class Body(nn.Module):
    """Two feature maps of 8 channels, at strides 8 and 16."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.one(x)
        return {"0": x, "1": self.two(x.relu())}


def small(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "ssd":
        return get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    if kind == "retinanet":
        generator = AnchorGenerator(((16, 20), (32, 40)), ((0.5, 1.0, 2.0),) * 2)
        return detection.RetinaNet(Body(), CLASSES + 1, anchor_generator=generator)
    return detection.FCOS(Body(), CLASSES + 1, anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,),) * 2))


@cache
def given(kind: str) -> tuple[nn.Module, RawForm, Tensor, tuple[Tensor, ...]]:
    """A detector with weights that tell classes apart, its raw form, three images and the raw outputs."""
    detector = small(kind).eval()
    generator = torch.Generator().manual_seed(1)
    for name, weight in detector.head.named_parameters():
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
        elif "cls_logits.bias" in name:
            weight.data = torch.randn(weight.shape, generator=generator) - 2
            weight.data[:: CLASSES + 1] -= 1  # of no class
    detector.topk_candidates = 50
    images = torch.randn(3, 3, *SIZE, generator=generator)
    with_statistics(detector.backbone, images)
    raw = raw_form(detector, [images])
    with torch.no_grad():
        return detector, raw, images, raw.network.eval()(images)


KINDS = pytest.mark.parametrize("kind", ["ssd", "retinanet", "fcos"])


def own_detections(detector: nn.Module, images: Tensor, outputs: tuple[Tensor, ...]) -> list[dict[str, Tensor]]:
    """What torchvision makes of the outputs."""
    features = list(detector.backbone(images).values())
    listed = ImageList(images, [SIZE] * len(images))
    anchors = detector.anchor_generator(listed, features)
    names = ("cls_logits", "bbox_regression", "bbox_ctrness")
    maps = dict(zip(names, outputs, strict=False))
    if isinstance(detector, SSD):
        return detector.postprocess_detections(maps, anchors, listed.image_sizes)
    counts = [x.shape[-2] * x.shape[-1] for x in features]
    per_place = outputs[0].shape[1] // sum(counts)
    sizes = [count * per_place for count in counts]
    split = {name: list(x.split(sizes, dim=1)) for name, x in maps.items()}
    return detector.postprocess_detections(split, [list(a.split(sizes)) for a in anchors], listed.image_sizes)


@KINDS
def test_boxes_are_torchvisions_own(kind, monkeypatch):
    monkeypatch.setattr(box_ops, "batched_nms", batched_nms)
    detector, raw, images, outputs = given(kind)
    with torch.no_grad():
        expected = own_detections(detector, images, outputs)
    found = raw.decode(outputs)
    assert len(found) == len(images)
    assert sum(len(one["boxes"]) for one in found) > 20
    for own, ours in zip(expected, found, strict=True):
        real = own["labels"] > 0
        np.testing.assert_allclose(ours["boxes"], own["boxes"][real], atol=1e-3, rtol=1e-5)
        np.testing.assert_allclose(ours["scores"], own["scores"][real], atol=1e-5)
        np.testing.assert_array_equal(ours["labels"], own["labels"][real] - 1)
        assert [ours[name].dtype for name in ("boxes", "scores", "labels")] == [np.float32, np.float32, np.int64]


@KINDS
def test_the_loss_is_torchvisions_own(kind):
    detector, raw, images, _ = given(kind)
    wanted = targets(3, SIZE)
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    detector.transform.forward = lambda images, t: (ImageList(images, [SIZE] * len(images)), t)
    own = detector(images, [{**t, "labels": t["labels"] + 1} for t in wanted])
    found = raw.loss(raw.network(images), wanted)
    assert found.item() == pytest.approx(sum(x.item() for x in own.values()), rel=1e-5)
    assert set(wanted[1]["labels"].tolist()) <= set(range(CLASSES))


@KINDS
def test_the_loss_of_pictures_without_boxes_is_finite_and_has_gradients(kind):
    detector, raw, images, _ = given(kind)
    detector.zero_grad()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * len(images)
    loss = raw.loss(raw.network(images), empty)
    loss.backward()
    assert torch.isfinite(loss)
    grads = [p.grad for p in raw.network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@KINDS
def test_the_loss_of_another_size_is_refused(kind):
    _, raw, _, _ = given(kind)
    with pytest.raises(ValueError, match=r"the loss is for inputs of 96 x 160 pixels, which have \d+ anchors"):
        raw.loss(raw.network(torch.randn(2, 3, 128, 128)), targets(2, (128, 128)))


@KINDS
def test_the_raw_form_is_the_same_in_both_modes_and_leaves_the_detector_as_it_was(kind):
    detector = small(kind).train()
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    raw = raw_form(detector, [torch.zeros(2, 3, *SIZE)])
    assert detector.training
    assert all(torch.equal(before[name], x) for name, x in detector.state_dict().items())
    images = torch.randn(2, 3, *SIZE)
    assert [x.shape for x in raw.network.train()(images)] == [x.shape for x in raw.network.eval()(images)]
