"""Processes that train together: each takes its share of a step's batches, and all take the same step.

What they tell each other goes over ``torch.distributed``, whose process group is there before training begins. Networks
aren't wrapped (DDP): a network with gates is called past its forward, and optimizers hold gates and scales, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor


class LeftError(Exception):
    """Another of the processes has ended; its own error says why."""


class DoneError(BaseException):
    """Not an error: this process's share is done, and what is left is the first one's alone."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The number of this process among those that train together, and how many there are.

    ``device``: where what they tell each other has to lie.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def is_ours(self, number: int) -> bool:
        """Whether the batch of this number within a step is for this process."""
        return number % self.size == self.rank

    def share(self, trained: Sequence[Tensor], sums: Sequence[Tensor], figures: Sequence[float]) -> list[float]:
        """After the batches of a step: all processes have the same gradients, sums and figures.

        Args:
            trained: whose gradients become their mean over the processes. One that has none anywhere is left without.
            sums: float tensors that become their sum over the processes, in place.
            figures: one number each.

        Returns:
            The figures' means over the processes.

        Raises:
            LeftError: another process has ended.
        """
        if self.size == 1:
            return list(figures)
        self._share_tensors(trained, sums)
        means = torch.tensor(figures, dtype=torch.float64, device=self.device)
        with _together():
            dist.all_reduce(means)
        return (means / self.size).tolist()

    def _share_tensors(self, trained: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        there = torch.tensor([float(x.grad is not None) for x in trained], device=self.device)
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad / self.size for x in trained]
        parts = [*gradients, *sums, there]
        flat = torch.cat([part.reshape(-1) for part in parts])
        with _together():
            dist.all_reduce(flat)
        shared = flat.split([part.numel() for part in parts])
        without = [x.grad is None for x in trained]
        anywhere = (shared[-1] > 0).tolist() if any(without) else [True] * len(trained)
        for x, gradient, found in zip(trained, shared, anywhere, strict=False):
            if found and x.grad is None:
                x.grad = torch.zeros_like(x)
            if x.grad is not None:
                x.grad.copy_(gradient.view_as(x))
        for total, found_sum in zip(sums, shared[len(trained) :], strict=False):
            total.copy_(found_sum.view_as(total))

    def told(self, find: Callable[[], float]) -> float:
        """What the first process finds; the others wait for it.

        Raises:
            LeftError: another process has ended.
        """
        if self.size == 1:
            return find()
        figure = torch.tensor(find() if self.rank == 0 else 0.0, dtype=torch.float64, device=self.device)
        with _together():
            dist.broadcast(figure, 0)
        return float(figure)

    def leave(self) -> None:
        """After the last step: only the first process goes on.

        Raises:
            DoneError: in all others.
        """
        if self.rank:
            raise DoneError


ALONE: Final = Ranks()


@contextmanager
def _together() -> Iterator[None]:
    """What can go wrong between processes is that one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise LeftError(str(error)) from error
