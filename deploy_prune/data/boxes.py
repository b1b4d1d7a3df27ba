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
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from deploy_prune.data import coco, own_sets, scenes, varying, voc, yolo
from deploy_prune.data.annotated import BoxedPicture, Findings, Listed, boxed, counted, require, same_file_twice
from deploy_prune.data.examples import Batch
from deploy_prune.data.instances import StoredInstances
from deploy_prune.data.picture_splits import WholeSet, base_of, readable, root_of, transfer
from deploy_prune.data.pictures import NO_FRAME, Frame, Framed, Picture, StoredPicture
from deploy_prune.data.splits import TransferData
from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import BoxAugment, BoxesPart, Objects

Target = dict[str, Tensor]
MOSAIC_MIDDLE = (0.3, 0.7)
"""Where a mosaic's four pictures meet: shares of its sides, uniform."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxExamples(Framed, Dataset[tuple[Tensor, Target]]):
    """Pictures with boxes, read when they are taken.

    ``items``: with labels 0 to ``num_classes`` - 1. ``frame``: how a picture becomes an input. ``augment``: how
    `varied` varies them; ``workers``: how many processes do so when batches are read ahead. ``mirror``: for each key
    point, which one it is in a mirror; where that isn't known, nothing with key points is mirrored.
    """

    items: tuple[BoxedPicture, ...]
    num_classes: int
    frame: Frame
    augment: BoxAugment = "none"
    workers: int = 0
    mirror: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Float32 [C, H, W], normalised, and its target: boxes float32 [N, 4], labels int64 [N].

        Where the items have them: masks uint8 [N, H, W], keypoints float32 [N, K, 3].
        """
        image, target = self._fitted(index)
        return self.frame.normalised(image), target

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all that a stage can see of them: pictures' content, boxes, labels, frame, augment.

        Of the content and not of files' names and times: a file that was only touched is the same.
        """
        told = (self.num_classes, self.augment, self.mirror, len(self))
        found = hashlib.sha256(repr(told).encode() + self.frame.digest)
        for item in self.items:
            found.update(item.digest)
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
        return self.batch([self[i] for i in indices.tolist()])

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """As `take`, varied as ``augment`` says; all that is random comes from the generator, a seed an example."""
        asked = zip(indices.tolist(), varying.seeds(len(indices), generator), strict=True)
        return self.batch([self.varied_one(index, seed) for index, seed in asked])

    def varied_one(self, index: int, seed: int) -> tuple[Tensor, Target]:
        """One example, varied as the seed has it."""
        with varying.seeded(seed):
            is_mosaic = self.augment == "mosaic" and bool(torch.rand(()) < 0.5)
            image, target = self._mosaic(index) if is_mosaic else self._changed(index, self.frame)
            if self.augment != "none" and not ("keypoints" in target and self.mirror is None):
                image, target = varying.mirrored(image, target, self.mirror)
            if self.augment in varying.CROPS:
                target = varying.whole_boxes(target, (image.shape[1], image.shape[2]))
        return self.frame.normalised(image), target

    @property
    def mean(self) -> Tensor:
        """What is subtracted per channel, of values in 0..1: float32 [C]."""
        return self.frame.mean

    @property
    def std(self) -> Tensor:
        """What is divided by per channel: float32 [C]."""
        return self.frame.std

    @property
    def pictures(self) -> list[Picture]:
        """The pictures alone."""
        return [item.picture for item in self.items]

    def framed(self, frame: Frame, augment: BoxAugment, workers: int = 0) -> BoxExamples:
        """The same, made inputs and varied in this way, by so many processes."""
        return replace(self, frame=frame, augment=augment, workers=workers)

    def batch(self, ones: Sequence[tuple[Tensor, Target]]) -> Batch:
        """Some examples together."""
        return Batch((torch.stack([image for image, _ in ones]),), [target for _, target in ones])

    def subset(self, indices: Tensor) -> BoxExamples:
        """These examples alone."""
        return replace(self, items=tuple(self.items[i] for i in indices.tolist()))

    def of_classes(self, classes: Sequence[int]) -> BoxExamples:
        """With these classes alone, renumbered in their order; other classes' boxes are left out."""
        number_of = np.full(self.num_classes, -1)
        number_of[list(classes)] = np.arange(len(classes))
        items = []
        for item in self.items:
            kept = item.kept(number_of[item.labels] >= 0)
            items.append(replace(kept, labels=number_of[kept.labels]))
        return replace(self, items=tuple(items), num_classes=len(classes))

    def pixels(self, indices: Tensor) -> Tensor:
        """These pictures as inputs that are not normalised: float32 [B, C, H, W] in 0..1."""
        return torch.stack([self._fitted(i)[0] for i in indices.tolist()]).float() / 255

    def _fitted(self, index: int) -> tuple[Tensor, Target]:
        """uint8 [C, H, W], and the target; a box of which a cut leaves nothing is left out."""
        image, target = self._stored(index)
        return self._framed(image, target, self.frame)

    def _stored(self, index: int) -> tuple[Tensor, Target]:
        """uint8 [C, H, W] of the picture's own size, and its target."""
        item = self.items[index]
        target = {"boxes": torch.tensor(item.boxes), "labels": torch.tensor(item.labels)}
        if item.masks is not None:
            target["masks"] = torch.tensor(item.masks.drawn())
        if item.points is not None:
            target["keypoints"] = torch.tensor(item.points)
        return torch.tensor(item.picture.pixels(self.frame.channels)).permute(2, 0, 1), target

    def _framed(self, image: Tensor, target: Target, frame: Frame) -> tuple[Tensor, Target]:
        """A picture and its target as an input of the frame's size."""
        (height, width), size = frame.size, (image.shape[2], image.shape[1])
        boxes = frame.to_input(target["boxes"].numpy(), size)
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        found = {"boxes": torch.tensor(boxes[kept]), "labels": target["labels"][torch.tensor(kept)]}
        if "masks" in target:
            masks = [picture.fitted_mask(m, width, height, frame.fit, 0) for m in target["masks"][kept].numpy()]
            found["masks"] = torch.tensor(np.array(masks, np.uint8).reshape(-1, height, width))
        if "keypoints" in target:
            points = target["keypoints"][torch.tensor(kept)].clone()
            points[..., :2] = torch.tensor(frame.to_input(points[..., :2].numpy(), size))
            found["keypoints"] = varying.seen(points, (height, width))
        return frame.fitted(image.permute(1, 2, 0).numpy()), found

    def _changed(self, index: int, frame: Frame) -> tuple[Tensor, Target]:
        """The picture cropped and with other colours, if that is asked for, of the frame's size: uint8 [C, H, W]."""
        image, target = self._stored(index)
        if self.augment in varying.CROPS:
            image, target = varying.cropped_boxes(image, target)
        rows, columns = frame.inner((image.shape[2], image.shape[1]))
        fitted, target = self._framed(image, target, frame)
        if self.augment in varying.COLOURS:
            fitted[:, rows, columns] = varying.coloured(fitted[:, rows, columns])
        return fitted, target

    def _mosaic(self, index: int) -> tuple[Tensor, Target]:
        """Four pictures that meet near the middle, this one and three others (Bochkovskiy et al., arXiv 2004.10934)."""
        (height, width), (low, high) = self.frame.size, MOSAIC_MIDDLE
        y, x = ((low + (high - low) * torch.rand(2)) * torch.tensor([height, width])).round().int().tolist()
        others = torch.randint(len(self), (3,)).tolist()
        canvas = torch.full((self.frame.channels, height, width), picture.PAD, dtype=torch.uint8)
        targets = []
        corners = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
        for one, (top, left, bottom, right) in zip([index, *others], corners, strict=True):
            part, target = self._changed(one, replace(self.frame, size=(bottom - top, right - left)))
            canvas[:, top:bottom, left:right] = part
            target["boxes"] = target["boxes"] + torch.tensor([left, top, left, top])
            if "masks" in target:
                target["masks"] = F.pad(target["masks"], (left, width - right, top, height - bottom))
            if "keypoints" in target:
                target["keypoints"] = target["keypoints"] + torch.tensor([left, top, 0])
            targets.append(target)
        return canvas, {key: torch.cat([target[key] for target in targets]) for key in targets[0]}


