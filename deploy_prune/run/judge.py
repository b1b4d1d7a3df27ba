"""How good a cut is before any training: its loss on held-out examples, once it is repaired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from deploy_prune.budget.depth import Judge
from deploy_prune.networks.tensors import moved
from deploy_prune.retrain.features import match
from deploy_prune.retrain.repair import repair
from deploy_prune.surgery.cut import cut
from deploy_prune.types import Keep, Loss, Structure

EXAMPLES: Final = 512
"""A cut is judged by its loss on so many examples, after a repair by as many others."""


def by_loss(
    network: nn.Module, dense: nn.Module, structure: Structure, inputs: Sequence[Tensor], batches: Sequence[Any],
    loss: Loss, device: torch.device,
) -> Judge:  # fmt: skip
    """Masks -> the mean loss of the network cut by them.

    Args:
        network: with the weights that the search ended with, on the CPU.
        dense: what a cut is repaired to be like.
        structure: the groups of both.
        inputs: of the examples to repair by, each [N, ...].
        batches: to judge by.
        loss: (forward, batch) -> scalar.
        device: where losses are computed.
    """
    held_out = [send_to_device(batch, device) for batch in batches]

    def judge(keep: Keep) -> float:
        slim = moved(cut(network, structure, keep).eval(), device)
        repair(slim, dense, match(structure, keep), inputs)
        with torch.no_grad():
            return float(torch.stack([loss(slim, batch) for batch in held_out]).mean())

    return judge
