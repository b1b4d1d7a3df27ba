"""Pictures with masks, where each pixel has a class: what a segmenter is trained and judged on.

B batch, C channels or classes, H W height and width of the network's input. A mask's values are classes, 0 to C - 1, or
VOID: such a pixel has no class and doesn't count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deploy_prune.data import coco, mask_folders, own_sets, scenes, varying, voc
from deploy_prune.data.annotated import (
    Annotated,
    Fault,
    Findings,
    Listed,
    counted,
    require,
    same_file_twice,
    scanned,
)
from deploy_prune.data.boxes import rarest
from deploy_prune.data.examples import Batch
from deploy_prune.data.mask_files import MAX_CLASSES, UNKNOWN, classes_in, kept_masks, known, table_of
from deploy_prune.data.object_masks import VOID as VOID
from deploy_prune.data.object_masks import mask_of
from deploy_prune.data.picture_splits import WholeSet, base_of, readable, root_of, transfer
from deploy_prune.data.pictures import (
    NO_FRAME,
    Array,
    Frame,
    Framed,
    Picture,
    StoredPicture,
    array_digest,
)
from deploy_prune.data.splits import TransferData
from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MaskAugment, MasksPart


class Mask(Protocol):
    """A picture's mask."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of its content."""

    def classes(self) -> Array:
        """uint8 [H, W]: 0 to C - 1, or VOID."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredMask:
    """A mask in memory: uint8 [H, W]."""

    stored: Array

    @property
    def digest(self) -> bytes:
        """SHA-256 of shape and bytes."""
        return array_digest(self.stored)

    def classes(self) -> Array:
        """uint8 [H, W]: 0 to C - 1, or VOID."""
        return self.stored


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedPicture:
    """A picture, its mask, and the classes that are in it, ascending."""

    picture: Picture
    mask: Mask
    present: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskExamples(Framed, Dataset[tuple[Tensor, Tensor]]):
    """Pictures with masks, read when they are taken.

    ``numbers``: uint8 [256], a mask's class -> its number here, 0 to ``num_classes`` - 1, or VOID. ``frame``: how a
    picture becomes an input. ``augment``: how `varied` varies them; ``workers``: how many processes do so when batches
    are read ahead.
    """

    items: tuple[MaskedPicture, ...]
    num_classes: int
    numbers: Array
    frame: Frame
    augment: MaskAugment = "none"
    workers: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Float32 [C, H, W], normalised, and its mask, int64 [H, W]."""
        image, mask = self._stored(index)
        return self.frame.normalised(self.frame.fitted(image)), self._fitted(mask)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all that a stage can see of them: pictures' and masks' content, frame, augment.

        Of the content and not of files' names and times: a file that was only touched is the same.
        """
        found = hashlib.sha256(repr((self.num_classes, self.augment, len(self))).encode() + self.frame.digest)
        found.update(self.numbers.tobytes())
        for item in self.items:
            found.update(item.picture.digest + item.mask.digest)
        return found.hexdigest()

    @cached_property
    def counts(self) -> Tensor:
        """int64 [len, C]: 1 where a class is in a picture."""
        found = torch.zeros(len(self), self.num_classes, dtype=torch.int64)
        for row, item in enumerate(self.items):
            here = self.numbers[list(item.present)]
            found[row, here[here != VOID].astype(np.int64)] = 1
        return found

    @cached_property
    def strata(self) -> Tensor:
        """int64 [len]: 1 + the rarest class in a picture, so that draws reach all; 0 without any."""
        return rarest(self.counts)

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

    def take(self, indices: Tensor) -> Batch:
        """These examples: inputs float32 [B, C, H, W], normalised; targets int64 [B, H, W]."""
        return self.batch([self[i] for i in indices.tolist()])

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """As `take`, varied as ``augment`` says; all that is random comes from the generator, a seed an example."""
        asked = zip(indices.tolist(), varying.seeds(len(indices), generator), strict=True)
        return self.batch([self.varied_one(index, seed) for index, seed in asked])

    def varied_one(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        """One example, varied as the seed has it."""
        image, mask = self._stored(index)
        with varying.seeded(seed):
            if self.augment in varying.CROPS:
                image, mask = varying.cropped_mask(image, mask)
            x, y = self.frame.fitted(image), self._fitted(mask)
            if self.augment in varying.COLOURS:
                rows, columns = self.frame.inner((image.shape[1], image.shape[0]))
                x[:, rows, columns] = varying.coloured(x[:, rows, columns])
            if self.augment != "none":
                x, y = varying.mirrored_mask(x, y)
        return self.frame.normalised(x), y

    def batch(self, ones: Sequence[tuple[Tensor, Tensor]]) -> Batch:
        """Some examples together."""
        return Batch((torch.stack([image for image, _ in ones]),), torch.stack([mask for _, mask in ones]))

    def subset(self, indices: Tensor) -> MaskExamples:
        """These examples alone."""
        return replace(self, items=tuple(self.items[i] for i in indices.tolist()))

    def of_classes(self, classes: Sequence[int]) -> MaskExamples:
        """With these classes alone, renumbered in their order; other classes' pixels become VOID."""
        table = np.full(256, VOID, np.uint8)
        table[list(classes)] = np.arange(len(classes))
        return replace(self, numbers=table[self.numbers], num_classes=len(classes))

    def framed(self, frame: Frame, augment: MaskAugment, workers: int = 0) -> MaskExamples:
        """The same, made inputs and varied in this way, by so many processes."""
        return replace(self, frame=frame, augment=augment, workers=workers)

    def pixels(self, indices: Tensor) -> Tensor:
        """These pictures as inputs that are not normalised: float32 [B, C, H, W] in 0..1."""
        return torch.stack([self.frame.fitted(self._stored(i)[0]) for i in indices.tolist()]).float() / 255

    def _stored(self, index: int) -> tuple[Array, Array]:
        """uint8 [H, W, C] and [H, W], of the picture's own size."""
        item = self.items[index]
        return item.picture.pixels(self.frame.channels), self.numbers[item.mask.classes()]

    def _fitted(self, mask: Array) -> Tensor:
        height, width = self.frame.size
        return torch.tensor(picture.fitted_mask(mask, width, height, self.frame.fit, VOID), dtype=torch.int64)


