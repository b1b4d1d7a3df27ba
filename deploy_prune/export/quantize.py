"""ONNX files in 8-bit integers and in half precision, made from the float32 file.

int8 is static quantisation in QDQ form: every tensor x that is quantised is replaced by

    s * (clamp(round(x / s) + z, lowest, highest) - z),        s > 0, z an 8-bit integer

weights with z = 0, from -127 to 127 and an s per output channel; activations with one s and z per tensor, from their
smallest and largest value over the calibration inputs (Jacob et al., arXiv 1712.05877). Biases are 32-bit integers with
s = s_weight * s_x.

Activations are unsigned (0 to 255) for CPUs: x86's VNNI multiplies unsigned by signed bytes, ONNX Runtime computes
signed ones there by changing them to unsigned first, and where a tensor has two readers (every residual block) it
doesn't, and goes back to float32. A range that begins at 0 also takes in the ReLU before it. TensorRT takes only signed
activations with z = 0: for it there is ``symmetric``, slower on a CPU than float32 often is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final

import numpy
import onnx

from deploy_prune.errors import ExportError
from deploy_prune.export.inputs import Given, batches, count, float32, several
from deploy_prune.export.onnx_files import apart, is_large
from deploy_prune.system.guard import scratch

PRECISIONS: Final = ("fp32", "fp16", "int8")
MULTIPLIED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What is computed on integers."""

PASSED_ON: Final = (
    "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape", "Transpose", "Squeeze",
    "Unsqueeze", "Flatten",
)  # fmt: skip
"""What is computed on integers where its result goes to a convolution or a product with weights, ..."""

BETWEEN: Final = (
    "BatchNormalization", "DepthToSpace", "Gather", "Pad", "ReduceMean", "Resize", "Slice", "SpaceToDepth", "Split",
)  # fmt: skip
"""... be it by way of these."""


def in_precision(
    model: onnx.ModelProto, precision: str, calibration: Given | None, *, symmetric: bool = False
) -> onnx.ModelProto:
    """The float32 model in fp32, fp16 or int8; ``calibration`` and ``symmetric`` as for ``int8``.

    Raises:
        ExportError: int8 without calibration inputs.
    """
    if precision == "int8":
        return int8(model, calibration, symmetric=symmetric)
    return fp16(model) if precision == "fp16" else model


def int8(model: onnx.ModelProto, calibration: Given | None, *, symmetric: bool = False) -> onnx.ModelProto:
    """The model with 8-bit weights and activations; its inputs and outputs stay float32.

    Args:
        model: float32, batch norms folded into the convolutions. A large one's weights are taken out of it.
        calibration: float32 [N, C, H, W], real inputs; those that don't fill a batch of the file are left out.
        symmetric: signed activations with z = 0, as TensorRT wants them.

    Raises:
        ExportError: there are no calibration inputs, or fewer than a batch.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    batches, left, large = list(_batches(model, calibration)), _left_in_float32(model, symmetric), is_large(model)
    with ExitStack() as stack:
        path = stack.enter_context(scratch()) / "int8.onnx"
        quantize_static(
            stack.enter_context(apart(model)) if large else onnx.shape_inference.infer_shapes(model),
            path,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*MULTIPLIED, *PASSED_ON],
            nodes_to_exclude=left,
            use_external_data_format=large,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        made: onnx.ModelProto = onnx.load(path)
    _float_outputs(made.graph)
    return made


def _float_outputs(graph: onnx.GraphProto) -> None:
    """Take away, in place, the rounding of outputs that a matrix product gives: it can give float32 at no cost."""
    maker = {name: node for node in graph.node for name in node.output}
    for entry in graph.output:
        back = maker.get(entry.name)  # none makes an output that is a constant
        there = maker.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        product = maker.get(there.input[0]) if there is not None and there.op_type == "QuantizeLinear" else None
        readers = [n for n in graph.node if there is not None and set(n.input) & {there.input[0], there.output[0]}]
        if product is None or product.op_type not in ("Gemm", "MatMul") or readers != [there, back]:
            continue
        graph.node.remove(there)
        graph.node.remove(back)
        product.output[0] = entry.name


def _left_in_float32(model: onnx.ModelProto, symmetric: bool) -> list[str]:
    """Names of the nodes that 8 bits would cost accuracy and save no time.

    Products of two activations, as attention has them: a small part of the time. Transposed convolutions, which ONNX
    Runtime computes in float32 anyway; TensorRT (``symmetric``) has them in 8 bits, but no axis of the weights of
    grouped ones has the output channels, so there they can't have their scales. What passes on only what those gave.
    And all from which no integers are multiplied, a transformer's sums for one: a layer norm reads them in float32, and
    their largest values are far from the rest.
    """
    left = _products(model) | _transposed(model, above_groups=1 if symmetric else 0)
    multiplied: set[str] = set()  # Tensors, also through what passes them on.
    for node in reversed(model.graph.node):  # A reader before what it reads.
        multiplies = node.op_type in MULTIPLIED and node.name not in left
        passes = node.op_type in PASSED_ON + BETWEEN and not multiplied.isdisjoint(node.output)
        if multiplies or passes:
            multiplied.update(node.input)
    in_float: set[str] = set()  # Tensors
    fixed = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        read = {*node.input} - fixed
        passed = node.op_type in PASSED_ON + BETWEEN and bool(read) and read <= in_float
        if passed or node.name in left:
            in_float.update(node.output)
        if node.op_type in PASSED_ON and (passed or multiplied.isdisjoint(node.output)):
            left.add(node.name)
    return sorted(left)


def _products(model: onnx.ModelProto) -> set[str]:
    """Names of the matrix products of two activations: neither operand is made of weights."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:  # in an order in which every input is there
        if all(name in fixed for name in node.input):
            fixed.update(node.output)
    return {n.name for n in model.graph.node if n.op_type == "MatMul" and not fixed & {*n.input}}


