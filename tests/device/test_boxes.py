import numpy as np
import pytest
import torch

from deploy_prune.device import RUNTIMES
from deploy_prune.device.payload.boxes import overlap, suppressed
from deploy_prune.networks.libraries import import_torchvision


def random_boxes(seed, num=60, size=100.0):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, size, (num, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(1, size / 2, (num, 2))], 1).astype(np.float32)
    return boxes, generator.uniform(0, 1, num).astype(np.float32), generator.integers(0, 3, num)


def by_definition(boxes, scores, iou, labels):
    """One after the other from the best: a box stays if no box that stays hides it."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        box = boxes[i].astype(np.float64)
        hides = False
        for other, label in ((boxes[j].astype(np.float64), labels[j]) for j in kept):
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            common = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
            hides = hides or (label == labels[i] and common / (sum(areas) - common) > iou)
        if not hides:
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iou", [0.2, 0.5, 0.7])
def test_boxes_stay_as_the_definition_says(seed, iou):
    boxes, scores, labels = random_boxes(seed)
    expected = by_definition(boxes, scores, iou, labels)
    assert suppressed(boxes, scores, labels, iou, 1000).tolist() == expected
    assert suppressed(boxes, scores, labels, iou, 7).tolist() == expected[:7]


@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_torchvision_keeps_the_same(iou):
    ops = import_torchvision().ops
    boxes, scores, labels = random_boxes(7, 200)
    given = [torch.from_numpy(x) for x in (boxes, scores, labels)]
    try:
        theirs = ops.batched_nms(*given, iou)
    except (NotImplementedError, RuntimeError):
        pytest.skip("torchvision's compiled operators don't load here")
    assert suppressed(boxes, scores, labels, iou, 1000).tolist() == theirs.tolist()


def test_nothing_and_boxes_of_no_area():
    none = np.zeros(0, np.float32)
    assert suppressed(np.zeros((0, 4), np.float32), none, none, 0.5, 100).shape == (0,)
    points = np.array([[3, 3, 3, 3], [3, 3, 3, 3]], np.float32)
    assert suppressed(points, np.array([0.5, 0.9], np.float32), np.zeros(2), 0.5, 100).tolist() == [1, 0]


def test_overlap_of_boxes_that_touch_hold_each_other_and_are_the_same():
    boxes = np.array([[10, 0, 20, 10], [0, 0, 5, 10], [0, 0, 10, 10]], np.float32)
    assert overlap(np.array([0, 0, 10, 10], np.float32), boxes).tolist() == [0, 0.5, 1]


def test_what_decodes_is_no_runtime():
    known = {"coreml", "executorch", "litert", "mnn", "ncnn", "onnxruntime", "openvino", "tensorrt"}
    assert set(RUNTIMES) == known
