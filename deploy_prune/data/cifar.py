"""The files that CIFAR-10 and CIFAR-100 come in ("python version"): pickles, read as data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from deploy_prune.errors import DataError
from deploy_prune.system import pickles

SHAPE: Final = (3, 32, 32)
Array = np.ndarray[Any, Any]


def read_batch(path: Path, labels_key: str) -> tuple[Array, Array]:
    """Images [N, 3, 32, 32] and labels [N] of a pickled dict of "data" [N, 3072] (channel, row, column) and labels.

    Raises:
        DataError: it is no such file.
    """
    try:
        batch = _unpickled(path)
        images, labels = pickles.array(batch.get("data")), _labels(batch.get(labels_key))
        if images is None or images.ndim != 2 or images.shape[1] != np.prod(SHAPE):
            message = "it has no array data of [N, 3072]"
            raise ValueError(message)
    except (ValueError, OSError) as error:
        message = f"data.root: {path} can't be read as a CIFAR batch: {error}"
        raise DataError(message) from error
    return images.reshape(-1, *SHAPE), labels


def read_names(path: Path) -> tuple[str, ...] | None:
    """CIFAR-100's file "meta": a pickled dict with the classes' names; None if it isn't there.

    Raises:
        DataError: it is no such file.
    """
    if not path.is_file():
        return None
    try:
        found = _unpickled(path).get("fine_label_names")
        names = [name for name in map(pickles.text, found) if name is not None] if isinstance(found, list) else []
        if not names:
            message = "it has no list fine_label_names"
            raise ValueError(message)
    except (ValueError, OSError) as error:
        message = f"data.root: {path} can't be read as CIFAR-100's names of classes: {error}"
        raise DataError(message) from error
    return tuple(names)


def _unpickled(path: Path) -> dict[str, Any]:
    """A pickled dict of numbers, text and arrays, by its names: what CIFAR's files are."""
    if not path.is_file():
        message = "there is no such file"
        raise ValueError(message)
    with path.open("rb") as file:
        told = pickles.read(pickles.Bounded(file, path.stat().st_size))
    others = pickles.names_beside(told.called, pickles.ARRAYS)
    if others:
        message = f"it holds {others[0]}, which is no array"
        raise ValueError(message)
    found = pickles.mapping(told.value)
    if found is None:
        message = "it is no dict"
        raise ValueError(message)
    return found


def _labels(found: Any) -> Array:
    """A list of numbers, or an array."""
    if isinstance(found, list) and all(isinstance(label, int | float) for label in found):
        return np.array(found)
    labels = pickles.array(found)
    if labels is None:
        message = "it has no list of labels"
        raise ValueError(message)
    return labels
