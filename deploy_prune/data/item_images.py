"""Images with a class each that are the items of a map-style Dataset: read when they are taken, as files are.

H W height and width, C channels.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import PIL
import torch

from deploy_prune.data import map_style
from deploy_prune.data.identity import identity
from deploy_prune.data.in_workers import each
from deploy_prune.data.kept_scans import A_TIME
from deploy_prune.data.own_sets import image_bytes
from deploy_prune.data.pictures import KIND, Array, Size, array_digest, kept_last, with_channels
from deploy_prune.device.payload import picture
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import DataPart
from deploy_prune.system.cache import cached_json

TRIED: Final = 8
"""Items that are read twice, to see whether the same number gives the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemImage:
    """An item's image. ``part``: of the data set, for messages.

    ``digest``: SHA-256 of its pixels (``is_seen``), or of the Dataset's `identity` and the item's number.
    """

    items: Any
    part: str
    index: int
    digest: bytes
    is_seen: bool

    def cut(self, size: tuple[int, int], channels: int, keep: bool = True) -> Array:
        """uint8 [H, W, C] of this height and width, as a file's (`pictures.FilePicture.cut`).

        Raises:
            DataError: it can't be read, or is another one than before.
        """
        return kept_last((self.digest, channels, size), lambda: self._cut(size, channels), keep)

    def _cut(self, size: tuple[int, int], channels: int) -> Array:
        try:
            image, _ = read_item(self.items, self.part, self.index)
        except ValueError as error:
            message = f"data.source: {error} (data.unreadable: skip leaves such items out)."
            raise DataError(message) from error
        if self.is_seen and array_digest(image) != self.digest:
            message = f"data.source: {self.part}[{self.index}] is another one than when it was first read. A Dataset "
            message += "must give the same for the same index; if its items were changed, give it an attribute digest, "
            message += "a text that changes with them."
            raise DataError(message)
        return picture.fitted(with_channels(image, channels), size[1], size[0], "cut")


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemImages:
    """The images of a Dataset, their classes (int64 [N]), their sizes if these are known, and what is left out."""

    pictures: tuple[ItemImage, ...]
    labels: Array
    sizes: frozenset[Size] | None
    skipped: tuple[str, ...] = ()


def read_item(items: Any, part: str, index: int) -> tuple[Array, int]:
    """An item's image, uint8 [H, W, C] with C 1 or 3, and its class.

    Raises:
        ValueError: it can't be read, or is something else.
    """
    try:
        image, label = map_style.pair(items[index])
        return image_bytes(image, turn=True), operator.index(label)
    except Exception as error:  # of the user's own code, too
        message = f"{part}[{index}] can't be read as an image and its class: {type(error).__name__}: {error}"
        raise ValueError(message) from error


def listed(items: Any, name: str, part: DataPart) -> ItemImages:
    """All items of a part, still to be read. ``name``: of the part, "train" or "test".

    Every item is read once (and what that says is kept in the cache, under the Dataset's `identity`) if the Dataset
    doesn't have the classes itself, if the recipe doesn't say to what size images are scaled, or if what can't be read
    is to be left out. Else none is but a few, which are tried.

    Raises:
        DataError: the Dataset can't be told from others, the same index gives different items, or an item can't be
            read.
    """
    if not len(items):
        message = f"data.source: the Dataset {name} of {part.source!r} is empty."
        raise DataError(message)
    told, stated = identity(items, name), map_style.labels(items)
    if stated is None or part.size is None or part.unreadable == "skip":
        rows = _rows(items, name, told, part)
        whole = [i for i, row in enumerate(rows) if isinstance(row, str)]
        seen = [rows[i].split() for i in whole]
        pictures = [
            ItemImage(items=items, part=name, index=i, digest=bytes.fromhex(row[3]), is_seen=True)
            for i, row in zip(whole, seen, strict=True)
        ]
        read = np.array([int(row[0]) for row in seen], np.int64)
        sizes = frozenset((int(wide), int(high)) for _, wide, high, _ in seen)
        skipped = tuple(row["fault"] for row in rows if not isinstance(row, str))
        found = ItemImages(pictures=tuple(pictures), labels=read, sizes=sizes, skipped=skipped)
    else:
        digests = (hashlib.sha256(f"{told}/{i}".encode()).digest() for i in range(len(items)))
        pictures = [
            ItemImage(items=items, part=name, index=i, digest=digest, is_seen=False) for i, digest in enumerate(digests)
        ]
        found = ItemImages(pictures=tuple(pictures), labels=stated, sizes=None)
    _try(found)
    return found


def _rows(items: Any, name: str, told: str, part: DataPart) -> list[Any]:
    """Of each item its class, width, height and digest as one text; where it can't be read, why, as JSON has it."""
    rows: list[Any] = []
    for start in range(0, len(items), A_TIME):
        places = range(start, min(start + A_TIME, len(items)))
        key = {"items": told, "first": start, "pillow": PIL.__version__}
        rows += cached_json(KIND, key, partial(_read_rows, items, name, places, part))
    return rows


def _read_rows(items: Any, name: str, places: Sequence[int], part: DataPart) -> list[Any]:
    """As `_rows`, not kept.

    Raises:
        DataError: an item can't be read, and isn't to be left out.
    """
    rows = list(each(partial(_row, items, name), places, part.workers))
    faults = [row["fault"] for row in rows if not isinstance(row, str)]
    if faults and part.unreadable == "fail":
        message = f"data.source: {faults[0]} (data.unreadable: skip leaves such items out)."
        raise DataError(message)
    return rows


def _row(items: Any, name: str, index: int) -> Any:
    try:
        image, label = read_item(items, name, index)
    except ValueError as error:
        return {"fault": str(error)}
    return f"{label} {image.shape[1]} {image.shape[0]} {array_digest(image).hex()}"


def _try(found: ItemImages) -> None:
    """Read a few items twice.

    Raises:
        DataError: they aren't the same both times, or have another class than was stated.
    """
    places = torch.linspace(0, len(found.pictures) - 1, TRIED).round().long().unique().tolist()
    for place in places if found.pictures else []:
        one = found.pictures[place]
        try:
            (first, label), (second, again) = (read_item(one.items, one.part, one.index) for _ in range(2))
        except ValueError as error:
            message = f"data.source: {error} (data.unreadable: skip leaves such items out)."
            raise DataError(message) from error
        if label != again or not np.array_equal(first, second):
            message = f"data.source: {one.part}[{one.index}] gives another one each time; a Dataset must give the same "
            message += "for the same index, and leave it to data.augment to vary it."
            raise DataError(message)
        if label != found.labels[place]:
            message = f"data.source: the Dataset's list of labels has {found.labels[place]} for {one.part}"
            message += f"[{one.index}], and the item itself {label}; give it the right ones, or none."
            raise DataError(message)
