"""Norms over several channels, with statistics over the kept ones: so a gate of 0 is a channel that is not there.

A layer norm that sees zeroed channels would take them into its mean and variance. While gates are on, calls of layer,
group and RMS norm are answered here instead: each channel counts with its gate. With open gates that is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


def mean(gate_C: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor | None:
    """The mean over a dimension of C channels, each weighing as much as its gate; None for other dimensions."""
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if len(dims) != 1 or x.shape[dims[0]] != len(gate_C):
        return None
    gate = gate_C.to(x.dtype).view([-1 if d == dims[0] % x.dim() else 1 for d in range(x.dim())])
    return (x * gate).sum(dims[0], keepdim=keepdim) / gate.sum()


def variance(
    gate_C: Tensor, x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **more: Any
) -> Any:
    """As ``mean``; with Bessel's correction unless ``unbiased`` is off (or ``correction`` is given)."""
    centre = mean(gate_C, x, dim, keepdim=True)
    if centre is None:
        return None
    squares = mean(gate_C, (x - centre).square(), dim, keepdim=keepdim)
    assert squares is not None
    count = gate_C.sum()
    return squares * count / (count - more.get("correction", int(unbiased)))


REDUCTIONS: Final[Mapping[Any, Callable[..., Any]]] = {
    Tensor.mean: mean,
    torch.mean: mean,
    Tensor.var: variance,
    torch.var: variance,
}
"""torch's function -> ours, in the code of norms written by hand."""


@contextmanager
def inside(network: nn.Module, kept: KeptStatistics, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """While the module that owns a weight (name -> its gates [C]) runs, its own means are over kept channels."""
    hooks = []
    for name, gate_C in gates.items():
        module = network.get_submodule(name.rpartition(".")[0])
        hooks.append(module.register_forward_pre_hook(lambda *_, gate=gate_C: kept.inside.append(gate)))
        hooks.append(module.register_forward_hook(lambda *_: _leave(kept), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _leave(kept: KeptStatistics) -> None:
    kept.inside.pop()


def standardise(gate: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """A weight's filters [1, O, N], 0 where their gate is, with mean 0 and variance 1 over what the gates leave."""
    centred = x - gate * weight_mean(gate, x, 2, keepdim=True)
    y = centred * torch.rsqrt(weight_variance(gate, x, 2, unbiased=False, keepdim=True) + eps)
    y = y if weight is None else y * weight.view(1, -1, 1)
    return y if bias is None else y + bias.view(1, -1, 1)


def weight_mean(gate: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    """The mean of a weight (0 where its gate, of the same shape, is) over what the gates leave."""
    dims = tuple(range(x.dim())) if dim is None else dim
    return x.sum(dims, keepdim=keepdim) / gate.sum(dims, keepdim=keepdim)


def weight_variance(
    gate: Tensor, x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **more: Any
) -> Tensor:
    """As ``weight_mean``; with Bessel's correction unless ``unbiased`` is off (or ``correction`` is given)."""
    dims = tuple(range(x.dim())) if dim is None else dim
    squares = (x - gate * weight_mean(gate, x, dims, keepdim=True)).square().sum(dims, keepdim=keepdim)
    count: Tensor = gate.sum(dims, keepdim=keepdim) - more.get("correction", int(unbiased))
    return squares / count


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(gate: Tensor, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keepdim = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
        return spread(gate, x, dim, *args, **kwargs), weight_mean(gate, x, dim, keepdim=keepdim)

    return both


def weight_deviation(*args: Any, **kwargs: Any) -> Tensor:
    """The square root of ``weight_variance``."""
    return weight_variance(*args, **kwargs).sqrt()


def _less(gate: Tensor, x: Tensor, other: Any, **more: Any) -> Tensor:
    """A weight less its mean: 0 where its gate is."""
    return torch.sub(x, gate * other, **more)


OF_WEIGHTS: Final[Mapping[Any, Callable[..., Any]]] = {
    **dict.fromkeys((Tensor.mean, torch.mean), weight_mean),
    **dict.fromkeys((Tensor.var, torch.var), weight_variance),
    **dict.fromkeys((Tensor.std, torch.std), weight_deviation),
    torch.var_mean: _with_mean(weight_variance),
    torch.std_mean: _with_mean(weight_deviation),
    **dict.fromkeys((Tensor.sub, torch.sub, Tensor.__sub__), _less),
}
"""torch's function -> ours, where a weight that is standardised by hand is its first argument."""


_BATCH_NORM: Final = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_RESHAPES: Final = (Tensor.reshape, Tensor.view, torch.reshape, Tensor.flatten, torch.flatten)
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

    def __init__(self, gates: Mapping[int, Tensor], weights: Mapping[int, Tensor] | None = None) -> None:
        """``gates``: id of a norm's weight -> its gates [C]. ``weights``: id of a standardised weight -> its gates."""
        super().__init__()
        self._gates = gates
        self._weights = weights or {}
        self._derived: dict[int, tuple[Tensor, Tensor]] = {}
        self.inside: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer norms of the given weights; pass everything else on."""
        kwargs = kwargs or {}
        gate = self._gate_of(args[0]) if self._weights and args else None
        if gate is not None:
            return self._of_weight(gate, func, args, kwargs)
        if self.inside and func in REDUCTIONS:
            answer = REDUCTIONS[func](self.inside[-1], *args, **kwargs)
            return func(*args, **kwargs) if answer is None else answer
        ours = NORMS.get(func)
        if ours is not None:
            weight = args[ours[1]] if len(args) > ours[1] else kwargs.get("weight")
            kept = self._gates.get(id(weight))
            if kept is not None:
                return ours[0](kept, *args, **kwargs)
        return func(*args, **kwargs)

    def _gate_of(self, x: Any) -> Tensor | None:
        """The gates of a weight that is standardised, in its shape, or of a view or difference made of it."""
        known = self._derived.get(id(x))
        if known is not None:
            return known[1]
        gate = self._weights.get(id(x))
        return None if gate is None else gate.expand(x.shape)

    def _of_weight(self, gate: Tensor, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a statistic of a weight, or what takes it off; remember what is made of the weight."""
        x = args[0]
        if func is F.batch_norm:
            given = dict(zip(_BATCH_NORM, args, strict=False)) | kwargs
            return standardise(gate, x, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))
        made = OF_WEIGHTS[func](gate, *args, **kwargs) if func in OF_WEIGHTS else func(*args, **kwargs)
        if func in _RESHAPES:
            self._derived[id(made)] = made, gate.reshape(made.shape)
        elif OF_WEIGHTS.get(func) is _less:
            self._derived[id(made)] = made, gate
        return made
