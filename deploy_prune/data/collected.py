"""A data set of images with a class each, as it is stored.

N examples, H W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from deploy_prune.data.files import Images
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import MAX_SIZE, MIN_SIZE

MAX_LABEL: Final = 1_000_000
"""No data set has as many classes: what is above is no class's number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Images uint8 (0..255) or float (0..1) [N, C, H, W], or files of them, and their classes int64 [N]."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """A data set as it is stored. ``test`` is None where it has no test set of its own.

    ``names``: the classes' names by their numbers; None where the data set has only the numbers. ``skipped``: files
    that were left out for they can't be read (``data.unreadable: skip``), from the data set's root. ``ignored``: how
    many other files are not read, by what they are.
    """

    train: Labelled
    test: Labelled | None
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)


def of_arrays(arrays: list[Any], where: Path | str) -> Collection:
    """The data set of x_train, y_train, x_test and y_test; ``where``: they are from, for messages.

    Raises:
        DataError: they aren't images and their classes.
    """
    try:
        x_train, y_train, x_test, y_test = (np.asarray(array) for array in arrays)
    except Exception as error:
        message = f"data: {where} has what can't be read as a numpy array: {error}"
        raise DataError(message) from error
    return Collection(
        train=labelled(_channels_first(x_train, where), y_train, where),
        test=labelled(_channels_first(x_test, where), y_test, where),
    )


def _channels_first(images: np.ndarray[Any, Any], where: Path | str) -> np.ndarray[Any, Any]:
    """[N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3 -> [N, C, H, W]."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    message = f"data: {where} has images of shape {list(images.shape)}, not [N, H, W], [N, H, W, C] or [N, C, H, W]."
    raise DataError(message)


def labelled(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], where: Path | str) -> Labelled:
    """Images [N, C, H, W] and their classes [N]; ``where``: they are from, for messages.

    Raises:
        DataError: they are none.
    """
    problem = fault_of_labels(labels, len(images)) or _fault_of_images(images)
    if problem:
        message = f"data: {where} has {problem}."
        raise DataError(message)
    pixels = images if images.dtype == np.uint8 else images.astype(np.float32)
    return Labelled(images=torch.tensor(pixels), labels=torch.tensor(labels.astype(np.int64)))


def fault_of_labels(labels: np.ndarray[Any, Any], num_images: int) -> str | None:
    """Why these aren't the classes of so many images; None if they are."""
    if labels.ndim != 1 or len(labels) != num_images:
        return f"{num_images} images and labels of shape {list(labels.shape)}"
    if not labels.size:
        return None
    if not np.issubdtype(labels.dtype, np.integer):
        return f"labels of type {labels.dtype}, not integers"
    if labels.min() < 0:
        return f"a label below 0, {labels.min()}"
    return f"a label above {MAX_LABEL}, {labels.max()}" if labels.max() > MAX_LABEL else None


def _fault_of_images(images: np.ndarray[Any, Any]) -> str | None:
    """Of [N, C, H, W]."""
    is_float = np.issubdtype(images.dtype, np.floating)
    if images.dtype != np.uint8 and not is_float:
        return f"images of type {images.dtype}, not uint8 or float"
    if not images.size:
        return "images of {2}x{3} pixels".format(*images.shape) if len(images) else None
    if not is_float:
        return None
    if not np.isfinite(images).all():
        return f"pixels that are NaN or infinite, first in image {_first_not_finite(images)}"
    low, high = images.min(), images.max()
    return None if low >= 0 and high <= 1 else f"float images from {low:g} to {high:g}, not from 0 to 1"


def _first_not_finite(images: np.ndarray[Any, Any]) -> int:
    return int(np.argmin(np.isfinite(images).all((1, 2, 3))))


def own_size(sizes: Set[tuple[int, int]]) -> int | list[int]:
    """`DataPart.image_size` of images that all have one size; ``sizes``: their widths and heights in pixels.

    Raises:
        DataError: they haven't, or it is no size for an input. The message has the sizes.
    """
    sides = {side for size in sizes for side in size}
    if len(sizes) == 1 and MIN_SIZE <= min(sides) <= max(sides) <= MAX_SIZE:
        ((wide, high),) = sizes
        return high if wide == high else [high, wide]
    listed = ", ".join(f"{wide}x{high}" for wide, high in sorted(sizes)[:3])
    more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    message = "data.image_size: it isn't given, the network's own configuration doesn't say it, and the images "
    message += f"({listed}{more}) aren't of one size; write the side in pixels, {MIN_SIZE} to {MAX_SIZE}, of the input "
    message += "that the network was made for, or [height, width]. Images are scaled to it."
    raise DataError(message)
