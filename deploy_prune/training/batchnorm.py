"""Re-estimation of batch-norm statistics on the training data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy_prune.data.examples import Batch

EXAMPLES: Final = 1000  # that statistics are averaged over


@torch.no_grad()
def reestimate(network: nn.Module, batches: Iterator[Batch], num_examples: int = EXAMPLES) -> int:
    """Replace running means and variances by their plain average over batches; returns how many norms there are.

    As many batches are read as have ``num_examples`` examples, or a little more.

    Only batch norms run in training mode (dropout stays off), nothing else changes, and modes are restored.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    device = next(network.parameters()).device
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # torch's way to ask for the cumulative average
    try:
        seen = 0
        while seen < num_examples:
            inputs = next(batches).inputs
            network(*(x.to(device) for x in inputs))
            seen += len(inputs[0])
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
