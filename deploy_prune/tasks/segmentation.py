"""Semantic segmentation: the class of every pixel, judged by mean intersection over union.

B batch, C classes, H W height and width of the network's input, h w those of its outputs: H W or smaller. Outputs are
logits float [B, C, h, w]; targets int64 [B, H, W], 0 to C - 1, or 255 where a pixel's class isn't known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deploy_prune.data.masks import load_masks
from deploy_prune.data.splits import TransferData
from deploy_prune.errors import DataError, ModelError
from deploy_prune.networks.libraries import import_torchvision
from deploy_prune.tasks import drawing
from deploy_prune.tasks.distance import divergence
from deploy_prune.tasks.task import Drawn, Outputs, Score, Targets, Task

VOID: Final = 255
"""The label of pixels that nobody is judged by, as in PASCAL VOC and Cityscapes."""
FIRST_COLOUR: Final = "#808080"
"""Of class 0, where it is drawn."""


def loss(outputs: Outputs, targets: Targets) -> Tensor:
    """Cross entropy, the mean over all pixels that aren't void; 0 where all are.

    Raises:
        ModelError: the outputs are no single map of logits.
    """
    total = F.cross_entropy(_resized(_logits(outputs), targets), targets, ignore_index=VOID, reduction="sum")
    num_known: Tensor = (targets != VOID).sum()
    return total / num_known.clamp(min=1)


def distance(student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
    """`tasks.distance.divergence` of the classes of every output pixel.

    Raises:
        ModelError: the outputs are no single map of logits.
    """
    return divergence(_logits(student), _logits(teacher), temperature)


def judge(pairs: Iterable[tuple[Any, Targets]]) -> float:
    """Mean intersection over union, 0 to 1, of batches of (outputs, targets): over all pictures, then over classes.

    Void pixels aren't counted; nor is a class that occurs neither in targets nor in outputs.

    Raises:
        DataError: all pixels are void, or a target's class is none of the network's.
        ModelError: the outputs are no single map of logits.
    """
    import_torchvision()
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric: Any = None
    for outputs, targets in pairs:
        logits, known = _logits(outputs).cpu(), torch.as_tensor(targets).cpu()
        num_classes = logits.shape[1]
        _require_classes(known, num_classes)
        metric = metric or MulticlassConfusionMatrix(num_classes, ignore_index=VOID, validate_args=False)
        metric.update(_resized(logits.float(), known).argmax(1), known)
    return _mean_overlap(None if metric is None else metric.compute())


def draw(data: TransferData, places: Tensor, outputs: Outputs) -> list[Drawn]:
    """These test pictures, each pixel in the colour of its class as the network says it, or as it is.

    Class 0, mostly what is around everything else, is grey. Void pixels have no colour.

    Raises:
        ModelError: the outputs are no single map of logits.
    """
    targets = torch.as_tensor(data.target_test.take(places).targets)
    classes = targets if outputs is None else _resized(_logits(outputs).cpu().float(), targets).argmax(1)
    names = drawing.names(data)
    colours = [FIRST_COLOUR, *drawing.colours(len(names) - 1)]
    pairs = zip(drawing.pictures(data, places), classes, strict=True)
    return [_drawn(picture, each, names, colours) for picture, each in pairs]


def _drawn(picture: Tensor, classes_HW: Tensor, names: Sequence[str], colours: Sequence[str]) -> Drawn:
    present = [c for c in range(len(names)) if (classes_HW == c).any()]
    masks = torch.stack([classes_HW == c for c in present]) if present else classes_HW.new_zeros(0, *classes_HW.shape)
    large = F.interpolate(masks[None].float(), picture.shape[1:])[0] > 0
    own = [colours[c] for c in present]
    if present:
        picture = import_torchvision().utils.draw_segmentation_masks(picture, large, alpha=0.5, colors=own)
    shares = [f"{names[c]} {float((classes_HW == c).float().mean()):.0%}" for c in present]
    return Drawn(picture=drawing.image(picture), found=tuple(zip(own, shares, strict=True)))


def _mean_overlap(counts_CC: Tensor | None) -> float:
    """Of pixels per true class (rows) and class that the network says (columns)."""
    if counts_CC is None or not counts_CC.any():
        message = "the pictures that a network is to be judged by have no pixel whose class is known; give others."
        raise DataError(message)
    common = counts_CC.diagonal().double()
    either = counts_CC.sum(0) + counts_CC.sum(1) - common
    return float((common / either)[either > 0].mean())


def _require_classes(targets: Tensor, num_classes: int) -> None:
    known = targets[targets != VOID]
    if len(known) and not (known.min() >= 0 and known.max() < num_classes):
        message = f"a mask has the class {int(known.max())}, but the network has classes 0 to {num_classes - 1}; void "
        message += f"is {VOID}."
        raise DataError(message)


def _logits(outputs: Outputs) -> Tensor:
    maps = [torch.as_tensor(x) for x in tree_leaves(outputs)]
    if len(maps) != 1 or maps[0].dim() != 4:
        shapes = ", ".join(str(list(x.shape)) for x in maps)
        message = f"a network that segments must give one map of logits [B, C, H, W], and gives {shapes}; wrap it in a "
        message += "module that gives that map alone."
        raise ModelError(message)
    return maps[0]


def _resized(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, C, H, W]."""
    if logits.shape[2:] == targets.shape[1:]:
        return logits
    return F.interpolate(logits, tuple(targets.shape[1:]), mode="bilinear", align_corners=False)


SEGMENTATION: Final = Task(
    score=Score(name="mIoU"), load=load_masks, loss=loss, judge=judge, distance=distance, draw=draw
)
