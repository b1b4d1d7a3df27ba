"""Why a slim network is slower than its MACs suggest: the layers that lost time, and the reason for each.

Read from the dense and the slim ONNX file and the runtime's profile of both. Had a layer's time followed its MACs, it
would take m = dense ms * slim MACs / dense MACs; what it takes beyond that is lost. The reason is the first of these
that holds:

    granularity     widths are rounded up to the device's granularity, and these MACs explain at least half of what is
                    lost; or a width is no multiple of it, and the layer takes longer than the dense one with more
                    channels (runtimes have slower kernels for such widths)
    memory-bound    the slim layer has so little arithmetic per element that moving these takes longer (``BALANCE``;
                    the roofline model, CACM 52(4), 2009), and the elements explain at least half of what is lost
    overhead        neither: starting the operator, and kernels that need many channels to be fast
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import onnx

from deploy_prune.cost import Lost, Reason
from deploy_prune.latency.nodes import by_weight
from deploy_prune.latency.ops import stair
from deploy_prune.types import Artifact

MOST: Final = 5
LEAST: Final = 0.01
"""Layers that lost less than this share of the slim network's time are not told of."""
EXPLAINS: Final = 0.5
SLOWER: Final = 1.1
"""A layer got slower if it takes more than this many times the dense layer's ms."""
BALANCE: Final = 20
"""MACs per element below which traffic takes longer than arithmetic: 25 on the core of x86-avx2, 9 on those of pixel-6
and pixel-8 (edge_targets), as gmacs_per_s / (gbytes_per_s / 4). A rule of thumb on any other device."""
BETWEEN: Final = "(between the layers)"
"""All nodes without a weight: poolings, sums, reorders."""


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """A layer of one file. ``elements``: read and written, weights included."""

    shape: tuple[int, ...]
    positions: int
    elements: int
    ms: float

    def macs(self, granule: int) -> int:
        """With both widths rounded up; a depthwise layer's one input stays one."""
        outputs, inputs, *kernel = self.shape
        return self.positions * stair(outputs, granule) * stair(inputs, granule) * prod(kernel)

    def is_off(self, granule: int) -> bool:
        """Whether a width is no multiple of the granule."""
        return any(stair(width, granule) != width for width in self.shape[:2])


Profile = tuple[Mapping[str, float], float]
"""ms of each node, and of the whole network."""


def lost(artifacts: tuple[Artifact, Artifact], profiles: tuple[Profile, Profile], granule: int) -> tuple[Lost, ...]:
    """At most five layers that lost the most time, the worst first.

    Args:
        artifacts: (dense, slim), ONNX.
        profiles: the time of their nodes, and of each network in one run, in ms.
        granule: widths are rounded up to multiples of it.
    """
    dense, slim = (_costs(artifact, *profile) for artifact, profile in zip(artifacts, profiles, strict=True))
    total_ms = profiles[1][1]
    found = [_lost(name, dense[name], slim[name], granule, total_ms) for name in slim if name in dense]
    shares = [sum(cost.macs(1) for cost in costs.values()) for costs in (dense, slim)]
    rests = [ms - sum(c.ms for c in costs.values()) for costs, (_, ms) in zip((dense, slim), profiles, strict=True)]
    if shares[0]:
        share = shares[1] / shares[0]
        beyond = rests[1] - rests[0] * share
        found.append(
            Lost(layer=BETWEEN, dense_ms=rests[0], slim_ms=rests[1], macs_share=share, share=beyond / total_ms,
                 reason="memory-bound")
        )  # fmt: skip
    return tuple(sorted((x for x in found if x.share >= LEAST), key=lambda x: -x.share)[:MOST])


def _lost(name: str, dense: _Cost, slim: _Cost, granule: int, total_ms: float) -> Lost:
    macs_share = slim.macs(1) / dense.macs(1)
    gap = slim.ms - dense.ms * macs_share
    rounded = dense.ms * (slim.macs(granule) / dense.macs(granule) - macs_share)
    moved = dense.ms * (slim.elements / dense.elements - macs_share)
    is_bound = slim.macs(1) < BALANCE * slim.elements
    reason: Reason = "overhead"
    if rounded >= EXPLAINS * gap or (slim.is_off(granule) and slim.ms > SLOWER * dense.ms):
        reason = "granularity"
    elif is_bound and moved >= EXPLAINS * gap:
        reason = "memory-bound"
    return Lost(
        layer=name, dense_ms=dense.ms, slim_ms=slim.ms, macs_share=macs_share, share=gap / total_ms, reason=reason
    )


def _costs(artifact: Artifact, node_ms: Mapping[str, float], total_ms: float) -> dict[str, _Cost]:
    """Layer -> its cost: the weight's name without ".weight"; behind that of a second use stands a number."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.path)).graph
    shapes = {entry.name: tuple(entry.dims) for entry in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    costs: dict[str, _Cost] = {}
    for weight, node, ms in by_weight(graph, node_ms, total_ms):
        read, held, written = (shapes[name] for name in (*node.input[:2], node.output[0]))
        channels = written[1 if "Conv" in node.op_type else -1]
        name = weight.removesuffix(".weight")
        uses = sum(known.partition(" #")[0] == name for known in costs)
        costs[f"{name} #{uses + 1}" if uses else name] = _Cost(
            shape=held, positions=prod(written) // channels, elements=prod(read) + prod(held) + prod(written), ms=ms
        )
    return costs
