"""Endless batches of examples, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from deploy_prune.data.examples import Batch, Examples


def batches(examples: Examples, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless batches to train on, the same for the same seed; every example once per epoch, in a new order.

    Epochs follow each other without a gap, so every batch is full; a ``batch_size`` above the number of examples is
    taken as that number.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(examples))
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        if len(queue) < size:
            queue = torch.cat([queue, torch.randperm(len(examples), generator=generator)])
        indices, queue = queue[:size], queue[size:]
        yield examples.varied(indices, generator)
