"""Datasets of the user's own: what a function of theirs returns, and what they say of themselves without being read."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from deploy_prune.data.pictures import Array
from deploy_prune.errors import DataError
from deploy_prune.system.plugins import import_callable

IMAGE_KEYS: Final = ("image", "img")
LABEL_KEYS: Final = ("label", "labels", "fine_label")
"""What columns are called in data sets of the library `datasets`, whose items are mappings."""


def returned(source: str) -> Any:
    """What the function ``module:callable`` returns.

    Raises:
        DataError: it can't be imported, or fails.
    """
    function = import_callable(source, "data.source", DataError)
    try:
        return function()
    except Exception as error:
        message = f"data.source: {source!r} failed: {type(error).__name__}: {error}"
        raise DataError(message) from error


def is_map_style(items: Any) -> bool:
    """Whether it has a length and gives any item by its number.

    Raises:
        DataError: it is one that only gives one item after the other.
    """
    if isinstance(items, IterableDataset) or type(items).__name__ == "IterableDataset":
        message = f"data: a {type(items).__name__} of torch.utils.data.IterableDataset's kind gives its items from the "
        message += "first to the last only, and here any batch is found by its number: so other processes read ahead, "
        message += "and a training that was stopped goes on; give a Dataset with __getitem__ and __len__."
        raise DataError(message)
    return hasattr(items, "__getitem__") and hasattr(items, "__len__")


def pair(item: Any) -> tuple[Any, Any]:
    """Image and class of an item: a pair, or a mapping with the columns of IMAGE_KEYS and LABEL_KEYS.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(item, Mapping):
        image, label = _first(IMAGE_KEYS, list(item)), _first(LABEL_KEYS, list(item))
        if image is None or label is None:
            message = f"it has the columns {', '.join(map(str, item))}; name one image, and one label"
            raise ValueError(message)
        return item[image], item[label]
    if not isinstance(item, Sequence) or len(item) != 2:
        message = f"it is no pair of an image and its class, but of type {type(item).__name__}"
        raise ValueError(message)
    return item[0], item[1]


def labels(items: Any) -> Array | None:
    """int64 [N]: all items' classes, if the Dataset has them: ``targets`` or ``labels``, or the column of labels."""
    if isinstance(items, Subset):
        inner = labels(items.dataset)
        return None if inner is None else inner[np.asarray(items.indices, np.int64)]
    if isinstance(items, ConcatDataset):
        parts = [labels(part) for part in items.datasets]
        return np.concatenate(parts) if all(part is not None for part in parts) else None  # type: ignore[arg-type]
    columns = getattr(items, "column_names", None)
    if isinstance(columns, list):
        key = _first(LABEL_KEYS, columns)
        stated = None if key is None else list(items.with_format(None)[key])
    else:
        stated = getattr(items, "targets", None)
        stated = getattr(items, "labels", None) if stated is None else stated
    if not isinstance(stated, list | tuple | Tensor | np.ndarray) or len(stated) != len(items):
        return None
    try:
        transform = getattr(items, "target_transform", None) or (lambda label: label)
        return np.array([operator.index(transform(label)) for label in stated], np.int64)
    except (TypeError, OverflowError):  # no whole numbers: something else than classes
        return None


def class_names(items: Any) -> tuple[str, ...] | None:
    """What the Dataset calls its classes: ``classes``, or the names in the features of its column of labels."""
    if isinstance(items, Subset):
        return class_names(items.dataset)
    if isinstance(items, ConcatDataset):
        found = {class_names(part) for part in items.datasets}
        return found.pop() if len(found) == 1 else None
    stated = getattr(items, "classes", None)
    if stated is None and isinstance(features := getattr(items, "features", None), Mapping):
        stated = getattr(features.get(_first(LABEL_KEYS, list(features))), "names", None)
    return tuple(map(str, stated)) if isinstance(stated, list | tuple) else None


def _first(keys: Sequence[str], columns: Sequence[Any]) -> str | None:
    return next((key for key in keys if key in columns), None)
