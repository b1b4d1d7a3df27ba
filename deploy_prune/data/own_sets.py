"""Data sets of the user's own: a function that returns torch Datasets to train and to score on.

Items are pairs as torchvision's are: an image and a dict with boxes [N, 4] (left, top, right, bottom in pixels) and
labels [N] (0 to C - 1), with masks [N, H, W] or keypoints [N, K, 3] if these are asked for; or an image and a mask
[H, W]. Images are PIL's, or bytes or numbers in 0..1 of [C, H, W] (tensors) or [H, W, C] (arrays). All items are read
once before the run begins, and again when they are taken: the same index must give the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deploy_prune.data import map_style
from deploy_prune.data.annotated import BoxedPicture, Fault, Findings, fault_of_corners
from deploy_prune.data.instances import Instances
from deploy_prune.data.pictures import Array, Size, array_digest, with_channels
from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import Objects, PicturesPart

Names = tuple[str, ...]
NOT_TURNED: Final = "pictures of data sets of your own that should be turned (EXIF), and aren't"


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnSets:
    """What the function returned. ``names``: of the classes, if it said them."""

    train: Any
    test: Any
    names: Names | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemPicture:
    """An item's picture. ``where``: its part and index, for messages."""

    items: Any
    index: int
    where: str
    size: Size
    digest: bytes

    @property
    def name(self) -> str:
        """Its part and index."""
        return self.where

    def pixels(self, channels: int) -> Array:
        """uint8 [H, W, C].

        Raises:
            DataError: it isn't the picture that it was.
        """
        return with_channels(_same(self.digest, image_bytes(self.items[self.index][0]), self.where), channels)


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemMask:
    """An item's mask. ``table``: int16, value -> class, void or nothing, as of a mask in a file.

    ``content``: SHA-256 of its values.
    """

    items: Any
    index: int
    where: str
    table: Array
    content: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the values and what they mean."""
        return hashlib.sha256(self.content + array_digest(self.table)).digest()

    def classes(self) -> Array:
        """uint8 [H, W].

        Raises:
            DataError: it isn't the mask that it was.
        """
        values = _same(self.content, mask_values(self.items[self.index][1]), self.where)
        found: Array = self.table[values].astype(np.uint8)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemInstances:
    """The masks of an item's objects. ``places``: which of the item's objects are used."""

    items: Any
    index: int
    where: str
    places: Array
    digest: bytes

    def drawn(self) -> Array:
        """uint8 [N, H, W], 0 or 1.

        Raises:
            DataError: they aren't what they were.
        """
        return _same(self.digest, _masks(self.items[self.index][1]), self.where)[self.places]

    def kept(self, is_kept: Array) -> Instances:
        """Those of some objects alone."""
        return replace(self, places=self.places[is_kept])


def make(part: PicturesPart) -> OwnSets:
    """Call the function.

    Raises:
        DataError: it fails, or returns something else than two map-style data sets (and the classes' names).
    """
    found = map_style.returned(part.source)
    whole = isinstance(found, tuple) and len(found) in {2, 3}
    if not whole or not all(map(map_style.is_map_style, found[:2])):
        message = f"data.source: {part.source!r} must return two torch Datasets that have a length, to train and to "
        message += "score on, and may add a list of the classes' names."
        raise DataError(message)
    names = part.classes or (list(map(str, found[2])) if len(found) == 3 else None)
    return OwnSets(train=found[0], test=found[1], names=None if names is None else tuple(names))


def read_boxes(items: Any, name: str, objects: Objects, num: int | None, findings: Findings) -> list[BoxedPicture]:
    """The items of a part whose boxes are whole. ``num``: how many classes there are, if that is known."""
    found = []
    for index, where, (image, target) in _pairs(items, name, findings):
        try:
            boxes, labels, masks, points = _target(target, objects)
        except (ValueError, TypeError, KeyError) as error:
            cause = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            findings.faults.append(Fault(where, cause, "damaged annotations"))
            continue
        size = image.shape[1], image.shape[0]
        whole = np.array([_is_whole(b, int(c), f"{where}, box {i}", size, num, findings)
                          for i, (b, c) in enumerate(zip(boxes, labels, strict=True))], bool)  # fmt: skip
        if len(boxes) and not whole.any():
            findings.notes["pictures left out, for all their boxes are broken"] += 1
            continue
        findings.notes["pictures without a box"] += not len(boxes)
        taken = ItemPicture(items=items, index=index, where=where, size=size, digest=array_digest(image))
        instances = masks if masks is None else ItemInstances(
            items=items, index=index, where=where, places=np.arange(len(boxes)), digest=array_digest(masks)
        )  # fmt: skip
        edge = np.array([*size, *size], np.float32)
        all_of_it = BoxedPicture(
            picture=taken, boxes=np.clip(boxes, 0, edge), labels=labels, masks=instances, points=points
        )
        found.append(all_of_it.kept(whole))
    return found


def read_masks(
    items: Any, name: str, table: Array, known: Callable[[Array], Array], findings: Findings
) -> Iterator[tuple[ItemPicture, ItemMask, Array]]:
    """Pictures, masks and their classes uint8 [H, W] of a part. ``known``: values -> classes, or ValueError."""
    for index, where, (image, mask) in _pairs(items, name, findings):
        size = image.shape[1], image.shape[0]
        try:
            values = mask_values(mask)
            classes = known(values)
            if values.shape != image.shape[:2]:
                message = f"it has {values.shape[1]}x{values.shape[0]} pixels, and its picture has {size[0]}x{size[1]}"
                raise ValueError(message)
        except (ValueError, TypeError) as error:
            findings.faults.append(Fault(where, str(error), "broken masks"))
            continue
        taken = ItemPicture(items=items, index=index, where=where, size=size, digest=array_digest(image))
        yield (
            taken,
            ItemMask(items=items, index=index, where=where, table=table, content=array_digest(values)),
            classes,
        )


def image_bytes(image: Any, turn: bool = False) -> Array:
    """uint8 [H, W, C] with C 1 or 3, of an image as items have it.

    PIL's become what they would be if they were read from a file. ``turn``: as their EXIF data says.

    Raises:
        ValueError: it is none.
    """
    if isinstance(image, Image.Image):
        mode = "L" if image.mode in {"1", "L"} or image.mode.startswith("I") else "RGB"
        found = (picture.upright if turn else picture.plain)(image, mode)
        pixels: Array = np.asarray(found)
        return pixels.reshape(found.height, found.width, -1)
    if isinstance(image, Tensor):
        array: Array = image.detach().cpu().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in {1, 3} or min(array.shape) < 1:
        message = f"an image of shape {list(np.shape(image))} is none of [C, H, W] (a tensor) or [H, W, C] (an array)"
        raise ValueError(message)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        message = f"an image's values must be bytes, or numbers from 0 to 1; these are {array.dtype}"
        raise ValueError(message)
    scaled: Array = np.rint(array * 255)
    return scaled.astype(np.uint8)


def mask_values(mask: Any) -> Array:
    """int32 [H, W].

    Raises:
        ValueError: it is no mask.
    """
    values: Array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    values = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "iub":
        message = f"a mask must be whole numbers [H, W]; this is {values.dtype} {list(values.shape)}"
        raise ValueError(message)
    found: Array = values.astype(np.int32)
    return found


def _pairs(items: Any, name: str, findings: Findings) -> Iterator[tuple[int, str, tuple[Array, Any]]]:
    """Index, name, image and target of each item that can be read."""
    for index in range(len(items)):
        where = f"{name}[{index}]"
        try:
            image, target = items[index]
            pixels = image_bytes(image)
            findings.notes[NOT_TURNED] += isinstance(image, Image.Image) and picture.orientation(image) != 1
            yield index, where, (pixels, target)
        except Exception as error:
            findings.faults.append(Fault(where, f"{type(error).__name__}: {error}", "unreadable pictures"))


def _target(target: Any, objects: Objects) -> tuple[Array, Array, Array | None, Array | None]:
    """Boxes float32 [N, 4], labels int64 [N], masks and key points, as far as they are wanted."""
    layout = str(getattr(getattr(target["boxes"], "format", None), "value", "XYXY"))
    boxes = np.asarray(torch.as_tensor(target["boxes"]).as_subclass(Tensor), np.float32).reshape(-1, 4)
    labels = np.asarray(torch.as_tensor(target["labels"])).reshape(-1)
    if layout != "XYXY" or len(labels) != len(boxes) or labels.dtype.kind not in "iu" and len(labels):
        message = (
            f"it has {len(boxes)} boxes ({layout}) and {len(labels)} labels ({labels.dtype}); boxes are left, top, "
        )
        message += "right, bottom, with a whole number for each"
        raise ValueError(message)
    masks = _masks(target) if objects == "masks" else None
    points = np.asarray(torch.as_tensor(target["keypoints"]), np.float32) if objects == "keypoints" else None
    if any(len(each) != len(boxes) for each in (masks, points) if each is not None):
        message = f"it has not one of its {objects} for each box"
        raise ValueError(message)
    if points is not None and (points.ndim != 3 or points.shape[2] != 3 or not np.isfinite(points).all()):
        message = f"keypoints must be finite numbers [N, K, 3]; these are {list(points.shape)}"
        raise ValueError(message)
    return boxes, labels.astype(np.int64), masks, points


def _masks(target: Any) -> Array:
    """uint8 [N, H, W], 0 or 1."""
    masks = np.asarray(torch.as_tensor(target["masks"]).as_subclass(Tensor))
    if masks.ndim != 3:
        message = f"masks must be [N, H, W]; these are {list(masks.shape)}"
        raise ValueError(message)
    return (masks > 0).astype(np.uint8)


def _is_whole(box: Array, label: int, where: str, size: Size, num: int | None, findings: Findings) -> bool:
    left, top, right, bottom = map(float, box)
    fault = fault_of_corners((left, top, right, bottom), *size)
    if fault is None and not 0 <= label < (math.inf if num is None else num):
        fault = f"has the label {label}, and there are {num} classes, from 0", "boxes of an unknown class"
    if fault is not None:
        said = ", ".join(f"{value:.6g}" for value in (left, top, right, bottom))
        findings.faults.append(Fault(where, f"the box [{said}] {fault[0]}", fault[1]))
    return fault is None


def _same(digest: bytes, array: Array, where: str) -> Array:
    if array_digest(array) != digest:
        message = f"data.source: {where} is another one than when it was first read; a data set must give the same for "
        message += "the same index, and leave it to data.augment to vary it."
        raise DataError(message)
    return array
