"""Rewrite a quantised ONNX file into the form that every TensorRT from 8.2 on reads.

TensorRT wants all zero points to be 0 (NVIDIA/TensorRT#2774), int8 alone, no quantised biases
(onnx/onnx-tensorrt#850), and, in its older versions, no int8 weights in the file: weights are float32 and go through
QuantizeLinear first (microsoft/onnxruntime#11535).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploy_prune.errors import ExportError

Array = NDArray[Any]
MAX_INT8: Final = 127
"""Of a symmetric range: TensorRT's quantised values are -128 ... 127, scales are max|x| / 127 (docs.nvidia.com,
TensorRT, "Working with Quantized Types")."""
_RANGES: Final = {numpy.dtype("int8"): (-128, 127), numpy.dtype("uint8"): (0, 255)}
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def make_symmetric(model: onnx.ModelProto) -> None:
    """Rewrite the model in place; a model that is already as TensorRT wants it keeps its numbers.

    - Activations with a zero point get a symmetric scale that covers the same range: 127 steps from 0 to its farther
      end. A range that lies on one side of 0 so loses one of its 8 bits, which TensorRT can't spare it. What the range
      cut off is cut off by a ReLU or Clip, since quantisers leave those out of the file where the range does the same.
    - Weights become float32 followed by QuantizeLinear and DequantizeLinear: their int8 values stay the same, unless
      they had zero points.
    - Biases, quantised in int32, become the float32 numbers that they stand for.

    Raises:
        ExportError: the file is quantised in types other than int8, uint8 and, for biases, int32.
    """
    _Rewrite(model.graph).all()
    onnx.checker.check_model(model, full_check=True)


class _Rewrite:
    """One graph's rewrite: its constants by name, and the nodes that it will have."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {entry.name: entry for entry in graph.initializer}
        self.added: dict[str, onnx.TensorProto] = {}

    def all(self) -> None:
        nodes = [made for node in self.graph.node for made in self.node(node)]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | {entry.name for entry in self.graph.output}
        kept = [entry for entry in (*self.graph.initializer, *self.added.values()) if entry.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def node(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """What takes the node's place."""
        if node.op_type not in (_QUANTIZE, _DEQUANTIZE):
            yield node
        elif node.domain not in ("", "ai.onnx"):
            message = f"TensorRT can't read {node.domain}'s {node.op_type}: quantise in int8."
            raise ExportError(message)
        elif node.op_type == _DEQUANTIZE and node.input[0] in self.constants:
            yield from self.constant(node)
        else:
            scale, zero = self.value(node.input[1]), self.zero(node)
            if node.op_type == _QUANTIZE:
                yield from self.clip(node, scale, zero)
            self.set_scale(node, _symmetric(scale, zero), prefix="_".join(node.input[1:]))
            yield node

    def clip(self, node: onnx.NodeProto, scale: Array, zero: Array) -> Iterator[onnx.NodeProto]:
        """What the zero point did besides: a range that ends at 0 is a ReLU, and quantisers leave that node out."""
        if _is_symmetric(zero):
            return
        if scale.size != 1:
            message = f"TensorRT quantises activations with one scale each, and {node.input[0]} has {scale.size}."
            raise ExportError(message)
        low, high = (end.astype("float32").reshape(()) for end in _ends(scale, zero))
        if abs(low + high) <= 1.01 * scale:
            return
        names = [node.input[0], f"{node.output[0]}_lowest", f"{node.output[0]}_highest"]
        made = f"{node.output[0]}_clipped"
        if low == 0:
            yield onnx.helper.make_node("Relu", names[:1], [made])
        else:
            yield onnx.helper.make_node("Clip", names, [made])
            self.add(names[1], low)
            self.add(names[2], high)
        node.input[0] = made

    def constant(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A weight or bias that is stored quantised."""
        quantised, scale = self.value(node.input[0]), self.value(node.input[1])
        zero = self.zero(node)
        axis = _axis(node)
        real = (quantised.astype("float64") - _along(zero, quantised, axis)) * _along(scale, quantised, axis)
        if quantised.dtype == numpy.int32:
            self.add(node.output[0], real.astype("float32"))
            return
        if not _is_symmetric(zero):
            scale = _scale_of(real, scale, axis)
        quantize = onnx.helper.make_node(
            _QUANTIZE, [f"{node.output[0]}_float", "", ""], [f"{node.output[0]}_int8"], axis=axis
        )
        self.add(quantize.input[0], real.astype("float32"))
        node.input[0] = quantize.output[0]
        for one in (quantize, node):
            self.set_scale(one, scale, prefix=node.output[0])
        yield from (quantize, node)

    def set_scale(self, node: onnx.NodeProto, scale: Array, prefix: str) -> None:
        """Give the node this scale and the zero point 0, both as constants named after ``prefix``."""
        names = (f"{prefix}_symmetric_scale", f"{prefix}_symmetric_zero")
        self.add(names[0], scale.astype("float32"))
        self.add(names[1], numpy.zeros(scale.shape, "int8"))
        for index, name in enumerate(names, start=1):
            if len(node.input) > index:
                node.input[index] = name
            else:
                node.input.append(name)

    def add(self, name: str, value: Array) -> None:
        self.added[name] = numpy_helper.from_array(value, name)

    def value(self, name: str) -> Array:
        """A constant's value."""
        if name not in self.constants:
            message = f"TensorRT needs quantisation parameters to be constants; {name} is computed."
            raise ExportError(message)
        return numpy.asarray(numpy_helper.to_array(self.constants[name]))

    def zero(self, node: onnx.NodeProto) -> Array:
        """The zero point; without one, it is 0 of the type of a stored tensor, else uint8, as ONNX has it."""
        stored = self.value(node.input[0]).dtype if node.input[0] in self.constants else numpy.dtype("uint8")
        zero = self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else numpy.zeros((), stored)
        if zero.dtype not in _RANGES and stored != numpy.int32:
            message = f"TensorRT reads int8 only, and {node.name or node.op_type} is quantised in {zero.dtype}."
            raise ExportError(message)
        return zero


def _symmetric(scale: Array, zero: Array) -> Array:
    """The scale [or scales] at zero point 0 that covers what scale and zero point did; the same if it was so before."""
    if _is_symmetric(zero):
        return scale
    low, high = _ends(scale, zero)
    return numpy.asarray(numpy.maximum(abs(low), abs(high)) / MAX_INT8)


def _is_symmetric(zero: Array) -> bool:
    return zero.dtype == numpy.int8 and not zero.any()


def _ends(scale: Array, zero: Array) -> tuple[Array, Array]:
    """The lowest and highest number that can be represented."""
    low, high = ((end - zero.astype("float64")) * scale for end in _RANGES[zero.dtype])
    return numpy.asarray(low), numpy.asarray(high)


def _scale_of(real: Array, like: Array, axis: int) -> Array:
    """max|x| / 127 of the whole tensor, or along ``axis`` if ``like`` has a scale for each; 1 where all is 0."""
    others = None if like.ndim == 0 else tuple(other for other in range(real.ndim) if other != axis % real.ndim)
    largest = numpy.abs(real).max(axis=others) / MAX_INT8
    return numpy.where(largest > 0, largest, 1.0)


def _along(value: Array, tensor: Array, axis: int) -> Array:
    """A scalar as it is; a vector [C] shaped to multiply a tensor along its axis of length C."""
    if value.ndim == 0 or tensor.ndim == 0:
        return value.astype("float64")
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return value.astype("float64").reshape(shape)


def _axis(node: onnx.NodeProto) -> int:
    """The node's axis; ONNX's default is 1."""
    for attribute in node.attribute:
        if attribute.name == "block_size" and attribute.i:
            message = "TensorRT can't read weights that are quantised in blocks in int8."
            raise ExportError(message)
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)
