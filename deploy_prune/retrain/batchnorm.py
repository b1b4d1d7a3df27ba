"""Batch-norm statistics, measured anew on the data at hand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy_prune.data import Batch


@torch.no_grad()
def reestimate(network: nn.Module, batches: Iterator[Batch], num_batches: int) -> int:
    """Replace running means and variances by their plain average over ``num_batches`` batches; returns how many norms.

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
        for _ in range(num_batches):
            network(next(batches)[0].to(device))
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