def _transposed(model: onnx.ModelProto, above_groups: int) -> set[str]:
    """Names of the transposed convolutions with more groups than that."""
    nodes = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    groups = {n.name: next((int(a.i) for a in n.attribute if a.name == "group"), 1) for n in nodes}
    return {name for name, number in groups.items() if number > above_groups}


def fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place, with half-precision weights and arithmetic; its inputs and outputs stay float32.

    Weights below 2**-24 in magnitude become that, those over 65504 that: half precision's ends.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with apart(model) if is_large(model) else nullcontext(model) as given:
        made: onnx.ModelProto = convert_float_to_float16(
            str(given) if isinstance(given, Path) else given, keep_io_types=True
        )
    made.graph.ClearField("value_info")  # the converter leaves types that were true before; readers infer them anew
    _sort(made.graph)
    return made


def _sort(graph: onnx.GraphProto) -> None:
    """Put the nodes in an order in which every input is there when it is read (the converter appends its casts)."""
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {i: {maker[name] for name in _read(node) if name in maker} for i, node in enumerate(nodes)}
    ordered = [nodes[i] for i in TopologicalSorter(needs).static_order()]
    graph.ClearField("node")
    graph.node.extend(ordered)


def _read(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its subgraphs included."""
    inner = {name for a in node.attribute if a.HasField("g") for n in a.g.node for name in _read(n)}
    return {*node.input} | inner


def _batches(model: onnx.ModelProto, calibration: Given | None) -> Iterator[dict[str, Any]]:
    """What a calibration run is fed, one after the other.

    Raises:
        ExportError: there isn't one.
    """
    sizes = [[entry.type.tensor_type.shape.dim[0].dim_value or 1] for entry in model.graph.input]
    inputs = () if calibration is None else several(calibration)
    if calibration is None or count(inputs, sizes) == 0:
        message = f"int8 needs calibration inputs, real ones, at least {sizes[0][0]}; there are "
        raise ExportError(message + ("none." if calibration is None else f"{len(inputs[0])}."))
    for batch in batches(inputs, sizes):
        arrays = [x.detach().cpu().numpy() for x in float32(batch)]
        yield {e.name: numpy.ascontiguousarray(x) for e, x in zip(model.graph.input, arrays, strict=True)}


class _Reader:
    """Calibration inputs, as ONNX Runtime asks for them."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next, or None."""
        return next(self._left, None)
