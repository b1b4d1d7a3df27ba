"""A network with its gates on: every group's gates multiply the input side of the weights that read its channels.

A channel whose gate is 0 is then exactly a channel that is not there, whatever activation, bias or batch-norm stands
between. Cost: one multiplication per weight; where a layer's input is smaller than its weight (late convolutions on
few pixels, heads), the input is multiplied instead, which is the same by linearity.

Legend: N units of all groups, C units of one group, A coordinates of all gated axes, L coordinates of one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploy_prune.search.kept_statistics import KeptStatistics, inside
from deploy_prune.types import Axis, Forward, Layer, Structure

PIXELS: Final[dict[type[nn.Module], int]] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Layers whose input may be gated instead of their weight: how many dimensions follow the channels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedNetwork:
    """A network and where its gates go. It reads the network's weights at each call, so it can be trained meanwhile.

    ``index_A``: for each coordinate of each gated axis, its place among all units, or N for "no gate here".
    ``axes``: (tensor name, shape that lines the gates up with the tensor's axis), in the order of ``index_A``.
    ``inputs``: (module name, its input channels' places, dimensions after them) where the input is gated instead.
    ``norms``: (name of a norm's weight, axis, its channels' places) where statistics are taken over channels: of norms,
    and of weights that are standardised. ``statistics``: (module, (rank, dimension, size), its channels' places) where
    a module's own code takes them.
    ``aliases``: (other name, name) of tensors that several modules share.
    """

    network: nn.Module
    groups: tuple[str, ...]
    index_A: Tensor
    axes: tuple[tuple[str, tuple[int, ...]], ...]
    inputs: tuple[tuple[str, Tensor, int], ...]
    norms: tuple[tuple[str, int, Tensor], ...]
    statistics: tuple[tuple[str, tuple[int, int, int], Tensor], ...]
    aliases: tuple[tuple[str, str], ...]

    def forward(self, gates: Mapping[str, Tensor], scales: Mapping[str, Tensor] | None = None) -> Forward:
        """The network with these gates: group name -> [C], any real or bool dtype, on the network's device.

        ``scales``: gated weight's name -> [], what that weight is multiplied by besides.

        The gates enter the graph once, here: call `forward` anew for each step. Differentiable in gates and weights.
        Buffers (batch-norm statistics in train mode) are the network's own and are updated by it.
        """
        gates_N = self._all(gates)
        scales = scales or {}
        weights = self._weights(gates_N, scales)
        inputs = {
            name: (gates_N[index_L] * scales.get(f"{name}.weight", 1)).view(-1, *[1] * after)
            for name, index_L, after in self.inputs
        }

        def plain_forward(*args: Any, **kwargs: Any) -> Any:
            with _gated_inputs(self.network, inputs):
                return functional_call(self.network, weights, args, kwargs, tie_weights=False)

        if not self.norms and not self.statistics:
            return plain_forward
        norms, standardised = {}, {}
        for name, axis, index_L in self.norms:
            tensor = weights.get(name, _tensor(self.network, name))
            if tensor.dim() == 1:
                norms[id(tensor)] = gates_N[index_L]
            else:
                standardised[id(tensor)] = gates_N[index_L].view(_line_up(tensor, axis))

        seen: dict[str, dict[tuple[int, int, int], Tensor]] = {}
        for module, place, index_L in self.statistics:
            seen.setdefault(module, {})[place] = gates_N[index_L]

        def gated_forward(*args: Any, **kwargs: Any) -> Any:
            kept = KeptStatistics(norms, standardised)
            with kept, inside(self.network, kept, seen), _without_fast_path():
                return plain_forward(*args, **kwargs)

        return gated_forward

    def _weights(self, gates_N: Tensor, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gated tensors only: name -> weight * gates * scale, broadcast along each gated axis."""
        if not self.axes:
            return {}
        spread = torch.split(gates_N.index_select(0, self.index_A), [max(shape) for _, shape in self.axes])
        gated: dict[str, Tensor] = {}
        for (name, shape), gate_L in zip(self.axes, spread, strict=True):
            weight = gated[name] if name in gated else _tensor(self.network, name)
            if name in scales and name not in gated:
                gate_L = gate_L * scales[name]
            gated[name] = weight * gate_L.to(weight.dtype).view(shape)
        return gated | {alias: gated[name] for alias, name in self.aliases if name in gated}

    def _all(self, gates: Mapping[str, Tensor]) -> Tensor:
        """[N + 1]: the gates of all units, and a 1 for coordinates without a gate."""
        values = [gates[name] for name in self.groups]
        one = values[0].new_ones(1) if values else torch.ones(1)
        return torch.cat([*values, one])


@contextmanager
def _gated_inputs(network: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, these modules' inputs are multiplied by their gates."""

    def times(gate: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
            return (x * gate.to(x.dtype), *rest), {k: v for k, v in kwargs.items() if k != "input"}

        return hook

    with ExitStack() as stack:
        for name, gate in gates.items():
            handle = network.get_submodule(name).register_forward_pre_hook(times(gate), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Torch's fused Transformer layer would hide its norms; inside, it takes the plain way."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def gated(network: nn.Module, structure: Structure, batch: int = 1) -> GatedNetwork:
    """Prepare a network for gates; nothing in it is changed. Do it after the network is on its device.

    Several groups may share one axis (after a concatenation), one tensor may be gated along two axes, and a tensor
    that several modules share is gated in all of them. ``batch``: examples in a batch; it decides where gating a
    layer's input is cheaper than gating its weight, nothing else.
    """
    index = _index(structure, [group.consumers for group in structure.groups])
    normed = {*structure.mixing}
    mixing = [
        tuple(a for a in group.members if a.tensor in normed and (a in group.consumers or _is_vector(network, a)))
        for group in structure.groups
    ]
    device = next((_tensor(network, name).device for name, _ in index), torch.device("cpu"))
    aliases = _aliases(network, {name for name, _ in index})
    names = [name for name, _ in index]
    closing = {axis.tensor for branch in structure.branches for axis in branch.consumers}
    single = {n for n in names if names.count(n) == 1} - normed - {name for _, name in aliases} - closing
    inputs = {name: after for name in single if (after := _input_rank(network, structure.layers, name, batch)) >= 0}
    by_weight = {key: at for key, at in index.items() if key[0] not in inputs}
    none = torch.zeros(0, dtype=torch.int64)
    return GatedNetwork(
        network=network,
        groups=tuple(group.name for group in structure.groups),
        index_A=torch.cat([none, *by_weight.values()]).to(device),
        axes=tuple((name, _line_up(_tensor(network, name), axis)) for name, axis in by_weight),
        inputs=tuple(
            (name.rpartition(".")[0], at.to(device), inputs[name]) for (name, _), at in index.items() if name in inputs
        ),
        statistics=tuple((m, place, at.to(device)) for (m, place), at in _statistics(structure).items()),
        aliases=aliases,
        norms=tuple((name, axis, at.to(device)) for (name, axis), at in _index(structure, mixing).items()),
    )


def gates_of(structure: Structure) -> Callable[[nn.Module, Mapping[str, Tensor]], Forward]:
    """How surgery turns gates on, without knowing the search."""

    def on(network: nn.Module, gates: Mapping[str, Tensor]) -> Forward:
        return gated(network, structure).forward(gates)

    return on


def _input_rank(network: nn.Module, layers: Sequence[Layer], name: str, batch: int) -> int:
    """Dimensions after the channels in the input of the layer with this weight; -1 to gate the weight.

    The input is gated if the weight is only ever read by its own module, a plain one, and is larger than the input.
    """
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    uses = [layer for layer in layers if layer.tensor == name]
    plain = leaf == "weight" and type(module) in PIXELS and getattr(module, "groups", 1) == 1
    if not plain or not uses or any(layer.name != path for layer in uses):
        return -1
    weight = _tensor(network, name)
    size = batch * weight.shape[1] * sum(layer.input_positions for layer in uses)
    return PIXELS[type(module)] if size < weight.numel() else -1


def _statistics(structure: Structure) -> dict[tuple[str, tuple[int, int, int]], Tensor]:
    """(module, (rank, dimension, size)) -> int64[L]: each channel's place among all units, N for none."""
    index: dict[tuple[str, tuple[int, int, int]], Tensor] = {}
    start, total = 0, sum(group.channels for group in structure.groups)
    for group in structure.groups:
        for (module, rank, dim, size), unit_of in group.statistics.items():
            key = (module, (rank, dim, size))
            here = index.setdefault(key, torch.full_like(unit_of, total))
            index[key] = torch.where(unit_of >= 0, start + unit_of, here)
        start += group.channels
    return index


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
