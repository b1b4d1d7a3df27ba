"""Norms over several channels, with statistics over the kept ones: so a gate of 0 is a channel that is not there.

A layer norm that sees zeroed channels would take them into its mean and variance. While gates are on, calls of layer,
group and RMS norm are answered here instead: each channel counts with its gate. With open gates that is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf, prod
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

aten: Final = torch.ops.aten


def layer_norm(
    gate_C: Tensor,
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Layer norm of x [..., C] (Ba et al., arXiv 1607.06450), each channel weighing as much as its gate."""
    total = gate_C.sum()
    centred = x - (x * gate_C).sum(-1, keepdim=True) / total
    variance = (centred.square() * gate_C).sum(-1, keepdim=True) / total
    y = centred * torch.rsqrt(variance + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def group_norm(
    gate_C: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """Group norm of x [B, C, ...] (Wu and He, arXiv 1803.08494), each channel weighing as much as its gate."""
    x_BGCN = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    gate = gate_C.view(1, groups, -1, 1)
    total = (gate.sum(2, keepdim=True) * x_BGCN.shape[-1]).clamp(min=torch.finfo(x.dtype).tiny)
    centred = x_BGCN - (x_BGCN * gate).sum((2, 3), keepdim=True) / total
    variance = (centred.square() * gate).sum((2, 3), keepdim=True) / total
    y = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)
    line = (1, -1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(line)
    return y if bias is None else y + bias.view(line)


def rms_norm(gate_C: Tensor, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """RMS norm of x [..., C] (Zhang and Sennrich, arXiv 1910.07467), each channel weighing as much as its gate."""
    mean_square = (x.square() * gate_C).sum(-1, keepdim=True) / gate_C.sum()
    y = x * torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))
    return y if weight is None else y * weight


Gates = Mapping[tuple[int, int, int], Tensor]
"""(rank, dimension, size) of a tensor -> the gates [size] of the channels that lie there."""


def _dims(x: Tensor, dim: Any) -> list[int]:
    """The dimensions that a reduction is over; None and () are all."""
    dims = list(range(x.dim())) if dim is None or dim in ((), []) else [dim] if isinstance(dim, int) else list(dim)
    return [d % x.dim() for d in dims]


def _gate(gates: Gates, x: Tensor, dims: Sequence[int]) -> Tensor | None:
    """The gates of the channels among these dimensions, in a shape that broadcasts; None if there are none."""
    found = None
    for dim in dims:
        gate_C = gates.get((x.dim(), dim, x.shape[dim]))
        if gate_C is not None:
            gate = gate_C.to(x.dtype).view([-1 if d == dim else 1 for d in range(x.dim())])
            found = gate if found is None else found * gate
    return found


def _count(gate: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """How many numbers are kept along these dimensions: a channel counts as its gate."""
    return gate.sum() * prod(x.shape[d] for d in dims if gate.shape[d] == 1)


def total(gates: Gates, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor | None:
    """The sum, each channel weighing as much as its gate; None where no channels lie along these dimensions."""
    gate = _gate(gates, x, dims := _dims(x, dim))
    return None if gate is None else (x * gate).sum(dims, keepdim=keepdim)


def mean(gates: Gates, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor | None:
    """As ``total``, over the number of channels."""
    gate = _gate(gates, x, dims := _dims(x, dim))
    if gate is None:
        return None
    summed: Tensor = (x * gate).sum(dims, keepdim=keepdim)
    return summed / _count(gate, x, dims)


def variance(
    gates: Gates, x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **more: Any
) -> Tensor | None:
    """As ``mean``; with Bessel's correction unless ``unbiased`` is off (or ``correction`` is given)."""
    gate = _gate(gates, x, dims := _dims(x, dim))
    if gate is None:
        return None
    count = _count(gate, x, dims)
    centred = x - (x * gate).sum(dims, keepdim=True) / count
    squares: Tensor = (centred.square() * gate).sum(dims, keepdim=keepdim)
    correction: float = more.get("correction", int(unbiased))
    return squares / (count - correction)


def deviation(gates: Gates, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """The square root of ``variance``."""
    found = variance(gates, x, *args, **kwargs)
    return None if found is None else found.sqrt()


def _among_kept(reduce: Callable[..., Any], worst: float) -> Callable[..., Any]:
    """A maximum (worst -inf), minimum (inf) or softmax (-inf) in which channels whose gate is 0 don't take part."""

    def kept(gates: Gates, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
        gate = None if isinstance(dim, Tensor) or not isinstance(x, Tensor) else _gate(gates, x, _dims(x, dim))
        if gate is None:
            return None
        among = x.masked_fill(gate == 0, worst)
        made = reduce(among) if dim is None else reduce(among, dim, *args, **kwargs)
        return made.masked_fill(gate == 0, 0.0) if reduce in _SOFTMAX else made

    return kept


def norm(gates: Gates, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **more: Any) -> Tensor | None:
    """The norm of order p (or ``ord``) over what the gates leave."""
    gate = _gate(gates, x, dims := _dims(x, dim))
    order = 2 if more.get("ord", p) in (None, "fro") else more.get("ord", p)
    return None if gate is None else torch.linalg.vector_norm(x * gate, order, dims, keepdim)


def normalize(
    gates: Gates, x: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None
) -> Tensor | None:
    """``F.normalize``, by the norm of what the gates leave."""
    size = norm(gates, x, p, dim, keepdim=True)
    return None if size is None else x / size.clamp_min(eps)


_HIGHEST: Final = (Tensor.max, torch.max, aten.max.default, aten.max.dim, Tensor.amax, torch.amax, aten.amax.default)
_LOWEST: Final = (Tensor.min, torch.min, aten.min.default, aten.min.dim, Tensor.amin, torch.amin, aten.amin.default)
_SOFTMAX: Final = (
    *(F.softmax, Tensor.softmax, torch.softmax, aten.softmax.int),
    *(F.log_softmax, Tensor.log_softmax, torch.log_softmax, aten.log_softmax.int),
)
REDUCTIONS: Final[Mapping[Any, Callable[..., Any]]] = {
    **dict.fromkeys((Tensor.mean, torch.mean, aten.mean.default, aten.mean.dim), mean),
    **dict.fromkeys((Tensor.sum, torch.sum, aten.sum.default, aten.sum.dim_IntList), total),
    **dict.fromkeys((Tensor.var, torch.var, aten.var.dim, aten.var.correction), variance),
    **dict.fromkeys((Tensor.std, torch.std, aten.std.dim, aten.std.correction), deviation),
    **{f: _among_kept(f, -inf) for f in (*_HIGHEST, *_SOFTMAX)},
    **{f: _among_kept(f, inf) for f in _LOWEST},
    **dict.fromkeys((Tensor.norm, torch.norm, aten.norm.ScalarOpt_dim), norm),
    **dict.fromkeys((torch.linalg.vector_norm, aten.linalg_vector_norm.default), norm),
    F.normalize: normalize,
}
"""torch's function (its operator, in a network that is its own graph) -> ours, where code takes it over channels."""


@contextmanager
def inside(network: nn.Module, kept: KeptStatistics, seen: Mapping[str, Gates]) -> Iterator[None]:
    """While one of these modules runs, and none inside it, its own statistics are over kept channels."""
    hooks = []
    for path in (p for p, _ in network.named_modules() if any(not n or f"{p}.".startswith(f"{n}.") for n in seen)):
        module, gates = network.get_submodule(path), seen.get(path, {})
        hooks.append(module.register_forward_pre_hook(lambda *_, gates=gates: kept.inside.append(gates)))
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
    **dict.fromkeys((F.layer_norm, torch.layer_norm, aten.layer_norm.default), (layer_norm, 2)),
    **dict.fromkeys((F.group_norm, torch.group_norm, aten.group_norm.default), (group_norm, 2)),
    **dict.fromkeys((F.rms_norm, torch.rms_norm, aten.rms_norm.default), (rms_norm, 2)),
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
        self.inside: list[Gates] = []

    def from_here(self) -> AbstractContextManager[KeptStatistics]:
        """The mode, entered again later, with the modules that run now: see `checkpointing.Resumed`."""
        return self._inside(list(self.inside))

    @contextmanager
    def _inside(self, running: list[Gates]) -> Iterator[KeptStatistics]:
        before, self.inside = self.inside, running
        try:
            with self:
                yield self
        finally:
            self.inside = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer norms of the given weights; pass everything else on."""
        kwargs = kwargs or {}
        gate = self._gate_of(args[0]) if self._weights and args else None
        if gate is not None:
            return self._of_weight(gate, func, args, kwargs)
        if self.inside and self.inside[-1] and func in REDUCTIONS and args:
            answer = REDUCTIONS[func](self.inside[-1], *args, **kwargs)
            return func(*args, **kwargs) if answer is None else answer
        ours = NORMS.get(func)
        if ours is not None:
            weight = args[ours[1]] if len(args) > ours[1] else kwargs.get("weight")
            kept = self._gates.get(id(weight)) if weight is not None else self._plain(func, args[0])
            if kept is not None:
                return ours[0](kept, *args, **kwargs)
        return func(*args, **kwargs)

    def _plain(self, func: Any, x: Tensor) -> Tensor | None:
        """The gates [C] of the channels of a norm that has no weight."""
        dim = 1 if NORMS[func][0] is group_norm else x.dim() - 1
        return self.inside[-1].get((x.dim(), dim, x.shape[dim])) if self.inside else None

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
