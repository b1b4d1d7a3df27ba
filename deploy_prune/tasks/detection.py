"""Object detection: boxes and their classes, judged by mean average precision.

B batch, N boxes of a picture. Targets are a list of B dicts: boxes float32 [N, 4] (left, top, right, bottom in pixels
of the network's input), labels int64 [N] (0 to C - 1). Predictions are the same with scores, see families.Prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deploy_prune.data.boxes import load_boxes
from deploy_prune.data.splits import TransferData
from deploy_prune.device.payload.answers import SURE
from deploy_prune.errors import DataError, ModelError, perhaps
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.tasks import drawing
from deploy_prune.tasks.distance import relative
from deploy_prune.tasks.task import Drawn, Outputs, Score, Targets, Task

SCORES: Final = {"mAP50-95": "map", "mAP50": "map_50"}
"""What detectors are judged by -> torchmetrics' name: average precision at an overlap (intersection over union) of 0.5,
or the mean over 0.5, 0.55, ... 0.95, each the mean over classes, of at most 100 boxes a picture: COCO's definition."""


def detection(score: str = "mAP50-95") -> Task:
    """Object detection, judged by ``score``.

    Raises:
        DataError: there is no such score.
    """
    if score not in SCORES:
        message = f"score: a detector can't be judged by {score!r}; known: {', '.join(SCORES)}.{perhaps(score, SCORES)}"
        raise DataError(message)
    return Task(
        score=Score(name=score), load=load_boxes, loss=loss, judge=partial(judge, score=score),
        distance=relative, draw=draw,
    )  # fmt: skip


def loss(outputs: Outputs, targets: Targets) -> Tensor:
    """There is no loss for all detectors.

    Raises:
        ModelError: always.
    """
    message = "this network brings no loss of its own, and a detector's depends on what its outputs mean: take a "
    message += "network of a known family, or write a task with a `loss` and give it as `task: module:callable`."
    raise ModelError(message)


def judge(pairs: Iterable[tuple[Any, Targets]], score: str = "mAP50-95") -> float:
    """COCO's mean average precision, 0 to 1, of batches of (predictions, targets).

    A class that has no box in the targets isn't counted. ``iscrowd`` (int64 [N]) among the targets marks regions where
    boxes count neither way.

    Raises:
        DataError: no picture has a box to find.
        ModelError: the network's outputs aren't boxes: its family doesn't decode them.
    """
    import_torchvision()
    from torchmetrics.detection import MeanAveragePrecision

    # COCO's thresholds: torchmetrics' own are float32, and a recall of just 0.6 lies below theirs of 0.6
    overlaps, recalls = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
    metric = MeanAveragePrecision(iou_thresholds=overlaps, rec_thresholds=recalls, backend="pycocotools")
    metric.warn_on_many_detections = False  # that the best 100 count is the score's definition
    num_boxes = num_pictures = 0
    for predictions, targets in pairs:
        _require_boxes(predictions, len(targets))
        metric.update([_tensors(p, ("scores",)) for p in predictions], [_tensors(t, ("iscrowd",)) for t in targets])
        num_boxes += sum(len(target["labels"]) for target in targets)
        num_pictures += len(targets)
    if num_boxes == 0:
        message = f"none of the {num_pictures} pictures that a detector is to be judged by has a box; give others."
        raise DataError(message)
    return float(metric.compute()[SCORES[score]])


def draw(data: TransferData, places: Tensor, predictions: Any) -> list[Drawn]:
    """These test pictures with the boxes that are predicted, or with those that are there; masks and points, too.

    Boxes that a network is less sure of than `SURE` are left out.

    Raises:
        ModelError: the network's outputs aren't boxes.
    """
    test = data.target_test.take(places)
    found = test.targets if predictions is None else predictions
    _require_boxes(found, len(places))
    pictures = drawing.pictures(data, places)
    height, width = test.inputs[0].shape[2:]
    scale = torch.tensor([pictures.shape[3] / width, pictures.shape[2] / height])
    return [_drawn(*one, scale, drawing.names(data)) for one in zip(pictures, found, strict=True)]


def _drawn(picture: Tensor, found: Mapping[str, Any], scale: Tensor, names: Sequence[str]) -> Drawn:
    """``scale``: pixels of the picture over those of the network's input, across and down."""
    utils = import_torchvision().utils
    told = {key: torch.as_tensor(value).cpu() for key, value in found.items()}
    sure = told["scores"] >= SURE if "scores" in told else torch.ones(len(told["labels"]), dtype=torch.bool)
    told = {key: value[sure] for key, value in told.items() if len(value) == len(sure)}
    labels = told["labels"].tolist()
    of_class = drawing.colours(len(names))
    classes, colours = [names[label] for label in labels], [of_class[label] for label in labels]
    words = classes
    if "scores" in told:
        words = [f"{name} {score:.2f}" for name, score in zip(classes, told["scores"].tolist(), strict=True)]
    if labels and "masks" in told:
        masks = F.interpolate(told["masks"][None].float(), picture.shape[1:])[0] > 0
        picture = utils.draw_segmentation_masks(picture, masks, alpha=0.4, colors=colours)
    if labels:
        corners = (told["boxes"].reshape(-1, 2, 2) * scale).sort(1).values  # left above, right below
        boxes = corners.clamp(torch.zeros(2), torch.tensor([picture.shape[2], picture.shape[1]])).flatten(1)
        picture = utils.draw_bounding_boxes(picture, boxes, classes, colours, width=2, fill_labels=True)
    if labels and "keypoints" in told:
        points = told["keypoints"]
        picture = utils.draw_keypoints(
            picture, points[..., :2] * scale, radius=3, colors="white", visibility=points[..., 2] > 0
        )
    return Drawn(picture=drawing.image(picture), found=tuple(zip(colours, words, strict=True)))


def _require_boxes(predictions: Any, num_pictures: int) -> None:
    listed = isinstance(predictions, Sequence) and all(isinstance(p, Mapping) and "boxes" in p for p in predictions)
    if not listed or len(predictions) != num_pictures:
        message = f"a detector must give a prediction (boxes, scores, labels) for each of {num_pictures} pictures, but "
        message += f"a {type(predictions).__name__} came: the network is of no family that decodes its outputs."
        raise ModelError(message)


def _tensors(found: Mapping[str, Any], others: tuple[str, ...]) -> dict[str, Tensor]:
    """What the metric takes of a picture: boxes float32 [N, 4], labels int64 [N]; and these others, if there are."""
    kinds = {"boxes": torch.float32, "scores": torch.float32}
    given = {key: torch.as_tensor(found[key]).cpu() for key in ("boxes", "labels", *others) if key in found}
    made = {key: x.to(kinds.get(key, torch.int64)) for key, x in given.items()}
    return made | {"boxes": made["boxes"].reshape(-1, 4)}


DETECTION: Final = detection()
