"""Training with channels last in memory, on CPUs, where a network can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deploy_prune.data.examples import Examples
from deploy_prune.networks.compare import relative
from deploy_prune.networks.copies import copied

SAMPLE: Final = 4  # examples for a first look at a network
SAME: Final = 1e-3  # of the largest output, by which outputs may change where sums are taken in another order


@contextmanager
def channels_last(network: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> Iterator[nn.Module]:
    """Inside, convolutions' weights lie with channels last, where the network can be trained so on ``inputs`` [B, ...].

    On a CPU a step then takes from 0.6 (torchvision's MobileNetV2) to 1.0 (ResNet-18) of what it takes with channels
    first (benchmarks/search_step.py); values are the same but for the order in which they are added up, and that is
    tried. Nothing changes on other devices, nor for a network whose code looks at feature maps as rows, as in
    ``x.view(len(x), -1)``: torch refuses that with channels last. B is at least 2. Afterwards all lies as before.
    """
    weights = [p for p in network.parameters() if p.dim() == 4 and p.is_contiguous()] if device.type == "cpu" else []
    try:
        if weights and not _lies_well(network, weights, inputs):
            _lay_out(weights, torch.contiguous_format)
        yield network
    finally:
        _lay_out(weights, torch.contiguous_format)


def sample(examples: Examples, device: torch.device) -> tuple[Tensor, ...]:
    """A few examples' inputs on the device, for a first look at a network."""
    return tuple(x.to(device) for x in examples.take(torch.arange(min(SAMPLE, len(examples)))).inputs)


def _lay_out(weights: Sequence[nn.Parameter], memory_format: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.clone(memory_format=memory_format)


def _lies_well(network: nn.Module, weights: Sequence[nn.Parameter], inputs: Sequence[Tensor]) -> bool:
    """Lay the weights out; whether the outputs are the same, and training mode takes these inputs."""
    with torch.no_grad(), torch.random.fork_rng():
        try:
            before = tree_leaves(copied(network).eval()(*inputs))
            _lay_out(weights, torch.channels_last)
            after = tree_leaves(copied(network).eval()(*inputs))
            copied(network).train()(*inputs)
            return len(before) == len(after) and all(map(_alike, before, after))
        except (RuntimeError, ValueError):
            return False


def _alike(before: Any, after: Any) -> bool:
    """Whether an output is the same but for the order of its sums; what is no floating-point tensor counts as that."""
    if not isinstance(before, Tensor) or not before.is_floating_point() or not before.numel():
        return True
    return isinstance(after, Tensor) and relative(before, after) <= SAME
