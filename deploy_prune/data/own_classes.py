"""Images with a class each from the user's own function: arrays, or map-style Datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from deploy_prune.data import map_style
from deploy_prune.data.collected import Collection, Labelled, fault_of_labels, of_arrays, own_size
from deploy_prune.data.files import Files
from deploy_prune.data.item_images import ItemImages, listed
from deploy_prune.errors import DataError
from deploy_prune.recipe.data import DataPart, as_size

_NONE: Final = (np.ndarray, torch.Tensor, str, Mapping, tuple)
"""What has a length and numbered items, and is no Dataset."""


class _Sets(NamedTuple):
    """``test``: None where there is none. ``names``: of the classes, if the function says them."""

    train: Any
    test: Any = None
    names: Sequence[Any] | None = None


def read(part: DataPart) -> Collection:
    """The data set that the function ``part.source`` returns.

    Raises:
        DataError: the function fails, or returns something else; as `item_images.listed`.
    """
    found = map_style.returned(part.source)
    if isinstance(found, tuple) and len(found) == 4:
        return of_arrays(list(found), part.source)
    sets = _Sets(*found) if isinstance(found, tuple) and len(found) in {2, 3} else _Sets(found)
    given = [items for items in (sets.train, sets.test) if items is not None]
    if not given or not all(map(map_style.is_map_style, given)) or any(isinstance(each, _NONE) for each in given):
        message = f"data.source: {part.source!r} must return (x_train, y_train, x_test, y_test), or torch Datasets "
        message += "with a length: one, or one to train on and one to score on; the classes' names may follow."
        raise DataError(message)
    return _read(sets, part)


def _read(sets: _Sets, part: DataPart) -> Collection:
    names = _names(sets)
    train = listed(sets.train, "train", part)
    test = None if sets.test is None else listed(sets.test, "test", part)
    parts = [one for one in (train, test) if one is not None]
    sizes = frozenset[tuple[int, int]]().union(*(one.sizes or () for one in parts))
    size = part.size or as_size(own_size(sizes))
    assert size is not None

    def labelled(one: ItemImages, name: str) -> Labelled:
        if problem := fault_of_labels(one.labels, len(one.pictures)):
            message = f"data.source: the {name} Dataset of {part.source!r} has {problem}."
            raise DataError(message)
        images = Files(pictures=one.pictures, size=size, channels=part.channels)
        return Labelled(images=images, labels=torch.tensor(one.labels))

    return Collection(
        train=labelled(train, "train"), test=None if test is None else labelled(test, "test"), names=names,
        skipped=tuple(fault for one in parts for fault in one.skipped),
    )  # fmt: skip


def _names(sets: _Sets) -> tuple[str, ...] | None:
    """The classes' names, which must be those of both parts: their numbers are places in it.

    Raises:
        DataError: they aren't.
    """
    train, test = (None if items is None else map_style.class_names(items) for items in (sets.train, sets.test))
    if None not in {train, test} and train != test:
        message = (
            f"data.source: the classes of the Dataset to train on are {', '.join(train or ())}, and of the one to "
        )
        message += f"score on {', '.join(test or ())}; a number must be the same class in both."
        raise DataError(message)
    return tuple(map(str, sets.names)) if sets.names is not None else train
