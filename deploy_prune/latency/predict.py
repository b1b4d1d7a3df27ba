"""Latency predicted from a device's rates, for targets that are not attached.

The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009, doi 10.1145/1498765.1498785) per layer,

    t_l = max(MACs_l / rate, bytes_l / bandwidth) + overhead,

written in the closed form of ``cost.CostModel``: which side of the maximum binds is decided once, at the dense widths,
and kept. Pruning a layer moves both sides, arithmetic faster than traffic, so a layer that is cut to a small fraction
is predicted too fast: by the difference of the two sides, never below its overhead.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from deploy_prune.cost import CostModel, LayerCost
from deploy_prune.errors import TargetError
from deploy_prune.types import Layer, Roofline, Structure, Target

BYTES: Final = {"fp32": 4, "fp16": 2, "int8": 1}


def roofline(structure: Structure, target: Target) -> CostModel:
    """The predicted latency of one inference, in ms, as a function of the units kept.

    Bytes: a layer's weights are read once; its output is written once and read once by the next layer. Widths are
    rounded up to the target's granularity. Norms cost nothing, as every runtime here folds them into the layer before.

    Raises:
        TargetError: the target's file has no roofline, or no granularity to round to.
    """
    if target.roofline is None or target.granularity is None:
        message = f"The latency on {target.name} can't be predicted: its file needs 'roofline:' and a granularity."
        raise TargetError(message)
    rates = target.roofline
    layers = [x for x in structure.layers if x.taps]
    costs = tuple(_layer(x, structure, rates, target.granularity, BYTES[target.precision]) for x in layers)
    return CostModel(
        metric="latency",
        layers=costs,
        groups=tuple(g.name for g in structure.groups),
        constant=rates.network_overhead_ms + rates.layer_overhead_ms * len(layers),
        granule=target.granularity,
    )


def _layer(layer: Layer, structure: Structure, rates: Roofline, granule: int, element_bytes: int) -> LayerCost:
    """The side of the roofline that binds at the dense widths, as ms per input x output and per output channel."""
    inputs, outputs = (ceil(w.at(structure.dense_counts) / granule) * granule for w in (layer.inputs, layer.outputs))
    per_ms = element_bytes / (rates.gbytes_per_s * 1e6)
    memory_product, memory_linear = layer.taps * per_ms, 2 * layer.positions * per_ms
    macs = layer.positions * layer.taps
    if layer.kind == "depthwise":
        compute_product, compute_linear = 0.0, macs / (rates.depthwise_gmacs_per_s * 1e6)
        memory_product, memory_linear = 0.0, memory_linear + memory_product
    else:
        compute_product, compute_linear = macs / (rates.gmacs_per_s * 1e6), 0.0
    compute = compute_product * inputs * outputs + compute_linear * outputs
    memory = memory_product * inputs * outputs + memory_linear * outputs
    if compute >= memory:
        return LayerCost(layer=layer, product=compute_product, linear=compute_linear)
    return LayerCost(layer=layer, product=memory_product, linear=memory_linear)
