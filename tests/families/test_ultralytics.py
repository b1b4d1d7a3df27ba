"""Ultralytics' detectors: their own loss and their own boxes, from raw maps; cut to half, trained and exported."""

from __future__ import annotations

import copy
import dataclasses
import os
from functools import cache

import numpy as np
import pytest
import torch
from detectors import plain_nms, with_statistics
from torch import Tensor, nn

import deploy_prune
from deploy_prune.errors import DataError, ModelError
from deploy_prune.families import RawForm, raw_form
from deploy_prune.networks.build import build_network, head_tensors, own_input
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.recipe.parts import ModelPart

pytestmark = pytest.mark.ultralytics
os.environ.setdefault("YOLO_OFFLINE", "1")
import_torchvision()
pytest.importorskip("ultralytics", reason="ultralytics is not installed")

from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402
from ultralytics.utils.ops import process_mask  # noqa: E402

SIZE = (64, 96)
CLASSES = 3
POINTS = 17
NAMES = ("yolov8n", "yolov8n-pose", "yolo11n", "yolo11n-seg")
ONE_TO_ONE = ("yolov10n", "yolo26n")


def pictures(num: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Targets of which the first has no box: boxes, the pixels in them, and points in them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for boxes_of_picture in range(num):
        n = min(boxes_of_picture, 2)
        corner = torch.rand(n, 2, generator=generator) * torch.tensor([48, 32])
        boxes = torch.cat([corner, corner + 12 + 20 * torch.rand(n, 2, generator=generator)], 1)
        masks = torch.zeros(n, *SIZE, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        inside = (
            boxes[:, None, :2] + torch.rand(n, POINTS, 2, generator=generator) * (boxes[:, 2:] - boxes[:, :2])[:, None]
        )
        points = torch.cat([inside, (torch.rand(n, POINTS, 1, generator=generator) > 0.3).float()], 2)
        labels = torch.randint(0, CLASSES, (n,), generator=generator)
        made.append({"boxes": boxes, "labels": labels, "masks": masks, "keypoints": points})
    return made


def as_they_have_it(targets: list[dict[str, Tensor]], small: tuple[int, int]) -> dict[str, Tensor]:
    """What Ultralytics' data set makes of such targets."""
    height, width = SIZE
    rows = [(i, t, k) for i, t in enumerate(targets) for k in range(len(t["labels"]))]
    left, top, right, bottom = torch.stack([t["boxes"][k] for _, t, k in rows]).T
    boxes = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1)
    step = (height // small[0], width // small[1])
    masks = [t["masks"][k].reshape(small[0], step[0], small[1], step[1]).float().mean((1, 3)) > 0.5 for _, t, k in rows]
    return {
        "batch_idx": torch.tensor([float(i) for i, _, _ in rows]),
        "cls": torch.tensor([float(t["labels"][k]) for _, t, k in rows]),
        "bboxes": boxes / torch.tensor([width, height, width, height]),
        "masks": torch.stack(masks).float(),
        "keypoints": torch.stack([t["keypoints"][k] for _, t, k in rows]) / torch.tensor([width, height, 1]),
    }


@cache
def given(name: str) -> tuple[nn.Module, RawForm, Tensor]:
    """A network whose random weights find a lot, its raw form, and pictures."""
    torch.manual_seed(0)
    network = build_network(ModelPart(source=f"ultralytics:{name}"), CLASSES)
    images = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with_statistics(network, images)
    for part, bias in network.model[-1].named_parameters():
        if "cv3" in part and bias.shape == (CLASSES,):
            bias.data[:] = torch.tensor([-2.0, -3.0, -2.5])
    return network, raw_form(network, [images]), images


def matched(found: dict[str, np.ndarray], theirs: Tensor) -> list[int]:
    """Which of their rows (box, score, label) is which of ours, near to each other; rows of equal score may be swapped.

    Boxes are compared within the picture.
    """
    rows = theirs.clone()
    rows[:, :4] = rows[:, :4].clamp(torch.zeros(4), torch.tensor([SIZE[1], SIZE[0]] * 2))
    ours = np.concatenate([found["boxes"], found["scores"][:, None] * 100, found["labels"][:, None]], 1)
    rows = rows[:, :6].numpy() * [1, 1, 1, 1, 100, 1]
    apart = abs(ours[:, None] - rows).max(2)
    left, order = set(range(len(rows))), []
    for one in apart:
        best = min(left, key=lambda place: one[place])
        assert one[best] < 5e-3
        order.append(best)
        left.remove(best)
    return order


@pytest.mark.parametrize("name", NAMES)
def test_boxes_masks_and_points_are_ultralytics_own(name, monkeypatch):
    monkeypatch.setattr("torchvision.ops.nms", plain_nms)
    network, raw, images = given(name)
    least, overlap, most = (raw.decode.settings[key] for key in ("least_score", "overlap", "most_boxes"))
    with torch.no_grad():
        theirs = network.eval()(images)[0]
        found = raw.decode(raw.network.eval()(images))
    theirs, prototypes = theirs if name.endswith("seg") else (theirs, None)
    kept = non_max_suppression(theirs, least, overlap, multi_label=True, nc=CLASSES, max_det=most)
    assert sum(len(one) for one in kept) > 20
    for number, (ours, one) in enumerate(zip(found, kept, strict=True)):
        assert len(ours["boxes"]) == len(one)
        one = one[matched(ours, one)]
        if name.endswith("seg"):
            masks = process_mask(prototypes[number], one[:, 6:], one[:, :4].clone(), SIZE, upsample=True).bool().numpy()
            assert ours["masks"].any()
            assert (ours["masks"] != masks).mean() < 1e-3
        if name.endswith("pose"):
            np.testing.assert_allclose(ours["keypoints"], one[:, 6:].reshape(-1, POINTS, 3), atol=2e-3)


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_a_head_without_suppression_gives_its_own_boxes(name):
    network, raw, images = given(name)
    network.end2end = True  # its deployed head; the other is for training
    with torch.no_grad():
        theirs = network.eval()(images)[0]
        found = raw.decode(raw.network.eval()(images))
    for ours, one in zip(found, theirs, strict=True):
        assert len(ours["scores"]) == raw.decode.settings["most_boxes"]
        matched(ours, one)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_ultralytics_own(name):
    network, raw, images = given(name)
    network = copy.deepcopy(network).train()
    network.args = get_cfg(overrides={"overlap_mask": False})
    outputs = raw.network.train()(images)
    targets = pictures(3)
    small = tuple(outputs[-1].shape[2:]) if name.endswith("seg") else (16, 24)
    own, _ = network.init_criterion()(network(images), as_they_have_it(targets, small))
    assert raw.loss(outputs, targets).item() == pytest.approx(own.sum().item() / 3, rel=1e-4)


@pytest.mark.parametrize("name", [*NAMES, *ONE_TO_ONE])
def test_the_loss_of_pictures_without_boxes_is_finite_and_has_gradients(name):
    _, raw, images = given(name)
    value = raw.loss(raw.network.train()(images[:2]), [pictures(1)[0], pictures(1)[0]])
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in raw.network.parameters())
    scores = [m for n, m in raw.network.named_modules() if "cv3" in n and isinstance(m, nn.Conv2d)]
    assert all(m.weight.grad is not None for m in scores)
    raw.network.zero_grad()


@pytest.mark.parametrize("name", [*NAMES, *ONE_TO_ONE])
def test_the_raw_form_shares_weights_and_names_and_gives_the_same_in_both_modes(name):
    network, raw, images = given(name)
    whole, bare = network.state_dict(), raw.network.state_dict()
    assert bare.keys() < whole.keys()
    assert all(tensor.data_ptr() == whole[key].data_ptr() for key, tensor in bare.items())
    assert not any("dfl" in key for key in bare)
    shapes = [[x.shape for x in raw.network.train(mode)(images)] for mode in (True, False)]
    assert shapes[0] == shapes[1]
    assert all(len(shape) == 4 for shape in shapes[0])


@pytest.mark.parametrize("name", [*NAMES, *ONE_TO_ONE])
def test_a_teacher_is_no_distance_from_itself_and_every_output_counts(name):
    _, raw, images = given(name)
    with torch.no_grad():
        outputs = raw.network.eval()(images)
    assert raw.distance(outputs, outputs, 2.0) == pytest.approx(0, abs=1e-4)
    student = [x.clone() for x in outputs]
    for x in student:
        x += 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
    raw.distance(student, outputs, 2.0).backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in student)


