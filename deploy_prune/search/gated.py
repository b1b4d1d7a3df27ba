"""A network with its gates on: every group's gates multiply the input side of the weights that read its channels.

A channel whose gate is 0 is then exactly a channel that is not there, whatever activation, bias or batch-norm stands
between. Cost: one multiplication per weight, no extra activations.

Legend: N units of all groups, C units of one group, A coordinates of all gated axes, L coordinates of one axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploy_prune.search.norms import KeptStatistics, inside
from deploy_prune.types import Axis, Forward, Structure


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedNetwork:
    """A network and where its gates go. It reads the network's weights at each call, so it can be trained meanwhile.

    ``index_A``: for each coordinate of each gated axis, its place among all units, or N for "no gate here".
    ``axes``: (tensor name, shape that lines the gates up with the tensor's axis), in the order of ``index_A``.
    ``norms``: (name of a norm's weight, axis, its channels' places) where statistics are taken over channels: of norms,
    and of weights that are standardised. ``reduced``: names of those whose modules take them by their own code.
    ``aliases``: (other name, name) of tensors that several modules share.
    """

    network: nn.Module
    groups: tuple[str, ...]
    index_A: Tensor
    axes: tuple[tuple[str, tuple[int, ...]], ...]
    norms: tuple[tuple[str, int, Tensor], ...]
    reduced: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]

    def forward(self, gates: Mapping[str, Tensor]) -> Forward:
        """The network with these gates: group name -> [C], any real or bool dtype, on the network's device.

        The gates enter the graph once, here: call `forward` anew for each step. Differentiable in gates and weights.
        Buffers (batch-norm statistics in train mode) are the network's own and are updated by it.
        """
        weights = self.weights(gates)
        if not self.norms:
            return lambda *args, **kwargs: functional_call(self.network, weights, args, kwargs, tie_weights=False)
        gates_N = self._all(gates)
        norms, standardised, reduced = {}, {}, {}
        for name, axis, index_L in self.norms:
            tensor = weights.get(name, _tensor(self.network, name))
            if name in self.reduced:
                reduced[name] = gates_N[index_L]
            if tensor.dim() == 1:
                norms[id(tensor)] = gates_N[index_L]
            else:
                standardised[id(tensor)] = gates_N[index_L].view(_line_up(tensor, axis))

        def gated_forward(*args: Any, **kwargs: Any) -> Any:
            kept = KeptStatistics(norms, standardised)
            with kept, inside(self.network, kept, reduced), _without_fast_path():
                return functional_call(self.network, weights, args, kwargs, tie_weights=False)

        return gated_forward

    def weights(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gated tensors only: name -> weight * gates, broadcast along each gated axis."""
        if not self.axes:
            return {}
        spread = torch.split(self._all(gates).index_select(0, self.index_A), [max(shape) for _, shape in self.axes])
        gated: dict[str, Tensor] = {}
        for (name, shape), gate_L in zip(self.axes, spread, strict=True):
            weight = gated[name] if name in gated else _tensor(self.network, name)
            gated[name] = weight * gate_L.to(weight.dtype).view(shape)
        return gated | {alias: gated[name] for alias, name in self.aliases if name in gated}

    def _all(self, gates: Mapping[str, Tensor]) -> Tensor:
        """[N + 1]: the gates of all units, and a 1 for coordinates without a gate."""
        values = [gates[name] for name in self.groups]
        return torch.cat([*values, torch.ones(1, dtype=values[0].dtype, device=values[0].device)])


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Torch's fused Transformer layer would hide its norms; inside, it takes the plain way."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def gated(network: nn.Module, structure: Structure) -> GatedNetwork:
    """Prepare a network for gates; nothing in it is changed. Do it after the network is on its device.

    Several groups may share one axis (after a concatenation), one tensor may be gated along two axes, and a tensor
    that several modules share is gated in all of them.
    """
    index = _index(structure, [group.consumers for group in structure.groups])
    normed = {*structure.mixing, *structure.reduced}
    mixing = [
        tuple(a for a in group.members if a.tensor in normed and (a in group.consumers or _is_vector(network, a)))
        for group in structure.groups
    ]
    device = next((_tensor(network, name).device for name, _ in index), torch.device("cpu"))
    none = torch.zeros(0, dtype=torch.int64)
    return GatedNetwork(
        network=network,
        groups=tuple(group.name for group in structure.groups),
        index_A=torch.cat([none, *index.values()]).to(device),
        axes=tuple((name, _line_up(_tensor(network, name), axis)) for name, axis in index),
        reduced=structure.reduced,
        aliases=_aliases(network, {name for name, _ in index}),
        norms=tuple((name, axis, at.to(device)) for (name, axis), at in _index(structure, mixing).items()),
    )


def _index(structure: Structure, axes: Sequence[Sequence[Axis]]) -> dict[tuple[str, int], Tensor]:
    """(tensor, axis) -> int64[L]: each coordinate's place among all units, N for none. ``axes``: each group's."""
    index: dict[tuple[str, int], Tensor] = {}
    start = 0
    total = sum(group.channels for group in structure.groups)
    for group, mine in zip(structure.groups, axes, strict=True):
        for axis in mine:
            key = (axis.tensor, axis.axis)
            here = index.setdefault(key, torch.full_like(axis.unit_of, total))
            index[key] = torch.where(axis.unit_of >= 0, start + axis.unit_of, here)
        start += group.channels
    return index


def _is_vector(network: nn.Module, axis: Axis) -> bool:
    return _tensor(network, axis.tensor).dim() == 1


def _aliases(network: nn.Module, names: set[str]) -> tuple[tuple[str, str], ...]:
    """(other name, name) for the tensors of these names that other modules hold, too; a module counts once."""
    known = {id(_tensor(network, name)): name for name in names}
    owners = {(id(network.get_submodule(n.rpartition(".")[0])), n.rpartition(".")[2]) for n in names}
    return tuple(
        (f"{path}.{leaf}" if path else leaf, known[id(tensor)])
        for path, module in network.named_modules()
        for leaf, tensor in {**module._parameters, **module._buffers}.items()
        if id(tensor) in known and (id(module), leaf) not in owners
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
