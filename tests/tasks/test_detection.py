"""A detector's score is COCO's, whatever is wrong with its boxes."""

import contextlib
import io

import numpy as np
import pytest
import torch

from deploy_prune.errors import DataError, ModelError
from deploy_prune.tasks.detection import DETECTION, detection

CLASSES = 3


def scenes(seed, num=6, size=80.0):
    """Targets, and what a fair detector makes of them: boxes moved, some missed, some invented, labels mistaken."""
    generator = np.random.default_rng(seed)

    def boxes(n):
        corners = generator.uniform(0, size / 2, (n, 2))
        return np.concatenate([corners, corners + generator.uniform(4, size / 2, (n, 2))], 1).astype(np.float32)

    targets, predictions = [], []
    for _ in range(num):
        true, labels = boxes(n := int(generator.integers(1, 6))), generator.integers(0, CLASSES, n)
        targets.append({"boxes": torch.from_numpy(true), "labels": torch.from_numpy(labels)})
        seen = generator.uniform(size=n) < 0.8
        moved = true[seen] + generator.normal(0, 2, (int(seen.sum()), 4))
        wrong = generator.uniform(size=int(seen.sum())) < 0.1
        found = np.concatenate([moved, boxes(2)]).astype(np.float32)
        said = np.concatenate([np.where(wrong, 0, labels[seen]), generator.integers(0, CLASSES, 2)])
        predictions.append({"boxes": found, "labels": said, "scores": generator.uniform(size=len(found))})
    return predictions, targets


def perfect(targets):
    return [
        {"boxes": t["boxes"].numpy(), "labels": t["labels"].numpy(), "scores": np.ones(len(t["labels"]), np.float32)}
        for t in targets
    ]


def nothing(targets):
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "scores": np.zeros(0, np.float32)}
    return [empty for _ in targets]


def coco(predictions, targets):
    """mAP at 0.5 to 0.95 and at 0.5, by pycocotools alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(pictures):
        for number, picture in enumerate(pictures):
            for i, (left, top, right, bottom) in enumerate(np.asarray(picture["boxes"], np.float64).tolist()):
                row = {"image_id": number, "category_id": int(picture["labels"][i])}
                row |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                yield row | ({"score": float(picture["scores"][i])} if "scores" in picture else {"iscrowd": 0})

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n} for n in range(len(targets))],
            "categories": [{"id": n} for n in range(CLASSES)],
            "annotations": [{"id": n, **row} for n, row in enumerate(rows(targets), 1)],
        }
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(list(rows(predictions))), "bbox")
        found.evaluate()
        found.accumulate()
        found.summarize()
    return found.stats[0], found.stats[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_pycocotools_own(seed):
    predictions, targets = scenes(seed)
    mean, at_half = coco(predictions, targets)
    assert 0.05 < mean < at_half < 0.95
    batches = [(predictions[:4], targets[:4]), (predictions[4:], targets[4:])]
    assert DETECTION.judge(batches) == pytest.approx(mean, abs=1e-6)
    assert detection("mAP50").judge(batches) == pytest.approx(at_half, abs=1e-6)


def test_all_found_is_one_and_nothing_found_is_zero_also_beside_empty_pictures():
    _, targets = scenes(0)
    targets.append({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)})
    assert DETECTION.judge([(perfect(targets), targets)]) == pytest.approx(1)
    assert DETECTION.judge([(nothing(targets), targets)]) == 0


def test_a_box_in_an_empty_picture_costs_precision():
    _, targets = scenes(0)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    invented = [{"boxes": np.array([[1, 1, 9, 9]], np.float32), "labels": targets[0]["labels"][:1], "scores": [2.0]}]
    assert DETECTION.judge([(perfect(targets) + invented, [*targets, empty])]) < 0.99


def with_width_and_height(found):
    boxes = found["boxes"].copy()
    boxes[:, 2:] -= boxes[:, :2]
    return found | {"boxes": boxes}


FAULTS = {
    "labels from 1": lambda found: found | {"labels": found["labels"] + 1},
    "width and height for right and bottom": with_width_and_height,
    "x and y changed": lambda found: found | {"boxes": found["boxes"][:, [1, 0, 3, 2]]},
    "shares of the picture for pixels": lambda found: found | {"boxes": found["boxes"] / 80},
    "boxes in another order than labels": lambda found: found | {"boxes": found["boxes"][::-1].copy()},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_seen(fault):
    _, targets = scenes(1)
    assert DETECTION.judge([([fault(found) for found in perfect(targets)], targets)]) < 0.6


def test_pictures_without_any_box_are_refused():
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    with pytest.raises(DataError, match="none of the 2 pictures"):
        DETECTION.judge([(nothing(empty), empty)])


def test_outputs_that_nobody_decoded_are_refused():
    _, targets = scenes(0)
    with pytest.raises(ModelError, match=r"no family that decodes"):
        DETECTION.judge([(torch.zeros(6, 8, 4, 4), targets)])
    with pytest.raises(ModelError, match=r"each of 6 pictures"):
        DETECTION.judge([(perfect(targets)[:5], targets)])


def test_there_is_no_loss_for_all_detectors():
    with pytest.raises(ModelError, match=r"`task: module:callable`"):
        DETECTION.loss(torch.zeros(1), [])


def test_an_unknown_score_is_refused_with_the_nearest():
    assert DETECTION.score.name == "mAP50-95"
    assert detection("mAP50").score.name == "mAP50"
    with pytest.raises(DataError, match=r"'mAP5'.*mAP50"):
        detection("mAP5")
