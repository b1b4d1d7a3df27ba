"""A copy of a network with other values, so that every channel shows in its output.

Whether a group can be cut depends on the network's structure, not on its values. But values can hide it: a head or the
last norm of a residual branch that starts at zero, a unit that is dead or saturated, a layer scale of 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploy_prune.networks.copies import copied
from deploy_prune.networks.tensors import moved
from deploy_prune.networks.unchanged import forgotten
from deploy_prune.surgery.limits import require_enough

GAIN: Final = 2.0
"""Weights have a variance of this over their fan-in: He et al., arXiv 1502.01852, equation 10."""
BIAS: Final = 0.1
SCALES: Final = (0.5, 1.5)
"""Biases are about so large, norms' and layers' scales in this range: no unit is dead, none is saturated."""


def redrawn(network: nn.Module, inputs: Sequence[Tensor], seed: int, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in eval mode with random parameters, and batch-norm statistics of the inputs [B, ...].

    Tied parameters stay tied. Buffers other than those statistics stay as they are. ``dtype``: None for its own.
    """
    other = copied(network).eval()
    other = other if dtype is None else moved(other, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.is_floating_point():
                parameter.copy_(_drawn(name, parameter.shape, generator))
        forgotten(other)
        _calibrate(other, in_type(inputs, dtype))
    return other


def in_type(inputs: Sequence[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """The inputs in a floating-point type (None: as they are); integers stay integers."""
    return [x if dtype is None or not x.is_floating_point() else x.to(dtype) for x in inputs]


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Values for a parameter: one along a single axis is a bias or a scale, any other a weight."""
    if shape.numel() > max(shape, default=1):
        deviation: float = (GAIN * shape[0] / shape.numel()) ** 0.5
        return torch.randn(shape, generator=generator) * deviation
    if name.endswith("bias"):
        return torch.randn(shape, generator=generator) * BIAS
    return torch.rand(shape, generator=generator) * (SCALES[1] - SCALES[0]) + SCALES[0]


def _calibrate(network: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Take batch-norm statistics from the inputs; where there are too few values for that, they stay 0 and 1."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        network(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        require_enough(error, "Trying a cut")
    network.eval()


class WithoutDropout(TorchFunctionMode):
    """Inside, dropout drops nothing, so that two forward passes in training mode can be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass everything on but dropout, which returns its input."""
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


_DROPOUTS: Final = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)