@pytest.mark.parametrize(("name", "key"), [("yolo11n-seg", "masks"), ("yolov8n-pose", "keypoints")])
def test_boxes_alone_do_not_train_masks_or_points(name, key):
    _, raw, images = given(name)
    targets = [{k: x for k, x in target.items() if k != key} for target in pictures(3)]
    with pytest.raises(DataError, match=f"gives {key}, but the data that trains it has boxes alone"):
        raw.loss(raw.network(images), targets)


def test_networks_are_built_by_name_for_any_classes_and_channels():
    part = ModelPart(source="ultralytics:yolo11n", args={"ch": 1})
    network = build_network(part, 7)
    raw = raw_form(network, [torch.zeros(1, 1, *SIZE)])
    assert [x.shape[1] for x in raw.network(torch.zeros(2, 1, *SIZE))] == [64, 7] * 3
    assert own_input(part, 7).mean == (0.0,)
    changed = head_tensors(part, 7)
    assert {name.split(".")[2] for name in changed} == {"cv3"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ultralytics:yolov8", "no network 'yolov8'.*yolov8.'"),
        ("ultralytics:yolov8n-cls", "its last layer is Classify"),
    ],
)
def test_what_cannot_be_built_is_refused(source, message):
    with pytest.raises(ModelError, match=message):
        build_network(ModelPart(source=source), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_the_macs_are_cut_trained_and_exported(name, tmp_path):
    torch.manual_seed(0)
    network = build_network(ModelPart(source=f"ultralytics:{name}"), CLASSES)
    images = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    raw, targets = raw_form(with_statistics(network, images), [images]), pictures(4)
    (found,) = deploy_prune.prune(raw, images, batches=[(images, targets)], budget="50% macs", steps=3)
    assert found.macs == pytest.approx(found.dense_macs / 2, rel=0.02)
    assert all(whole.reason == "it reaches the network's output" for whole in found.structure.whole)
    slim = found.network.train()
    value = raw.loss(slim(images), targets)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in slim.parameters() if p.requires_grad)
    before = [p.detach().clone() for p in slim.parameters()]
    torch.optim.SGD(slim.parameters(), lr=1e-4).step()
    moved = [not torch.equal(old, new) for old, new in zip(before, slim.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert raw.loss(slim(images), targets).isfinite()
    with_statistics(slim, images)
    artifact = deploy_prune.export_network(slim, images, "onnx", path=tmp_path / "slim.onnx")
    assert artifact.unchecked is None
    every = dataclasses.replace(raw.decode, settings={**raw.decode.settings, "least_score": 0.0})
    with torch.no_grad():
        for one in every(slim(images)):
            assert 10 < len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) <= 100
            assert ((one["boxes"] >= 0) & (one["boxes"] <= [96, 64, 96, 64])).all()
            assert (np.diff(one["scores"]) <= 0).all()
            assert set(one["labels"].tolist()) <= set(range(CLASSES))
