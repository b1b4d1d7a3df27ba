"""Batch-norm statistics: taken anew on the training data, and those of a step that several processes take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy_prune.data.examples import Batch

EXAMPLES: Final = 1000  # that statistics are averaged over


@torch.no_grad()
def reestimate(network: nn.Module, batches: Iterator[Batch], num_examples: int = EXAMPLES) -> int:
    """Replace running means and variances by their plain average over batches; returns how many norms there are.

    As many batches are read as have ``num_examples`` examples, or a little more.

    Only batch norms run in training mode (dropout stays off), nothing else changes, and modes are restored.
    """
    with measured_anew(network) as norms:
        if not norms:
            return 0
        device, seen = next(network.parameters()).device, 0
        while seen < num_examples:
            inputs = next(batches).inputs
            network(*(x.to(device) for x in inputs))
            seen += len(inputs[0])
    return len(norms)


@contextmanager
def measured_anew(network: nn.Module) -> Iterator[list[_BatchNorm]]:
    """Batch norms' statistics become the plain average over what runs through the network meanwhile.

    Batch norms run in training mode, all else in evaluation mode; modes are restored. Yields the norms.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # torch's way to ask for the cumulative average
    try:
        yield norms
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


class RunningStatistics:
    """Running means and variances of steps whose batches several processes take, as if one took them in their order.

    A batch in which a norm is called c times takes its statistic r to a r + b, with a = (1 - momentum)^c, and b what
    comes of r = 0. So each process begins its batches at 0, and after n batches r is

        a^n r + sum_j a^(n - 1 - j) b_j

    With ``momentum: None`` (the plain average of t calls) it is (t r + c sum_j b_j) / (t + c n). A norm is called
    equally often in every batch.
    """

    def __init__(self, trained: Sequence[Any], num_batches: int) -> None:
        networks = [part for part in trained if isinstance(part, nn.Module)]
        modules = {m: None for network in networks for m in network.modules()}
        self.norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
        self.num_batches = num_batches
        self.before: list[Tensor] = []
        self.counts: list[int] = []
        self.calls: list[int] = []
        self.sums: list[Tensor] = []

    def begin(self) -> None:
        """Before the first batch of a step."""
        self.before, self.counts = [x.clone() for x in self._statistics()], self._counted()
        self.sums = [torch.zeros_like(x) for x in self.before]

    @contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """The forward of our batch of this number."""
        for x in (*self._statistics(), *self._counts()):
            x.zero_()
        yield
        self.calls = self._counted()
        with torch.no_grad():
            for total, found, weight in zip(self.sums, self._statistics(), self._weights(number), strict=True):
                total.add_(found, alpha=weight)

    @torch.no_grad()
    def end(self) -> None:
        """After the last batch of a step, when ``sums`` are those of all processes."""
        for x, before, total, left in zip(self._statistics(), self.before, self.sums, self._left(), strict=True):
            x.copy_(before * left + total)
        for x, count, calls in zip(self._counts(), self.counts, self.calls, strict=True):
            x.fill_(count + calls * self.num_batches)

    def _statistics(self) -> list[Tensor]:
        return [cast(Tensor, x) for norm in self.norms for x in (norm.running_mean, norm.running_var)]

    def _counts(self) -> list[Tensor]:
        return [cast(Tensor, norm.num_batches_tracked) for norm in self.norms]

    def _counted(self) -> list[int]:
        counts = self._counts()
        return torch.stack(counts).tolist() if counts else []

    def _weights(self, number: int) -> list[float]:
        """What b of the batch of this number counts for, of each statistic."""
        found = []
        for norm, count, calls in zip(self.norms, self.counts, self.calls, strict=True):
            if norm.momentum is None:
                weight = calls / max(1, count + calls * self.num_batches)
            else:
                weight = (1 - norm.momentum) ** (calls * (self.num_batches - 1 - number))
            found += [weight, weight]
        return found

    def _left(self) -> list[float]:
        """What the statistic before the step counts for."""
        found = []
        for norm, count, calls in zip(self.norms, self.counts, self.calls, strict=True):
            if norm.momentum is None:
                left = count / (count + calls * self.num_batches) if calls else 1.0
            else:
                left = (1 - norm.momentum) ** (calls * self.num_batches)
            found += [left, left]
        return found
