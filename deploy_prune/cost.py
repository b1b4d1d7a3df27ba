"""What a network costs as a function of how many units each group keeps: MACs, parameters, latency.

Every cost is one closed form over the layers (legend: l layer, n_g units kept of group g),

    T(n) = constant + sum_l there_l(n) * (fixed_l
                                          + times_l(n) * stair(out_l(n)) * (product_l * stair(in_l(n)) + linear_l))

with in_l, out_l the layer's widths, times_l the product of its repeats (1 for most), and there_l the product of the
branches that it lies on: 1, or 0 once one of them is gone. It is evaluated on ints (exact) and on tensors
(differentiable, no stairs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Literal

from deploy_prune.types import ChannelGroup, Counts, Layer, Metric, Precision, Structure, Width

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A layer's share of a cost: ``product`` per input x output channel, ``linear`` per output channel, repeated.

    ``fixed``: what it costs to be there, whatever its widths are.
    """

    layer: Layer
    product: float
    linear: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """A cost of a network as a function of the units kept per group.

    ``granule``: widths are rounded up to multiples of it before they are priced (1 = priced as they are).
    """

    metric: Metric
    layers: tuple[LayerCost, ...]
    groups: tuple[str, ...]
    constant: float = 0.0
    granule: int = 1

    @cached_property
    def _widths(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Inputs, outputs and repeats of the layers: coordinates per unit [layers, groups], and fixed ones [layers]."""
        import torch

        column = {name: j for j, name in enumerate(self.groups)}
        most = max((len(c.layer.widths) for c in self.layers), default=2)
        made = []
        for place in range(max(2, most)):
            per = torch.zeros(len(self.layers), len(self.groups), dtype=torch.float64)
            fixed = torch.ones(len(self.layers), dtype=torch.float64)
            for row, cost in enumerate(self.layers):
                if place < len(cost.layer.widths):
                    width = cost.layer.widths[place]
                    fixed[row] = width.fixed
                    for name, coordinates in width.per_unit.items():
                        per[row, column[name]] = coordinates
            made.append((per, fixed))
        return tuple(made)

    @cached_property
    def _branches(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The same of the branches that layers lie on, the first of each layer, the second, and so on."""
        import torch

        column = {name: j for j, name in enumerate(self.groups)}
        made = []
        for place in range(max((len(c.layer.branches) for c in self.layers), default=0)):
            per = torch.zeros(len(self.layers), len(self.groups), dtype=torch.float64)
            fixed = torch.ones(len(self.layers), dtype=torch.float64)
            for row, cost in enumerate(self.layers):
                if place < len(cost.layer.branches):
                    fixed[row], per[row, column[cost.layer.branches[place]]] = 0, 1
            made.append((per, fixed))
        return tuple(made)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three coefficients, [layers] each."""
        import torch

        rows = [(c.product, c.linear, c.fixed) for c in self.layers]
        product, linear, fixed = torch.tensor(rows, dtype=torch.float64).view(-1, 3).unbind(1)
        return product, linear, fixed

    def __call__(self, counts: Counts) -> float:
        """The cost for these counts, in the metric's unit, with widths rounded up to the granule."""
        import torch

        return float(self.batched(torch.tensor([[counts[g] for g in self.groups]], dtype=torch.float64))[0])

    def batched(self, counts_NG: Tensor) -> Tensor:
        """The same for many choices at once: float64[N, groups] (columns as in ``groups``) -> float64[N]."""
        inputs, outputs, *repeats = (counts_NG @ per.T + fixed for per, fixed in self._widths)
        branches = [counts_NG @ per.T + fixed for per, fixed in self._branches]
        return self._sum(self._stair(inputs), self._stair(outputs), repeats, branches)

    def _sum(self, inputs: Tensor, outputs: Tensor, repeats: Sequence[Tensor], branches: Sequence[Tensor]) -> Tensor:
        """The closed form for widths [..., layers]."""
        import torch

        product, linear, fixed = (factor.to(inputs.device) for factor in self._factors)
        there = torch.ones_like(outputs)
        for stays in branches:
            there = there * stays
        for times in (*repeats, there):
            outputs = outputs * times
        return self.constant + (inputs * outputs) @ product + outputs @ linear + there @ fixed

    def expected(self, counts: Mapping[str, Tensor]) -> Tensor:
        """The cost for soft counts (scalar tensors), differentiable, priced without stairs. A scalar tensor."""
        import torch

        soft = torch.stack([counts[g].double() for g in self.groups])
        widths, branches = (
            [per.to(soft.device) @ soft + fixed.to(soft.device) for per, fixed in pairs]
            for pairs in (self._widths, self._branches)
        )
        inputs, outputs, *repeats = widths
        return self._sum(inputs, outputs, repeats, branches)

    def scaled(self, factor: float, metric: Metric, *, exact: tuple[Counts, float]) -> CostModel:
        """This cost times a factor, as another metric, its constant such that it is ``exact[1]`` at ``exact[0]``."""
        layers = tuple(
            replace(c, product=c.product * factor, linear=c.linear * factor, fixed=c.fixed * factor)
            for c in self.layers
        )
        model = CostModel(metric=metric, layers=layers, groups=self.groups, granule=self.granule)
        return replace(model, constant=exact[1] - model(exact[0]))

    def _stair(self, width: Tensor) -> Tensor:
        return width if self.granule == 1 else (width / self.granule).ceil() * self.granule


def macs(structure: Structure) -> CostModel:
    """Multiply-accumulates per example of all products, of weights and of activations; see networks/products.py."""
    layers = tuple(LayerCost(layer=x, product=float(x.positions * x.taps)) for x in structure.layers if x.taps)
    return CostModel(metric="macs", layers=layers, groups=_names(structure))


def params(structure: Structure, network: nn.Module) -> CostModel:
    """Parameters: the sizes of all tensors that ``network``, the dense one, has; a shared one counts once."""
    members: dict[tuple[str, int], list[tuple[ChannelGroup, int]]] = {}
    for group in structure.groups:
        for axis in group.members:
            mine = group, int((axis.unit_of >= 0).sum())
            members.setdefault((axis.tensor, axis.axis), []).append(mine)
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    branches: dict[str, list[str]] = {}
    for group in structure.branches:
        for name in group.vanishes:
            branches.setdefault(name, []).append(group.name)
    layers = []
    for name, parameter in network.named_parameters():
        known = next((n for n in names[id(parameter)] if any((n, d) in members for d in range(parameter.dim()))), name)
        widths = [_axis(size, members.get((known, d), ())) for d, size in enumerate(parameter.shape)]
        layer = replace(_tensor(name, widths), branches=tuple(branches.get(known, ())))
        layers.append(LayerCost(layer=layer, product=1.0))
    return CostModel(metric="params", layers=tuple(layers), groups=_names(structure))


def _axis(size: int, groups: Sequence[tuple[ChannelGroup, int]]) -> Width:
    """The width of a tensor's axis, of which these groups have so many coordinates."""
    fixed = size - sum(coordinates for _, coordinates in groups)
    return Width(fixed=fixed, per_unit={group.name: n // group.channels for group, n in groups})


def _tensor(name: str, widths: Sequence[Width]) -> Layer:
    """A tensor as a layer that uses each of its numbers once."""
    one = Width(fixed=1, per_unit={})
    outputs, inputs, *repeats = (*widths, one, one)
    return Layer(
        name=name, kind="linear", tensor=name, taps=1, positions=1, input_positions=1, inputs=inputs, outputs=outputs,
        vectors=0, repeats=tuple(r for r in repeats if r != one),
    )  # fmt: skip


def size(structure: Structure, precision: Precision, dense: float, smallest: tuple[Counts, float]) -> CostModel:
    """Bytes of the artifact: its weights, the vectors beside them, and what a format adds.

    A batch norm is folded into its layer and leaves one vector, the bias; other norms keep theirs. In int8 every
    channel has a bias and a scale of 4 bytes each, where a weight has one. Between two files that were written, the
    line through both has what a format adds to every weight, and to a file.

    Args:
        structure: its layers.
        precision: of the artifact's weights.
        dense: the dense artifact's bytes.
        smallest: the counts of another artifact, and its bytes.

    Returns:
        A model that is exact at both.
    """
    vector = 8.0 if precision == "int8" else 1.0
    own = {x.tensor: x for x in structure.layers if x.tensor}
    layers = tuple(
        LayerCost(layer=x, product=float(_taps_in_a_file(x)), linear=vector * _vectors_in_a_file(x, structure))
        for x in own.values()
    )
    weights = CostModel(metric="size", layers=layers, groups=_names(structure))
    whole, counts = structure.dense_counts, smallest[0]
    gone = weights(whole) - weights(counts)
    return weights.scaled((dense - smallest[1]) / gone if gone else 0.0, "size", exact=(whole, dense))


def _taps_in_a_file(layer: Layer) -> int:
    return 1 if layer.kind == "embedding" else layer.taps


def _vectors_in_a_file(layer: Layer, structure: Structure) -> int:
    folded = layer.kind == "norm" and layer.tensor not in structure.mixing
    return min(layer.vectors, 1) if folded else layer.vectors


def _names(structure: Structure) -> tuple[str, ...]:
    return tuple(g.name for g in structure.groups)


def at_widths(model: CostModel, widths: Sequence[tuple[int, int, int]]) -> float:
    """The cost at these (inputs, outputs, repeats) of its layers, whatever the units are that lead to them."""
    stairs = [(*(ceil(w / model.granule) * model.granule for w in wide), times) for *wide, times in widths]
    layers = zip(model.layers, stairs, strict=True)
    return model.constant + sum((c.product * i + c.linear) * o * n + c.fixed * (n > 0) for c, (i, o, n) in layers)


def share_by_layer(model: CostModel, counts: Counts) -> Sequence[tuple[str, float]]:
    """(layer name, its part of the cost) in order of execution."""
    return [
        (
            c.layer.name,
            (c.product * c.layer.inputs.at(counts) + c.linear) * c.layer.outputs.at(counts) * c.layer.times(counts)
            + c.fixed * c.layer.is_there(counts),
        )
        for c in model.layers
    ]


Reason = Literal["granularity", "memory-bound", "overhead"]
"""Why a layer is slower than its multiply-accumulates say: latency/why_slower.py has the rules."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A layer that is slower than its multiply-accumulates say; ``share``: lost ms over the slim network's ms."""

    layer: str
    dense_ms: float
    slim_ms: float
    macs_share: float
    share: float
    reason: Reason
