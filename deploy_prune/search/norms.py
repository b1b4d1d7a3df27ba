"""Norms over several channels, with statistics over the kept ones: so a gate of 0 is a channel that is not there.

A layer norm that sees zeroed channels would take them into its mean and variance. While gates are on, calls of layer,
group and RMS norm are answered here instead: each channel counts with its gate. With open gates that is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def layer_norm(
    gate_C: Tensor, x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Layer norm of x [..., C] (Ba et al., arXiv 1607.06450), each channel weighing as much as its gate."""
    total = gate_C.sum()
    centred = x - (x * gate_C).sum(-1, keepdim=True) / total
    variance = (centred.square() * gate_C).sum(-1, keepdim=True) / total
    y = centred * torch.rsqrt(variance + eps) * weight
    return y if bias is None else y + bias


def group_norm(
    gate_C: Tensor, x: Tensor, groups: int, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Group norm of x [B, C, ...] (Wu and He, arXiv 1803.08494), each channel weighing as much as its gate."""
    x_BGCN = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    gate = gate_C.view(1, groups, -1, 1)
    total = (gate.sum(2, keepdim=True) * x_BGCN.shape[-1]).clamp(min=torch.finfo(x.dtype).tiny)
    centred = x_BGCN - (x_BGCN * gate).sum((2, 3), keepdim=True) / total
    variance = (centred.square() * gate).sum((2, 3), keepdim=True) / total
    y = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)
    line = (1, -1, *[1] * (x.dim() - 2))
    y = y * weight.view(line)
    return y if bias is None else y + bias.view(line)


def rms_norm(gate_C: Tensor, x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
    """RMS norm of x [..., C] (Zhang and Sennrich, arXiv 1910.07467), each channel weighing as much as its gate."""
    mean_square = (x.square() * gate_C).sum(-1, keepdim=True) / gate_C.sum()
    return x * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps)) * weight


NORMS: Final[Mapping[Any, tuple[Callable[..., Tensor], int]]] = {
    F.layer_norm: (layer_norm, 2),
    torch.layer_norm: (layer_norm, 2),
    F.group_norm: (group_norm, 2),
    torch.group_norm: (group_norm, 2),
    F.rms_norm: (rms_norm, 2),
    torch.rms_norm: (rms_norm, 2),
}
"""torch's function -> ours, and the place of the weight among its arguments."""


class KeptStatistics(TorchFunctionMode):
    """Inside, norms whose weight is one of these tensors take their statistics over kept channels."""

    def __init__(self, gates: Mapping[int, Tensor]) -> None:
        """``gates``: id of a norm's weight -> its gates [C]."""
        super().__init__()
        self._gates = gates

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer norms of the given weights; pass everything else on."""
        kwargs = kwargs or {}
        ours = NORMS.get(func)
        if ours is not None:
            weight = args[ours[1]] if len(args) > ours[1] else kwargs.get("weight")
            gate = self._gates.get(id(weight))
            if gate is not None:
                return ours[0](gate, *args, **kwargs)
        return func(*args, **kwargs)
