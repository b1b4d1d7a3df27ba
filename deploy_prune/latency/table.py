"""A latency table for a measured target: every layer's time as a function of its widths, fitted to real variants.

A few variants of the network, at random aligned widths, are exported, timed whole, and profiled node by node. Per
layer l, with i and o its widths rounded up to the granule, repeated n times (1 for most),

    t_l(i, o, n) = n * (product_l * i * o + linear_l * o) + fixed_l,        all >= 0,

or 0 if it isn't there (n = 0), for it lies on a branch that is gone. What belongs to no layer (reorders, poolings,
elementwise nodes, the runtime's own time) is

    rest = constant + per_layer * (number of layers that are there) + per_element * sum_l positions_l * n_l * o_l,

where per_layer is 0 if all layers are there in all variants. A profiler disturbs short nodes more than long ones, so
that the sum is off by more the narrower the network is: last, the three sums (products, linear terms, constants) are
each scaled by a factor near 1 such that they add up to the whole networks' times, which were measured without it. Where
the runtime has no profiler, a few rates that all layers share are fitted to the whole networks. The result is of the
form that ``cost.CostModel`` evaluates.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy
from numpy.typing import NDArray
from scipy.optimize import nnls

from deploy_prune.cost import CostModel, LayerCost
from deploy_prune.errors import MeasurementError
from deploy_prune.types import ChannelGroup, Counts, Layer, Structure

Array = NDArray[Any]
MIN_SAMPLES: Final = 2  # a small network has no more than its largest and smallest form in a device's steps
PRIOR_WEIGHT: Final = 0.1
"""Weight of the prior (time goes with the multiply-accumulates, from the dense layer's time) against one variant."""

PULL: Final = 0.1
"""Weight with which the factors of the three sums are held near 1, against one variant."""
FLOOR: Final = 0.3
"""Errors count relative to a layer's time, but not to less than this share of its largest."""


Widths = tuple[tuple[int, int, int], ...]
"""(inputs, outputs, how often it is repeated) of every layer that multiplies, in order of execution."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured variant: its layers' widths, its p50 in ms, and the ms of each layer (None: not profiled).

    Widths, and not kept units: so the same samples serve whichever groups a recipe prunes. Layers that are not in
    ``per_layer_ms`` (their nodes could not be told apart) count to the rest.
    """

    widths: Widths
    total_ms: float
    per_layer_ms: Mapping[str, float] | None


def widths_of(structure: Structure, counts: Counts) -> Widths:
    """The widths of a structure's layers at these counts."""
    return tuple((x.inputs.at(counts), x.outputs.at(counts), x.times(counts)) for x in structure.layers if x.taps)


def fit_table(structure: Structure, samples: Sequence[Sample], granule: int) -> CostModel:
    """The latency model in ms: least squares of relative errors, of every layer first and then of whole networks.

    It isn't exact on the dense network either: widths off the staircase, which dense ones can be, have costs of their
    own, and forcing the sum through one measurement would carry its error to all others.

    Args:
        structure: the network's groups and layers.
        samples: the dense network and at least one variant, better several.
        granule: widths are rounded up to multiples of it.

    Raises:
        MeasurementError: too few samples, or the dense network is not among them.
    """
    _require_dense(structure, samples)
    layers = [x for x in structure.layers if x.taps]
    stairs, there = _stairs(samples, granule), _there(samples)
    totals = numpy.array([s.total_ms for s in samples])
    groups = tuple(g.name for g in structure.groups)
    if any(sample.per_layer_ms is None for sample in samples):
        costs, rest = _fit_whole(layers, stairs, there, totals)
        return CostModel(metric="latency", layers=costs, groups=groups, constant=rest, granule=granule)
    times = _layer_times(layers, samples)
    fitted = [_fit_layer(x, stairs[:, i], times[:, i]) for i, x in enumerate(layers)]
    costs, rest = _with_rest(fitted, stairs, there, totals)
    model = CostModel(metric="latency", layers=costs, groups=groups, constant=rest, granule=granule)
    return _balanced(model, stairs, there, totals)


def variant_counts(structure: Structure, granule: int, num: int, seed: int) -> tuple[Counts, ...]:
    """Kept units of ``num`` variants to measure: aligned to the granule, from narrow to wide, otherwise random.

    Variant k keeps about a share (k + 1) / (num + 1) of every group, times a random factor of 0.5 to 1.5 per group. A
    branch stays where its random factor is above 1.
    """
    generator = random.Random(seed)  # noqa: S311

    def kept(group: ChannelGroup, share: float) -> int:
        factor = generator.uniform(0.5, 1.5)
        return int(factor > 1) if group.is_branch else _aligned(group.channels, granule, share * factor)

    return tuple({group.name: kept(group, (k + 1) / (num + 1)) for group in structure.groups} for k in range(num))


def _aligned(channels: int, granule: int, share: float) -> int:
    """The nearest multiple of the granule to a share of the channels; all of them where none fits."""
    steps = max(1, round(share * channels / granule))
    return min(channels, steps * granule)


def _require_dense(structure: Structure, samples: Sequence[Sample]) -> None:
    widths = widths_of(structure, structure.dense_counts)
    if len(samples) < MIN_SAMPLES or all(sample.widths != widths for sample in samples):
        message = f"A latency table needs the dense network and a smaller one; {len(samples)} were measured."
        raise MeasurementError(message)


def _stairs(samples: Sequence[Sample], granule: int) -> Array:
    """What a layer's time goes with, [samples, layers, 2]: inputs times outputs on the staircase, and outputs."""
    widths = numpy.array([s.widths for s in samples], dtype=float).reshape(len(samples), -1, 3)
    inputs, outputs = (numpy.ceil(widths[:, :, side] / granule) * granule for side in (0, 1))
    work: Array = numpy.stack([inputs * outputs, outputs], 2) * widths[:, :, 2:]
    return work


def _there(samples: Sequence[Sample]) -> Array:
    """1 where a layer is there, else 0, [samples, layers]."""
    there: Array = numpy.array([[float(n > 0) for *_, n in s.widths] for s in samples]).reshape(len(samples), -1)
    return there


def _layer_times(layers: Sequence[Layer], samples: Sequence[Sample]) -> Array:
    """The ms of each layer, [samples, layers]; NaN where it isn't known."""
    return numpy.array([[(s.per_layer_ms or {}).get(x.name, numpy.nan) for x in layers] for s in samples])


def _fit_whole(
    layers: Sequence[Layer], stairs: Array, there: Array, totals: Array
) -> tuple[tuple[LayerCost, ...], float]:
    """Costs and constant where only whole networks were timed: a rate for each kind of work, the same for all layers.

    Time goes with MACs, with those of depthwise layers, with elements written, with weights, with the number of layers
    (where it varies), and a constant.
    """
    deep, held = (
        numpy.array(are) for are in zip(*((x.kind == "depthwise", bool(x.tensor)) for x in layers), strict=True)
    )
    positions, taps = (numpy.array([getattr(x, key) for x in layers], dtype=float) for key in ("positions", "taps"))
    products, outputs = stairs[:, :, 0], stairs[:, :, 1]
    per_product = numpy.stack([positions * taps * ~deep, 0 * taps, 0 * taps, taps * ~deep * held])
    per_output = numpy.stack([0 * taps, positions * taps * deep, positions, 0 * taps])
    work = products @ per_product.T + outputs @ per_output.T
    features = numpy.hstack([work, _number(there), numpy.ones((len(totals), 1))])
    scale = numpy.maximum(features.max(0), 1e-9)
    rates = nnls(features / scale / totals[:, None], numpy.ones(len(totals)))[0] / scale
    product, linear = rates[:-2] @ per_product, rates[:-2] @ per_output
    costs = [
        LayerCost(layer=x, product=float(product[i]), linear=float(linear[i]), fixed=float(rates[-2]))
        for i, x in enumerate(layers)
    ]
    return tuple(costs), float(rates[-1])


def _number(there: Array) -> Array:
    """How many layers are there, [samples, 1]; 0 where it is the same in all, which a constant says as well."""
    number: Array = there.sum(1, keepdims=True)
    return number if len(numpy.unique(number)) > 1 else 0 * number


def _fit_layer(layer: Layer, widths: Array, times: Array) -> LayerCost:
    """A layer's cost: non-negative least squares, with the prior as weak rows.

    ``widths``: [samples, 2] as in ``_stairs``, ``times``: [samples], the first of them the dense network's.
    """
    known = ~numpy.isnan(times)
    if not known.any():
        return LayerCost(layer=layer, product=0.0)
    features = numpy.column_stack([widths, numpy.ones(len(widths))])
    scale = features.max(0)
    largest = max(float(times[known].max()), 1e-9)
    weights = 1 / numpy.maximum(times[known], FLOOR * largest)
    rows = numpy.vstack([(features / scale)[known] * weights[:, None], PRIOR_WEIGHT * numpy.eye(3) / largest])
    values = numpy.concatenate([times[known] * weights, [PRIOR_WEIGHT, 0.0, 0.0]])
    product, linear, fixed = (nnls(rows, values)[0] / scale).tolist()
    return LayerCost(layer=layer, product=product, linear=linear, fixed=fixed)


def _with_rest(
    costs: Sequence[LayerCost], stairs: Array, there: Array, totals: Array
) -> tuple[tuple[LayerCost, ...], float]:
    """Costs and constant with what no layer explains: a constant, a time per layer, and one per output element."""
    product, linear, fixed = _coefficients(costs)
    positions = numpy.array([c.layer.positions for c in costs], dtype=float)
    rest = totals - there @ fixed - stairs[:, :, 0] @ product - stairs[:, :, 1] @ linear
    features = numpy.hstack([numpy.ones((len(totals), 1)), _number(there), stairs[:, :, 1] @ positions[:, None]])
    scale = numpy.maximum(features.max(0), 1e-9)
    constant, per_layer, per_element = (nnls(features / scale / totals[:, None], rest / totals)[0] / scale).tolist()
    whole = tuple(
        replace(c, linear=c.linear + per_element * c.layer.positions, fixed=c.fixed + per_layer) for c in costs
    )
    return whole, constant


def _coefficients(costs: Sequence[LayerCost]) -> tuple[Array, Array, Array]:
    """Products, linear and fixed terms, [layers] each."""
    product, linear, fixed = numpy.array([(c.product, c.linear, c.fixed) for c in costs]).reshape(-1, 3).T
    return product, linear, fixed


def _balanced(model: CostModel, stairs: Array, there: Array, totals: Array) -> CostModel:
    """The model with its products, linear terms and what is fixed each scaled, so that they add up to the totals."""
    product, linear, fixed = _coefficients(model.layers)
    sums = numpy.stack([stairs[:, :, 0] @ product, stairs[:, :, 1] @ linear, model.constant + there @ fixed], 1)
    shares = sums / totals[:, None]
    held = PULL * numpy.maximum(shares.max(0), 1e-6)
    rows = numpy.vstack([shares, numpy.diag(held)])
    a, b, c = nnls(rows, numpy.concatenate([numpy.ones(len(totals)), held]))[0].tolist()
    layers = tuple(replace(x, product=x.product * a, linear=x.linear * b, fixed=x.fixed * c) for x in model.layers)
    return replace(model, layers=layers, constant=model.constant * c)
