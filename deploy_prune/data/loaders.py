"""Endless batches of examples, the same for the same seed, whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deploy_prune.data.examples import Batch, Examples
from deploy_prune.data.varying import seeds
from deploy_prune.errors import DataError


class OneByOne(Protocol):
    """Examples that other processes can vary, each from a seed of its own. ``workers``: how many processes."""

    workers: int

    def varied_one(self, index: int, seed: int) -> Any:
        """One example."""

    def batch(self, ones: Sequence[Any]) -> Batch:
        """Some of them together."""


def batches(examples: Examples, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches to train on, the same for the same seed; every example once per epoch, in a new order.

    Epochs follow each other without a gap, so every batch is full; a ``batch_size`` above the number of examples is
    taken as that number. Examples that have ``workers`` are read ahead by so many processes.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = _drawn(len(examples), min(batch_size, len(examples)), generator)
    if getattr(examples, "workers", 0):
        yield from _ahead(cast(OneByOne, examples), drawn, generator)
    for indices in drawn:
        yield examples.varied(indices, generator)


def _drawn(num: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of batch after batch."""
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        if len(queue) < size:
            queue = torch.cat([queue, torch.randperm(num, generator=generator)])
        indices, queue = queue[:size], queue[size:]
        yield indices


def _ahead(examples: OneByOne, drawn: Iterator[Tensor], generator: torch.Generator) -> Iterator[Batch]:
    """The batches that `Examples.varied` would give, read by processes while others are trained on.

    Raises:
        DataError: an example can't be read.
    """
    asked = (list(zip(i.tolist(), seeds(len(i), generator), strict=True)) for i in drawn)
    loader = DataLoader(
        _Varied(examples), batch_sampler=cast(Any, asked), num_workers=examples.workers, collate_fn=list,
        generator=torch.Generator(),
    )  # fmt: skip
    for ones in loader:
        for one in ones:
            if isinstance(one, DataError):
                raise one
        yield examples.batch(ones)


class _Varied(Dataset[Any]):
    """What a process does: it varies an example, or gives the error that says why it can't."""

    def __init__(self, examples: OneByOne) -> None:
        self.examples = examples

    def __getitem__(self, asked: tuple[int, int]) -> Any:
        try:
            return self.examples.varied_one(*asked)
        except DataError as error:
            return error
