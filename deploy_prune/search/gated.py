"""A network with its gates on: every group's gates multiply the input side of the weights that read its channels.

A channel whose gate is 0 is then exactly a channel that is not there, whatever activation, bias or batch-norm stands
between. Cost: one multiplication per weight, no extra activations.

Legend: N units of all groups, C units of one group, A coordinates of all gated axes, L coordinates of one axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploy_prune.types import Forward, Structure


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedNetwork:
    """A network and where its gates go. It reads the network's weights at each call, so it can be trained meanwhile.

    ``index_A``: for each coordinate of each gated axis, its place among all units, or N for "no gate here".
    ``axes``: (tensor name, shape that lines the gates up with the tensor's axis), in the order of ``index_A``.
    """

    network: nn.Module
    groups: tuple[str, ...]
    index_A: Tensor
    axes: tuple[tuple[str, tuple[int, ...]], ...]

    def forward(self, gates: Mapping[str, Tensor]) -> Forward:
        """The network with these gates: group name -> [C], any real or bool dtype, on the network's device.

        The gates enter the graph once, here: call `forward` anew for each step. Differentiable in gates and weights.
        Buffers (batch-norm statistics in train mode) are the network's own and are updated by it.
        """
        weights = self.weights(gates)

        def gated_forward(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.network, weights, args, kwargs)

        return gated_forward

    def weights(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gated tensors only: name -> weight * gates, broadcast along each gated axis."""
        if not self.axes:
            return {}
        values = [gates[name] for name in self.groups]
        gates_N = torch.cat([*values, torch.ones(1, dtype=values[0].dtype, device=values[0].device)])
        spread = torch.split(gates_N.index_select(0, self.index_A), [max(shape) for _, shape in self.axes])
        gated: dict[str, Tensor] = {}
        for (name, shape), gate_L in zip(self.axes, spread, strict=True):
            weight = gated[name] if name in gated else _tensor(self.network, name)
            gated[name] = weight * gate_L.to(weight.dtype).view(shape)
        return gated


def gated(network: nn.Module, structure: Structure) -> GatedNetwork:
    """Prepare a network for gates; nothing in it is changed. Do it after the network is on its device.

    Several groups may share one axis (after a concatenation), one tensor may be gated along two axes, and a tensor
    that several modules share is gated in all of them.
    """
    index: dict[tuple[str, int], Tensor] = {}
    start = 0
    total = sum(group.channels for group in structure.groups)
    for group in structure.groups:
        for axis in group.consumers:
            key = (axis.tensor, axis.axis)
            here = index.setdefault(key, torch.full_like(axis.unit_of, total))
            index[key] = torch.where(axis.unit_of >= 0, start + axis.unit_of, here)
        start += group.channels
    device = next((_tensor(network, name).device for name, _ in index), torch.device("cpu"))
    none = torch.zeros(0, dtype=torch.int64)
    return GatedNetwork(
        network=network,
        groups=tuple(group.name for group in structure.groups),
        index_A=torch.cat([none, *index.values()]).to(device),
        axes=tuple((name, _line_up(_tensor(network, name), axis)) for name, axis in index),
    )


def _tensor(network: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its state-dict name."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(network.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _line_up(tensor: Tensor, axis: int) -> tuple[int, ...]:
    """[1, ..., L, ..., 1]: the shape that broadcasts a vector along one axis of the tensor."""
    return tuple(length if i == axis % tensor.dim() else 1 for i, length in enumerate(tensor.shape))