def load_masks(part: MasksPart, seed: int) -> TransferData:
    """Read a data set of pictures with masks, and split it; ``seed`` draws the shots.

    Raises:
        DataError: missing, damaged or empty data; broken masks, if these are to fail; as `transfer`.
    """
    findings = Findings()
    names, train, test = _read(part, findings)
    num = len(names or part.values or ()) or 1 + max((c for item in train for c in item.present), default=0)
    if num < 2:
        message = "data: the masks have one class only, which is nothing to learn; if other values are classes, too, "
        message += "say so, as in data.values: [0, 255] with data.void: null."
        raise DataError(message)
    if test is not None:
        test = [item for item in test if _is_known(item, num, findings)]
    skipped = require(findings, part.broken, base_of(part))
    whole = WholeSet(
        train=_examples(train, num), test=None if test is None else _examples(test, num), names=names,
        skipped=skipped, counted=counted(findings),
    )  # fmt: skip
    return transfer(whole, part, part.augment, seed)


MaskSet = tuple[tuple[str, ...] | None, list[MaskedPicture], list[MaskedPicture] | None]
"""Names of classes, pictures to train on, and to score on."""


def _read(part: MasksPart, findings: Findings) -> MaskSet:
    if part.source == "scenes":
        train, test = ([_of_scene(i, scene) for i, scene in enumerate(made)] for made in scenes.draw())
        return ("field", *scenes.NAMES), train, test
    if ":" in part.source:
        return _read_own(part, findings)
    with readable(root := root_of(part)):
        listed = READERS[part.source](root, part, findings)
    same_file_twice(listed.train, listed.test or ())
    table = table_of(part)
    train = masked(listed.train, table, part, findings)
    test_masks = None if listed.test is None else masked(listed.test, table, part, findings)
    return listed.names or (None if part.classes is None else tuple(part.classes)), train, test_masks


def _read_own(part: MasksPart, findings: Findings) -> MaskSet:
    sets, table = own_sets.make(part), table_of(part)
    num = len(part.values or ()) or len(sets.names or ()) or MAX_CLASSES
    table[(table >= num) & (table != VOID)] = UNKNOWN
    parts: list[list[MaskedPicture]] = []
    for name, items in (("train", sets.train), ("test", sets.test)):
        read = own_sets.read_masks(items, name, table, partial(known, table=table), findings)
        seen = (_present(one, mask, classes_in(classes), findings) for one, mask, classes in read)
        parts.append([one for one in seen if one is not None])
    return sets.names, parts[0], parts[1]


def _present(one: Picture, mask: Mask, present: tuple[int, ...], findings: Findings) -> MaskedPicture | None:
    """The picture, unless no pixel of it has a class, which is counted."""
    if not present:
        findings.notes["pictures left out, for no pixel of theirs has a class"] += 1
        return None
    return MaskedPicture(picture=one, mask=mask, present=present)


def masked(said: Sequence[Annotated], table: Array, part: MasksPart, findings: Findings) -> list[MaskedPicture]:
    """The pictures that can be read and whose masks are whole. One without any class is left out, and counted."""
    found: list[MaskedPicture | None] = []
    whole = list(scanned(said, part, findings))
    files = iter(kept_masks([(one.mask, scan) for one, scan in whole if one.mask is not None], table, part.workers))
    for one, scan in whole:
        if one.mask is None:
            drawn = mask_of(one, scan, findings)
            found.append(_present(scan.picture, drawn, classes_in(drawn.classes()), findings))
        elif isinstance(seen := next(files), ValueError):
            findings.faults.append(Fault(one.annotation, str(seen), "broken masks"))
        else:
            found.append(_present(scan.picture, *seen, findings))
    return [one for one in found if one is not None]


def _is_known(item: MaskedPicture, num: int, findings: Findings) -> bool:
    """Whether the picture has only classes that are trained."""
    if item.present[-1] < num:
        return True
    what = f"its mask has the class {item.present[-1]}, and the training masks have 0 to {num - 1}"
    findings.faults.append(Fault(item.picture.name, what, "broken masks"))
    return False


def _of_scene(number: int, scene: scenes.Scene) -> MaskedPicture:
    stored = StoredPicture(name=f"scene {number}", stored=scene.image)
    present = tuple(int(c) for c in np.unique(scene.classes))
    return MaskedPicture(picture=stored, mask=StoredMask(stored=scene.classes), present=present)


def _examples(items: Sequence[MaskedPicture], num: int) -> MaskExamples:
    numbers = np.full(256, VOID, np.uint8)
    numbers[:num] = np.arange(num)
    return MaskExamples(items=tuple(items), num_classes=num, numbers=numbers, frame=NO_FRAME)


READERS: Final[dict[str, Callable[[Path, MasksPart, Findings], Listed]]] = {
    "folders": lambda root, part, findings: mask_folders.list_masks(root, findings),
    "voc": lambda root, part, findings: voc.list_masks(root, findings),
    "coco": coco.list_masks,
}
