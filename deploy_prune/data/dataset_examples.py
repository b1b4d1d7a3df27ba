"""A torch Dataset of any kind as examples: what a task of your own has.

B batch, N examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, default_collate

from deploy_prune.data.examples import Batch
from deploy_prune.data.map_style import is_map_style
from deploy_prune.data.splits import TransferData
from deploy_prune.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetExamples:
    """A map-style Dataset, whose items are (inputs, target), as `Examples`; read when they are taken.

    ``inputs`` are a tensor, or a tuple of several. A batch's targets are stacked where they are tensors of one shape,
    numbers, or tuples or mappings of such; else they are a list. ``places``: which items, in which order. An item that
    draws at random does so from a seed of its own, of the index or (for a training step) of the run's generator.
    """

    dataset: Dataset[Any]
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all items' tensors and numbers: every item is read once."""
        found = hashlib.sha256(repr(len(self)).encode())
        for index in range(len(self)):
            for leaf in tree_leaves(self._item(index, index)):
                told = (
                    leaf.contiguous().numpy() if isinstance(leaf, Tensor) else np.frombuffer(repr(leaf).encode(), "u1")
                )
                found.update(repr((told.shape, told.dtype.str)).encode() + told.tobytes())
        return found.hexdigest()

    @property
    def strata(self) -> Tensor:
        """Zeros: nothing is known of kinds."""
        return torch.zeros(len(self), dtype=torch.int64)

    def take(self, indices: Tensor) -> Batch:
        """These items."""
        return _batch([self._item(i, i) for i in indices.tolist()])

    def varied(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """These items, each drawn from a seed of the generator's."""
        seeds = torch.randint(2**62, (len(indices),), generator=generator).tolist()
        return _batch([self._item(i, seed) for i, seed in zip(indices.tolist(), seeds, strict=True)])

    def skip(self, indices: Tensor, generator: torch.Generator) -> None:
        """Draw what `varied` would draw for these items, and read none."""
        torch.randint(2**62, (len(indices),), generator=generator)

    def subset(self, indices: Tensor) -> DatasetExamples:
        """These items alone, in this order."""
        return DatasetExamples(dataset=self.dataset, places=tuple(self.places[i] for i in indices.tolist()))

    def _item(self, index: int, seed: int) -> tuple[tuple[Tensor, ...], Any]:
        """Inputs and target.

        Raises:
            DataError: it can't be read, or is no pair of inputs and target.
        """
        place = self.places[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                inputs, target = self.dataset[place]
            except Exception as error:
                message = (
                    f"data: item {place} can't be read as a pair (inputs, target): {type(error).__name__}: {error}"
                )
                raise DataError(message) from error
        given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if not given or not all(isinstance(x, Tensor) for x in given):
            message = f"data: the inputs of item {place} aren't tensors; give one, or a tuple of several."
            raise DataError(message)
        return given, target


def task_data(train: Any, test: Any, num_classes: int = 0) -> TransferData:
    """Data for a task of your own: what its ``load`` returns.

    Args:
        train: a map-style Dataset (or a sequence) of (inputs, target), to train on and to choose channels on.
        test: the same, to judge by; no example is in both.
        num_classes: what the function that builds the network gets as ``num_classes``. 0: it takes none.

    Raises:
        DataError: one of them is empty, or gives its items from the first to the last only.
    """
    for items in (train, test):
        is_map_style(items)
    parts = [DatasetExamples(dataset=each, places=tuple(range(len(each)))) for each in (train, test)]
    for name, part in zip(("train", "test"), parts, strict=True):
        if not len(part):
            message = f"data: the {name} examples are empty."
            raise DataError(message)
    classes = tuple(range(num_classes))
    return TransferData(
        source_train=parts[0], source_test=parts[1], target_train=parts[0], target_test=parts[1],
        source_classes=classes, target_classes=classes, num_available=len(parts[0]),
    )  # fmt: skip


def _batch(items: Sequence[tuple[tuple[Tensor, ...], Any]]) -> Batch:
    """Inputs are stacked, and targets where they can be.

    Raises:
        DataError: inputs are of different shapes.
    """
    try:
        inputs = tuple(torch.stack(each) for each in zip(*(given for given, _ in items), strict=True))
    except (RuntimeError, ValueError) as error:
        message = f"data: the inputs of a batch's items can't be stacked: {error}. Give them one shape."
        raise DataError(message) from error
    targets = [target for _, target in items]
    return Batch(inputs, default_collate(targets) if _alike(targets) else targets)


def _alike(targets: Iterable[Any]) -> bool:
    """Whether targets have the same structure, of tensors of one shape and numbers."""
    leaves = [tree_leaves(target) for target in targets]
    kinds = [[tuple(x.shape) if isinstance(x, Tensor | np.ndarray) else type(x) for x in each] for each in leaves]
    stackable = all(isinstance(x, Tensor | np.ndarray | int | float) for x in leaves[0])
    return stackable and all(kind == kinds[0] for kind in kinds)
