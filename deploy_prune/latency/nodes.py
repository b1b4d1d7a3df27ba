"""Which node of the runtime's profile belongs to which layer of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import onnx

from deploy_prune.types import Artifact, Layer, Structure

_WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
_ACTIVATIONS: Final = frozenset(
    {"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh", "Elu", "Gelu", "BatchNormalization"}
)
_DECORATION: Final = re.compile(r"^fused |_nchwc$|_token_\d+$")
"""What ONNX Runtime's optimiser adds to a node's or value's name when it fuses or blocks it."""


def by_layer(
    artifact: Artifact, structure: Structure, node_ms: Mapping[str, float], total_ms: float
) -> dict[str, float]:
    """Layer name -> ms, as ``by_weight`` finds them."""
    waiting: dict[str, list[Layer]] = {}
    for layer in structure.layers:
        if layer.taps:
            waiting.setdefault(layer.tensor, []).append(layer)
    graph = onnx.load(artifact.path, load_external_data=False).graph
    found = [(name, ms) for name, _, ms in by_weight(graph, node_ms, total_ms)]
    return {waiting[name].pop(0).name: ms for name, ms in found if waiting.get(name)}


def by_weight(
    graph: onnx.GraphProto, node_ms: Mapping[str, float], total_ms: float
) -> Iterator[tuple[str, onnx.NodeProto, float]]:
    """(weight's name, node, ms) of every layer of a file, such that all nodes together take ``total_ms``.

    The profiler's own cost, the same for every node, is taken off first. A layer is found by its weight's name: ONNX
    Runtime names a fused convolution after its own node, its output, or the output of the activation that it took in.
    Layers whose node is not found are left out.
    """
    known = _without_profiler({_plain(name): ms for name, ms in node_ms.items()}, total_ms)
    for weight, node, names in _weighted_nodes(graph):
        hits = [name for name in names if name in known]
        if hits:
            yield weight, node, known[hits[0]]


def _without_profiler(node_ms: Mapping[str, float], total_ms: float) -> dict[str, float]:
    """Take the same time off every node (but at most nine tenths of it), then scale the sum to ``total_ms``."""
    excess = max(0.0, sum(node_ms.values()) - total_ms) / max(1, len(node_ms))
    left = {name: max(ms - excess, 0.1 * ms) for name, ms in node_ms.items()}
    scale = total_ms / max(sum(left.values()), 1e-9)
    return {name: ms * scale for name, ms in left.items()}


def _plain(name: str) -> str:
    while (shorter := _DECORATION.sub("", name)) != name:
        name = shorter
    return name


def _weighted_nodes(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto, Sequence[str]]]:
    """(weight's name, node, the names it may go by once optimised) of every layer's node, in the file's order."""
    weights = {entry.name: entry.name for entry in graph.initializer}
    for node in graph.node:  # 8-bit weights go by their float32 name
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = node.input[0].removesuffix("_quantized")
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        held = [name for name in node.input if name in weights]
        if node.op_type in _WEIGHTED and held:
            names, value = [node.name, node.output[0]], node.output[0]
            while len(after := readers.get(value, [])) == 1 and after[0].op_type in _ACTIVATIONS:
                value = after[0].output[0]
                names += [after[0].name, value]
            yield weights[held[0]], node, names
