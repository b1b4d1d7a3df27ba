"""A latency table for a measured target: every layer's time as a function of its widths, fitted to real variants.

A few variants of the network, at random aligned widths, are exported, timed whole, and profiled node by node. Per
layer l, with i and o its widths rounded up to the granule,

    t_l(i, o) = product_l * i * o + linear_l * o + constant_l,        all >= 0,

and what belongs to no layer (reorders, poolings, elementwise nodes, the runtime's own time) is

    rest = constant + per_element * sum_l positions_l * o_l.

The constants add up to one; the sum is of the form that ``cost.CostModel`` evaluates.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import numpy
from scipy.optimize import nnls

from deploy_prune.cost import CostModel, LayerCost
from deploy_prune.errors import MeasurementError
from deploy_prune.types import Counts, Layer, Structure

MIN_SAMPLES: Final = 3
PRIOR_WEIGHT: Final = 0.1
"""Weight of the prior (time goes with the multiply-accumulates, from the dense layer's time) against one variant."""

FLOOR: Final = 0.3
"""Errors count relative to a layer's time, but not to less than this share of its largest."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured variant: kept units per group, its p50 in ms, and the ms of each layer (None: not profiled).

    Layers that are not in ``per_layer_ms`` (their nodes could not be told apart) count to the rest.
    """

    counts: Counts
    total_ms: float
    per_layer_ms: Mapping[str, float] | None


def fit_table(structure: Structure, samples: Sequence[Sample], granule: int) -> CostModel:
    """The latency model in ms: exact on the dense variant, least squares on the others.

    Args:
        structure: the network's groups and layers.
        samples: the dense network and at least two variants.
        granule: widths are rounded up to multiples of it.

    Raises:
        MeasurementError: too few samples, or the dense network is not among them.
    """
    dense = _dense(structure, samples)
    layers = [x for x in structure.layers if x.taps]
    shares = [_per_layer(layers, sample) for sample in samples]
    fitted = [_fit_layer(x, samples, shares, dense, granule) for x in layers]
    groups = tuple(g.name for g in structure.groups)
    constant = sum(constant for _, constant in fitted)
    known = CostModel(
        metric="latency", layers=tuple(c for c, _ in fitted), groups=groups, constant=constant, granule=granule
    )
    model = _with_rest(known, samples)
    return _scaled(model, dense.total_ms / model(dense.counts))


def variant_counts(structure: Structure, granule: int, num: int, seed: int) -> tuple[Counts, ...]:
    """Kept units of ``num`` variants to measure: aligned to the granule, from narrow to wide, otherwise random.

    Variant k keeps about a share (k + 1) / (num + 1) of every group, times a random factor of 0.5 to 1.5 per group.
    """
    generator = random.Random(seed)  # noqa: S311
    return tuple(
        {
            group.name: _aligned(group.channels, granule, (k + 1) / (num + 1) * generator.uniform(0.5, 1.5))
            for group in structure.groups
        }
        for k in range(num)
    )


def _aligned(channels: int, granule: int, share: float) -> int:
    """The nearest multiple of the granule to a share of the channels; all of them where none fits."""
    steps = max(1, round(share * channels / granule))
    return min(channels, steps * granule)


def _dense(structure: Structure, samples: Sequence[Sample]) -> Sample:
    found = [sample for sample in samples if sample.counts == structure.dense_counts]
    if len(samples) < MIN_SAMPLES or not found:
        message = (
            f"A latency table needs the dense network and {MIN_SAMPLES - 1} variants; {len(samples)} were measured."
        )
        raise MeasurementError(message)
    return found[0]


def _per_layer(layers: Sequence[Layer], sample: Sample) -> Mapping[str, float]:
    """Layer -> ms. Without a profile, the whole time is shared out by multiply-accumulates."""
    if sample.per_layer_ms is not None:
        return sample.per_layer_ms
    macs = {x.name: x.positions * x.taps * x.inputs.at(sample.counts) * x.outputs.at(sample.counts) for x in layers}
    return {name: sample.total_ms * value / sum(macs.values()) for name, value in macs.items()}


def _fit_layer(
    layer: Layer, samples: Sequence[Sample], shares: Sequence[Mapping[str, float]], dense: Sample, granule: int
) -> tuple[LayerCost, float]:
    """A layer's cost and its constant ms: non-negative least squares, with the prior as weak rows."""
    measured = [(s.counts, share[layer.name]) for s, share in zip(samples, shares, strict=True) if layer.name in share]
    if not measured:
        return LayerCost(layer=layer, product=0.0), 0.0
    inputs, outputs = _widths(layer, dense.counts, granule)
    scale = numpy.array([inputs * outputs, outputs, 1.0])
    widths = [_widths(layer, counts, granule) for counts, _ in measured]
    features = numpy.array([[i * o, o, 1.0] for i, o in widths]) / scale
    times = numpy.array([ms for _, ms in measured])
    largest = max(float(times.max()), 1e-9)
    weights = 1 / numpy.maximum(times, FLOOR * largest)
    rows = numpy.vstack([features * weights[:, None], PRIOR_WEIGHT * numpy.eye(3) / largest])
    values = numpy.concatenate([times * weights, [PRIOR_WEIGHT, 0.0, 0.0]])
    product, linear, constant = nnls(rows, values)[0] / scale
    return LayerCost(layer=layer, product=float(product), linear=float(linear)), float(constant)


def _with_rest(model: CostModel, samples: Sequence[Sample]) -> CostModel:
    """Add what no layer explains: a constant, and a time per output element."""
    layers = [c.layer for c in model.layers]
    elements = [sum(x.positions * _widths(x, s.counts, model.granule)[1] for x in layers) for s in samples]
    weights = numpy.array([1 / s.total_ms for s in samples])
    rest = numpy.array([s.total_ms - model(s.counts) for s in samples])
    scale = numpy.array([1.0, max(elements)])
    rows = numpy.array([[1.0, e] for e in elements]) / scale * weights[:, None]
    constant, per_element = nnls(rows, rest * weights)[0] / scale
    costs = tuple(replace(c, linear=c.linear + float(per_element) * c.layer.positions) for c in model.layers)
    return replace(model, layers=costs, constant=model.constant + float(constant))


def _widths(layer: Layer, counts: Counts, granule: int) -> tuple[int, int]:
    """The layer's widths on the staircase."""
    return tuple(ceil(w.at(counts) / granule) * granule for w in (layer.inputs, layer.outputs))  # type: ignore[return-value]


def _scaled(model: CostModel, factor: float) -> CostModel:
    """The same model with every time multiplied."""
    layers = tuple(replace(c, product=c.product * factor, linear=c.linear * factor) for c in model.layers)
    return replace(model, layers=layers, constant=model.constant * factor)
