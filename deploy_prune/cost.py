"""What a network costs as a function of how many units each group keeps: MACs, parameters, latency.

Every cost is one closed form over the layers (legend: l layer, n_g units kept of group g),

    T(n) = constant + sum_l  product_l * stair(in_l(n)) * stair(out_l(n)) + linear_l * stair(out_l(n))

with in_l, out_l the layer's widths. It is evaluated on ints (exact) and on tensors (differentiable, no stairs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

from deploy_prune.types import Counts, Layer, Metric, Precision, Structure

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """A layer's share of a cost: ``product`` per input x output channel, ``linear`` per output channel."""

    layer: Layer
    product: float
    linear: float = 0.0


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
    def _matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Per-unit widths [layers, groups] and fixed widths [layers] of inputs and outputs; the two coefficients."""
        import torch

        column = {name: j for j, name in enumerate(self.groups)}
        per_in = torch.zeros(len(self.layers), len(self.groups), dtype=torch.float64)
        per_out = torch.zeros_like(per_in)
        for row, cost in enumerate(self.layers):
            for matrix, width in ((per_in, cost.layer.inputs), (per_out, cost.layer.outputs)):
                for name, per in width.per_unit.items():
                    matrix[row, column[name]] = per
        fixed_in = torch.tensor([c.layer.inputs.fixed for c in self.layers], dtype=torch.float64)
        fixed_out = torch.tensor([c.layer.outputs.fixed for c in self.layers], dtype=torch.float64)
        product = torch.tensor([c.product for c in self.layers], dtype=torch.float64)
        linear = torch.tensor([c.linear for c in self.layers], dtype=torch.float64)
        return per_in, fixed_in, per_out, fixed_out, product, linear

    def __call__(self, counts: Counts) -> float:
        """The cost for these counts, in the metric's unit, with widths rounded up to the granule."""
        import torch

        return float(self.batched(torch.tensor([[counts[g] for g in self.groups]], dtype=torch.float64))[0])

    def batched(self, counts_NG: Tensor) -> Tensor:
        """The same for many choices at once: float64[N, groups] (columns as in ``groups``) -> float64[N]."""
        per_in, fixed_in, per_out, fixed_out, product, linear = self._matrices
        inputs = self._stair(counts_NG @ per_in.T + fixed_in)
        outputs = self._stair(counts_NG @ per_out.T + fixed_out)
        return self.constant + (inputs * outputs) @ product + outputs @ linear

    def expected(self, counts: Mapping[str, Tensor]) -> Tensor:
        """The cost for soft counts (scalar tensors), differentiable, priced without stairs. A scalar tensor."""
        import torch

        soft = torch.stack([counts[g].double() for g in self.groups])
        device = soft.device
        per_in, fixed_in, per_out, fixed_out, product, linear = (m.to(device) for m in self._matrices)
        inputs, outputs = per_in @ soft + fixed_in, per_out @ soft + fixed_out
        return self.constant + (inputs * outputs) @ product + outputs @ linear

    def scaled(self, factor: float, metric: Metric, *, exact: tuple[Counts, float]) -> CostModel:
        """This cost times a factor, as another metric, its constant such that it is ``exact[1]`` at ``exact[0]``."""
        layers = tuple(
            LayerCost(layer=c.layer, product=c.product * factor, linear=c.linear * factor) for c in self.layers
        )
        model = CostModel(metric=metric, layers=layers, groups=self.groups, granule=self.granule)
        return replace(model, constant=exact[1] - model(exact[0]))

    def _stair(self, width: Tensor) -> Tensor:
        return width if self.granule == 1 else (width / self.granule).ceil() * self.granule


def macs(structure: Structure) -> CostModel:
    """Multiply-accumulates per example of all convolutions and matrix products with weights."""
    layers = tuple(LayerCost(layer=x, product=float(x.positions * x.taps)) for x in structure.layers)
    return CostModel(metric="macs", layers=layers, groups=_names(structure))


def params(structure: Structure, total: int) -> CostModel:
    """Parameters. ``total``: the dense network's count; what no layer explains stays constant."""
    seen: set[str] = set()
    layers = []
    for x in structure.layers:
        if x.tensor in seen:
            continue
        seen.add(x.tensor)
        layers.append(LayerCost(layer=x, product=float(x.taps), linear=float(x.vectors)))
    model = CostModel(metric="params", layers=tuple(layers), groups=_names(structure))
    rest = total - model(structure.dense_counts)
    return CostModel(metric="params", layers=tuple(layers), groups=_names(structure), constant=rest)


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
    own = {x.tensor: x for x in structure.layers}
    layers = tuple(
        LayerCost(layer=x, product=float(x.taps), linear=vector * _vectors_in_a_file(x, structure))
        for x in own.values()
    )
    weights = CostModel(metric="size", layers=layers, groups=_names(structure))
    whole, counts = structure.dense_counts, smallest[0]
    gone = weights(whole) - weights(counts)
    return weights.scaled((dense - smallest[1]) / gone if gone else 0.0, "size", exact=(whole, dense))


def _vectors_in_a_file(layer: Layer, structure: Structure) -> int:
    folded = layer.kind == "norm" and layer.tensor not in structure.mixing
    return min(layer.vectors, 1) if folded else layer.vectors


def _names(structure: Structure) -> tuple[str, ...]:
    return tuple(g.name for g in structure.groups)


def at_widths(model: CostModel, widths: Sequence[tuple[int, int]]) -> float:
    """The cost at these (inputs, outputs) of its layers, whatever the units are that lead to them."""
    stairs = [[ceil(w / model.granule) * model.granule for w in pair] for pair in widths]
    parts = (c.product * i * o + c.linear * o for c, (i, o) in zip(model.layers, stairs, strict=True))
    return model.constant + sum(parts)


def share_by_layer(model: CostModel, counts: Counts) -> Sequence[tuple[str, float]]:
    """(layer name, its part of the cost) in order of execution."""
    return [
        (
            c.layer.name,
            c.product * c.layer.inputs.at(counts) * c.layer.outputs.at(counts) + c.linear * c.layer.outputs.at(counts),
        )
        for c in model.layers
    ]