def rarest(counts: Tensor) -> Tensor:
    """int64 [N]: of each row of counts [N, C], 1 + the class that the fewest rows have; 0 of a row without any."""
    rows_with = (counts > 0).sum(0)
    order = torch.where(counts > 0, rows_with, len(counts) + 1)
    return torch.where((counts > 0).any(1), order.argmin(1) + 1, 0)


def load_boxes(part: BoxesPart, seed: int) -> TransferData:
    """Read a data set of pictures with boxes, and split it; ``seed`` draws the shots.

    Raises:
        DataError: missing, damaged or empty data; broken annotations, if these are to fail; as `transfer`.
    """
    findings = Findings()
    read = _read(part, findings)
    skipped = require(findings, part.broken, base_of(part))
    whole = WholeSet(
        train=_examples(read, read.train), test=None if read.test is None else _examples(read, read.test),
        names=read.names, skipped=skipped, counted=counted(findings),
    )  # fmt: skip
    return transfer(whole, part, part.augment, seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxSet:
    """A data set as it is read; ``test`` is None where it has no part to score on."""

    names: tuple[str, ...] | None
    train: Sequence[BoxedPicture]
    test: Sequence[BoxedPicture] | None
    mirror: tuple[int, ...] | None = None


def _read(part: BoxesPart, findings: Findings) -> BoxSet:
    if part.source == "scenes":
        return _read_scenes(part)
    if ":" in part.source:
        return _read_own(part, findings)
    with readable(root := root_of(part)):
        listed = READERS[part.source](root, part, findings)
    same_file_twice(listed.train, listed.test or ())
    train, test = (
        None if said is None else boxed(said, part, listed.num_points, findings) for said in (listed.train, listed.test)
    )
    return BoxSet(names=listed.names, train=train or (), test=test, mirror=listed.mirror)


def _read_own(part: BoxesPart, findings: Findings) -> BoxSet:
    sets = own_sets.make(part)
    num = None if sets.names is None else len(sets.names)
    train = own_sets.read_boxes(sets.train, "train", part.objects, num, findings)
    num = num or num_classes(train)
    test = own_sets.read_boxes(sets.test, "test", part.objects, num, findings)
    return BoxSet(names=sets.names, train=train, test=test)


def num_classes(items: Sequence[BoxedPicture]) -> int:
    """One more than the highest label."""
    return 1 + max((int(item.labels.max()) for item in items if len(item.labels)), default=-1)


def _read_scenes(part: BoxesPart) -> BoxSet:
    if part.objects == "keypoints":
        message = "data.objects: scenes have boxes and masks, and no keypoints."
        raise DataError(message)
    train, test = ([_of_scene(i, scene, part.objects) for i, scene in enumerate(made)] for made in scenes.draw())
    return BoxSet(names=scenes.NAMES, train=train, test=test)


def _of_scene(number: int, scene: scenes.Scene, objects: Objects) -> BoxedPicture:
    owners = np.arange(1, len(scene.digits) + 1)[:, None, None]
    masks = StoredInstances(stored=(scene.owners == owners).astype(np.uint8)) if objects == "masks" else None
    stored = StoredPicture(name=f"scene {number}", stored=scene.image)
    return BoxedPicture(picture=stored, boxes=scene.boxes, labels=scene.digits, masks=masks)


def _examples(read: BoxSet, items: Sequence[BoxedPicture]) -> BoxExamples:
    num = num_classes(read.train) if read.names is None else len(read.names)
    return BoxExamples(items=tuple(items), num_classes=num, frame=NO_FRAME, mirror=read.mirror)


READERS: Final[dict[str, Callable[[Path, BoxesPart, Findings], Listed]]] = {
    "coco": coco.list_boxes,
    "voc": voc.list_boxes,
    "yolo": yolo.list_boxes,
}
