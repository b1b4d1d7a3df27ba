"""Pictures with boxes around objects: what a detector is trained and judged on.

B batch, N boxes of a picture, C channels or classes, H W height and width of the network's input. Boxes are left, top,
right, bottom, in pixels: of the upright picture where they are stored, of the network's input where they are taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deploy_prune.data import scenes, varying, voc
from deploy_prune.data.annotated import BoxedPicture, Findings, Listed, boxed, counted, require, same_file_twice
from deploy_prune.data.picture_splits import WholeSet, root_of, transfer
from deploy_prune.data.pictures import NO_FRAME, Frame, Picture, StoredPicture
from deploy_prune.data.splits import TransferData
from deploy_prune.device.payload import picture
from deploy_prune.recipe.data import BoxAugment, BoxesPart

Target = dict[str, Tensor]
BoxSet = tuple[tuple[str, ...], list[BoxedPicture], list[BoxedPicture] | None]
"""Names of classes, pictures to train on, and to score on."""
MOSAIC_MIDDLE = (0.3, 0.7)
"""Where a mosaic's four pictures meet: shares of its sides, uniform."""


class Batch(NamedTuple):
    """``inputs``: tensors [B, ...]; ``targets``: one a picture."""

    inputs: tuple[Tensor, ...]
    targets: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxExamples(Dataset[tuple[Tensor, Target]]):
    """Pictures with boxes, read when they are taken.

    ``items``: with labels 0 to ``num_classes`` - 1. ``frame``: how a picture becomes an input. ``augment``: how
    `varied` varies them.
    """

    items: tuple[BoxedPicture, ...]
    num_classes: int
    frame: Frame
    augment: BoxAugment = "none"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Float32 [C, H, W], normalised, and its target: boxes float32 [N, 4], labels int64 [N]."""
        image, target = self._fitted(index)
        return self.frame.normalised(image), target

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all that a stage can see of them: pictures' content, boxes, labels, frame, augment.

        Of the content and not of files' names and times: a file that was only touched is the same.
        """
        found = hashlib.sha256(repr((self.num_classes, self.augment, len(self))).encode() + self.frame.digest)
        for item in self.items:
            found.update(item.picture.digest + item.labels.astype("<i8").tobytes() + item.boxes.astype("<f4").tobytes())
        return found.hexdigest()

    @cached_property
    def counts(self) -> Tensor:
        """int64 [len, C]: how many boxes of each class a picture has."""
        rows = [np.bincount(item.labels, minlength=self.num_classes) for item in self.items]
        return torch.tensor(np.array(rows).reshape(-1, self.num_classes), dtype=torch.int64)

    @cached_property
    def strata(self) -> Tensor:
        """int64 [len]: 1 + the rarest class of a picture's boxes, so that draws reach all; 0 without a box."""
        return rarest(self.counts)

    def take(self, indices: Tensor) -> Batch:
        """These examples: inputs float32 [B, C, H, W], normalised, and a target each, as `__getitem__` has it."""
        return _batch([self[i] for i in indices.tolist()])

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """As `take`, varied as ``augment`` says; all that is random comes from the generator, a seed an example."""
        seeds = torch.randint(2**62, (len(indices),), generator=generator)
        return _batch([self.varied_one(i, s) for i, s in zip(indices.tolist(), seeds.tolist(), strict=True)])

    def varied_one(self, index: int, seed: int) -> tuple[Tensor, Target]:
        """One example, varied as the seed has it."""
        with varying.seeded(seed):
            is_mosaic = self.augment == "mosaic" and bool(torch.rand(()) < 0.5)
            image, target = self._mosaic(index) if is_mosaic else self._changed(index, self.frame)
            if self.augment != "none":
                image, target = varying.mirrored(image, target)
                target = varying.whole_boxes(target)
        return self.frame.normalised(image.as_subclass(Tensor)), _plain(target)

    @property
    def pictures(self) -> list[Picture]:
        """The pictures alone."""
        return [item.picture for item in self.items]

    def framed(self, frame: Frame, augment: BoxAugment) -> BoxExamples:
        """The same, made inputs and varied in this way."""
        return replace(self, frame=frame, augment=augment)

    def subset(self, indices: Tensor) -> BoxExamples:
        """These examples alone."""
        return replace(self, items=tuple(self.items[i] for i in indices.tolist()))

    def of_classes(self, classes: Sequence[int]) -> BoxExamples:
        """With these classes alone, renumbered in their order; other classes' boxes are left out."""
        number_of = np.full(self.num_classes, -1)
        number_of[list(classes)] = np.arange(len(classes))
        items = []
        for item in self.items:
            kept = number_of[item.labels] >= 0
            items.append(replace(item, boxes=item.boxes[kept], labels=number_of[item.labels[kept]]))
        return replace(self, items=tuple(items), num_classes=len(classes))

    def pixels(self, indices: Tensor) -> Tensor:
        """These pictures as inputs that are not normalised: float32 [B, C, H, W] in 0..1."""
        return torch.stack([self._fitted(i)[0] for i in indices.tolist()]).float() / 255

    def _fitted(self, index: int) -> tuple[Tensor, Target]:
        """uint8 [C, H, W], and the target; a box of which a cut leaves nothing is left out."""
        item = self.items[index]
        boxes = self._placed(item.boxes, item.picture.size, self.frame)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        image = self.frame.fitted(item.picture.pixels(self.frame.channels))
        return image, {"boxes": torch.tensor(boxes[kept]), "labels": torch.tensor(item.labels[kept])}

    def _placed(self, boxes: np.ndarray[Any, Any], size: tuple[int, int], frame: Frame) -> np.ndarray[Any, Any]:
        """Boxes of a picture of this size in the input, cut off at its edges."""
        height, width = frame.size
        return np.clip(frame.to_input(boxes, size), 0, np.array([width, height, width, height], np.float32))

    def _changed(self, index: int, frame: Frame) -> tuple[Tensor, varying.Target]:
        """The picture cropped and with other colours, if that is asked for, of the frame's size: uint8 [C, H, W]."""
        item = self.items[index]
        image = torch.tensor(item.picture.pixels(frame.channels)).permute(2, 0, 1)
        target = {"boxes": varying.of_boxes(torch.tensor(item.boxes), (image.shape[1], image.shape[2]))}
        target["labels"] = torch.tensor(item.labels)
        if self.augment in varying.CROPS:
            image, target = varying.cropped_boxes(image, target)
        size = image.shape[2], image.shape[1]
        boxes = self._placed(target["boxes"].numpy(), size, frame)
        fitted = frame.fitted(image.as_subclass(Tensor).permute(1, 2, 0).numpy())
        if self.augment in varying.COLOURS:
            rows, columns = frame.inner(size)
            fitted[:, rows, columns] = varying.coloured(fitted[:, rows, columns])
        return fitted, {"boxes": varying.of_boxes(torch.tensor(boxes), frame.size), "labels": target["labels"]}

    def _mosaic(self, index: int) -> tuple[Tensor, varying.Target]:
        """Four pictures that meet near the middle, this one and three others (Bochkovskiy et al., arXiv 2004.10934)."""
        (height, width), (low, high) = self.frame.size, MOSAIC_MIDDLE
        y, x = ((low + (high - low) * torch.rand(2)) * torch.tensor([height, width])).round().int().tolist()
        others = torch.randint(len(self), (3,)).tolist()
        canvas = torch.full((self.frame.channels, height, width), picture.PAD, dtype=torch.uint8)
        boxes, labels = [], []
        corners = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
        for one, (top, left, bottom, right) in zip([index, *others], corners, strict=True):
            part, target = self._changed(one, replace(self.frame, size=(bottom - top, right - left)))
            canvas[:, top:bottom, left:right] = part
            boxes.append(target["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top]))
            labels.append(target["labels"])
        found = varying.of_boxes(torch.cat(boxes).float(), self.frame.size)
        return canvas, {"boxes": found, "labels": torch.cat(labels)}


def rarest(counts: Tensor) -> Tensor:
    """int64 [N]: of each row of counts [N, C], 1 + the class that the fewest rows have; 0 of a row without any."""
    rows_with = (counts > 0).sum(0)
    order = torch.where(counts > 0, rows_with, len(counts) + 1)
    return torch.where((counts > 0).any(1), order.argmin(1) + 1, 0)


def _batch(found: Sequence[tuple[Tensor, Target]]) -> Batch:
    return Batch((torch.stack([image for image, _ in found]),), [target for _, target in found])


def _plain(target: varying.Target) -> Target:
    return {name: value.as_subclass(Tensor) for name, value in target.items()}


def load_boxes(part: BoxesPart, seed: int) -> TransferData:
    """Read a data set of pictures with boxes, and split it; ``seed`` draws the shots.

    Raises:
        DataError: missing, damaged or empty data; broken annotations, if these are to fail; as `transfer`.
    """
    findings = Findings()
    names, train, test = _read(part, findings)
    skipped = require(findings, part.broken, Path(part.root or "."))
    whole = WholeSet(
        train=_examples(train, names), test=None if test is None else _examples(test, names), names=names,
        skipped=skipped, counted=counted(findings),
    )  # fmt: skip
    return transfer(whole, part, part.augment, seed)


def _read(part: BoxesPart, findings: Findings) -> BoxSet:
    if part.source == "scenes":
        train, test = ([_of_scene(number, scene) for number, scene in enumerate(scenes_)] for scenes_ in scenes.draw())
        return scenes.NAMES, train, test
    listed = READERS[part.source](root_of(part), part.classes, findings)
    same_file_twice(listed.train, listed.test or ())
    test_said = listed.test
    return listed.names or (), boxed(listed.train, findings), None if test_said is None else boxed(test_said, findings)


def _of_scene(number: int, scene: scenes.Scene) -> BoxedPicture:
    stored = StoredPicture(name=f"scene {number}", stored=scene.image)
    return BoxedPicture(picture=stored, boxes=scene.boxes, labels=scene.digits)


def _examples(items: Sequence[BoxedPicture], names: Sequence[str]) -> BoxExamples:
    return BoxExamples(items=tuple(items), num_classes=len(names), frame=NO_FRAME)


READERS: Final[dict[str, Callable[[Path, Sequence[str] | None, Findings], Listed]]] = {
    "voc": voc.list_boxes,
}
