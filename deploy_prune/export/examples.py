"""Examples of inputs that are only told of: their shapes and types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from deploy_prune.export.inputs import TYPES
from deploy_prune.types import Input

DTYPES: Final = {name: dtype for dtype, name in TYPES.items()}


def zeros(inputs: Sequence[Input]) -> tuple[Tensor, ...]:
    """An example of each, all zeros."""
    return tuple(torch.zeros(x.shape, dtype=DTYPES[x.type]) for x in inputs)


def drawn(inputs: Sequence[Input], network: nn.Module, num: int) -> tuple[Tensor, ...]:
    """``num`` random examples of each, [num, ...], from torch's global generator.

    Whole numbers are below the length of the network's shortest table of embeddings (2 without any): they are tokens.
    """
    tables = [module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding)]

    def one(x: Input) -> Tensor:
        shape, dtype = (num, *x.shape[1:]), DTYPES[x.type]
        if dtype.is_floating_point:
            return torch.randn(shape)
        return torch.randint(2 if dtype is torch.bool else min(tables, default=2), shape).to(dtype)

    return tuple(map(one, inputs))
