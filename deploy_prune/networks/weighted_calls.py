"""The calls of convolutions and linear layers while a network runs, and what they multiply, row by row.

B examples, S places where a layer's kernel is applied (1 for a linear layer of a vector), G a convolution's groups, K
numbers that one output reads at a place, O outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ARGUMENTS: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LINEAR, _CONVOLUTIONS, _NORM = "linear", {"conv1d": 1, "conv2d": 2}, "batch_norm"


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call: ``name`` is its weight's. ``input`` is [B, ..., L] of a linear layer, [B, L, (H,) W] of the others."""

    name: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def rows(self) -> Tensor:
        """What each place reads: [B, S, G, K]."""
        x, weight = self.input, self.weight
        if weight.dim() == 2:
            return x.reshape(len(x), -1, 1, x.shape[-1])
        if weight.dim() == 3:
            x, weight = x[:, :, None], weight[:, :, None]
        read = F.unfold(x, weight.shape[2:], dilation=self.dilation, padding=self.padding, stride=self.stride)
        return read.movedim(1, 2).reshape(len(x), read.shape[2], self.groups, -1)

    def matrix(self) -> Tensor:
        """The weight as [G, K, O / G]; a copy."""
        weight = self.weight.detach().reshape(self.groups, self.weight.shape[0] // self.groups, -1)
        return weight.transpose(1, 2).clone()

    def set_matrix(self, matrix: Tensor) -> None:
        """Take [G, K, O / G] for the weight, in place."""
        self.weight.copy_(matrix.transpose(1, 2).reshape(self.weight.shape))

    def made(self, output: Tensor) -> Tensor:
        """Its output as [B, S, O]."""
        if self.weight.dim() == 2:
            return output.reshape(len(output), -1, output.shape[-1])
        return output.flatten(2).movedim(1, 2)


class WeightedCalls(TorchFunctionMode):
    """While it is entered, ``before`` is told of each call, then ``after`` of the call and its output.

    Calls of weights that are no parameter of the network or go by several names, and of layers without rows (transposed
    or in three dimensions), are passed over. ``normed``: the weights whose output a batch norm was the first to read.
    """

    def __init__(
        self, network: nn.Module, before: Callable[[Call], None] = lambda call: None,
        after: Callable[[Call, Tensor], None] = lambda call, output: None,
    ) -> None:  # fmt: skip
        super().__init__()
        named = list(network.named_parameters(remove_duplicate=False))
        uses = Counter(id(parameter) for _, parameter in named)
        self.names = {id(parameter): name for name, parameter in named if uses[id(parameter)] == 1}
        self.before, self.after = before, after
        self.normed: set[str] = set()
        self._last: tuple[str, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Every call of torch, also those of an exported graph."""
        kwargs = kwargs or {}
        kind = getattr(func, "__name__", "").partition(".")[0]
        if kind == _NORM and self._last is not None and args and args[0] is self._last[1]:
            self.normed.add(self._last[0])
        call = self._call(kind, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        self.before(call)
        output = func(*args, **kwargs)
        self._last = call.name, output
        self.after(call, output)
        return output

    def _call(self, kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
        if kind != _LINEAR and kind not in _CONVOLUTIONS:
            return None
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        weight = given.get("weight")
        name = self.names.get(id(weight))
        if name is None or weight is None:
            return None
        told = {"name": name, "input": given["input"], "weight": weight, "bias": given.get("bias")}
        if kind == _LINEAR:
            return Call(**told)
        rank, kernel = _CONVOLUTIONS[kind], weight.shape[2:]
        stride, dilation = (_pair(given.get(key, 1), rank) for key in ("stride", "dilation"))
        padding = _padding(given.get("padding", 0), rank, kernel, dilation)
        if padding is None or given["input"].dim() != weight.dim():
            return None
        return Call(**told, stride=stride, dilation=dilation, padding=padding, groups=given.get("groups", 1))


def _pair(value: int | Sequence[int], rank: int, missing: int = 1) -> tuple[int, int]:
    """Height's and width's; of one dimension, which is the width, ``missing`` for the height."""
    each = [value] * rank if isinstance(value, int) else [*value] * (rank if len(value) == 1 else 1)
    return (missing, each[0]) if rank == 1 else (each[0], each[1])


def _padding(
    value: int | str | Sequence[int], rank: int, kernel: Sequence[int], dilation: tuple[int, int]
) -> tuple[int, int] | None:
    """Zeros on each side; None: not the same number on both."""
    if value == "same":
        whole = [step * (size - 1) for size, step in zip(kernel, dilation[-rank:], strict=True)]
        if any(each % 2 for each in whole):
            return None
        value = [each // 2 for each in whole]
    return _pair(0 if isinstance(value, str) else value, rank, missing=0)
