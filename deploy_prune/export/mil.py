"""What is inside a Core ML package, compared with the network it was made from; works where Core ML can't run.

coremltools reads the package's program (in its language MIL) and works out every type anew, which is its validation.
Then each layer's weights and output shape are set beside the network's, batch norm folded into the convolution before
it as coremltools does, and the whole program is computed with torch. MIL's operators:
apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deploy_prune.errors import ExportError, ParityError
from deploy_prune.export.artifact import eval_mode, flatten
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.mil_operators import OPERATORS
from deploy_prune.types import Artifact

WEIGHT_TOLERANCE: Final = {"fp32": 1e-5, "fp16": 1e-3, "int8": 5e-3}
"""Largest difference of a weight over the largest weight of its output channel. Rounding to half is off by at most
2^-11 (4.9e-4) of the value; to 8 bits, by half a step of 1/127 (3.9e-3) of the channel's largest, besides two such
roundings (of the weight and of the scale)."""
WEIGHT_FLOOR: Final = {"fp32": 0.0, "fp16": 6e-8, "int8": 8e-6}
"""What a weight may be off by besides: near 0, half precision has steps of 6e-8 (coremltools rounds to a whole one
rather than to 0), and a scale of 8-bit weights counts 127 times."""
OUTPUT_TOLERANCE: Final = {"fp32": 1e-4, "fp16": 5e-2, "int8": 0.5}
"""Largest relative difference of an output: only fp32's is tight. In the others each layer is held to its own
tolerance, and the outputs show wrong connections, which are off by about 1."""
_aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How near a package is to its network: ``layers`` compared, and the largest differences, as the tolerances are."""

    layers: int
    weight: float
    output: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weights:
    """One layer: its kind, weight [out, ...], bias [out] (zeros if it has none) and its output's shape."""

    kind: str
    name: str
    weight: Tensor
    bias: Tensor
    shape: tuple[int, ...]


def compare(network: nn.Module, artifact: Artifact, inputs: Given | None = None) -> Comparison:
    """Compare a package with the network, in eval mode.

    Args:
        network: the network it was made from.
        artifact: the package.
        inputs: as the package takes them; None: random ones.

    Raises:
        ParityError: another number of layers, another shape, a weight, a bias or an output that is off.
        ExportError: the package can't be read, or has an operator that can't be computed here.
    """
    function = _load(artifact)
    if inputs is None:
        inputs = torch.randn(artifact.input_shape, generator=torch.Generator().manual_seed(0))
    given = several(inputs)
    with eval_mode(network), torch.no_grad():
        program = torch.export.export(network, given)
        expected, found = _of_network(program), _of_package(function)
        weight = _compare_layers(expected, found, artifact)
        output = _compare_outputs(flatten(network(*given)), evaluate(function, *given), artifact)
    return Comparison(layers=len(expected), weight=weight, output=output)


def _load(artifact: Artifact) -> Any:
    """The package's main function."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        from coremltools.converters.mil.frontend.milproto import load
        from coremltools.models import MLModel

        model = MLModel(str(artifact.path), skip_model_load=True)
        spec = model.get_spec()
        program = load.load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    except Exception as error:  # coremltools' errors have no common base but Exception
        message = f"coremltools can't read {artifact.path}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise ExportError(message) from error
    return program.functions["main"]


def _of_network(program: torch.export.ExportedProgram) -> list[_Weights]:
    """The network's layers in order of execution; batch norm is folded into a convolution that only it reads."""
    constants, found = _constants(program), []
    for node in program.graph.nodes:
        kind = _KINDS.get(node.target)
        position = 2 if kind == "layer_norm" else 1
        given = [constants.get(argument) if isinstance(argument, fx.Node) else None for argument in node.args]
        if kind is None or len(given) <= position or (weight := given[position]) is None:
            continue
        bias = given[position + 1] if len(given) > position + 1 else None
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        if kind == "conv":
            weight, bias = _folded(node, weight, bias, constants)
        shape, name = tuple(node.meta["val"].shape), _name(program, node.args[position]).removesuffix(".weight")
        found.append(_Weights(kind=kind, name=name, weight=weight, bias=bias, shape=shape))
    return found


def _constants(program: torch.export.ExportedProgram) -> dict[fx.Node, Tensor]:
    """The parameter, buffer or constant behind each of the graph's placeholders."""
    tensors = {**program.state_dict, **program.constants}
    nodes = {node: tensors.get(_name(program, node)) for node in program.graph.nodes if node.op == "placeholder"}
    return {node: value.detach() for node, value in nodes.items() if isinstance(value, Tensor)}


def _name(program: torch.export.ExportedProgram, node: Any) -> str:
    """The state-dict name behind a placeholder."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names |= signature.inputs_to_lifted_tensor_constants
    return str(names.get(node.name, ""))


def _folded(conv: fx.Node, weight: Tensor, bias: Tensor, constants: Mapping[fx.Node, Tensor]) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias with the batch norm after it taken in (arXiv:1502.03167)."""
    node = next(iter(conv.users))
    if len(conv.users) > 1 or node.target is not _aten.batch_norm.default:
        return weight, bias
    given: list[Any] = [constants.get(a) if isinstance(a, fx.Node) else a for a in node.args]
    if given[3] is None or given[4] is None:
        return weight, bias
    return fuse_conv_bn_weights(weight, bias, given[3], given[4], given[7], given[1], given[2])


_KINDS: Final[dict[Any, str]] = {
    _aten.conv1d.default: "conv",
    _aten.conv1d.padding: "conv",
    _aten.conv3d.default: "conv",
    _aten.conv2d.default: "conv",
    _aten.conv2d.padding: "conv",
    _aten.linear.default: "linear",
    _aten.layer_norm.default: "layer_norm",
}


def _of_package(function: Any) -> list[_Weights]:
    """The package's layers in order of execution, quantised weights brought back."""
    found = []
    for op in function.operations:
        name = {"conv": "weight", "linear": "weight", "layer_norm": "gamma"}.get(op.op_type)
        weight = _constant(op.inputs.get(name)) if name else None
        if weight is None:
            continue
        bias = _constant(op.inputs.get("beta" if name == "gamma" else "bias"))
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        shape = tuple(op.outputs[0].shape)
        found.append(_Weights(kind=op.op_type, name=op.name, weight=weight, bias=bias, shape=shape))
    return found


def _compare_layers(expected: Sequence[_Weights], found: Sequence[_Weights], artifact: Artifact) -> float:
    """The largest difference of a weight."""
    kinds = [[layer.kind for layer in side] for side in (expected, found)]
    if kinds[0] != kinds[1]:
        message = f"{artifact.path} has {len(found)} layers ({_counted(kinds[1])}), the network {len(expected)} "
        raise ParityError(message + f"({_counted(kinds[0])}).")
    largest, tolerance = 0.0, WEIGHT_TOLERANCE[artifact.precision]
    for a, b in zip(expected, found, strict=True):
        sizes = [(list(side.weight.shape), list(side.shape)) for side in (a, b)]
        if sizes[0] != sizes[1]:
            message = f"{artifact.path}: the layer {a.name} has weights {sizes[1][0]} and gives {sizes[1][1]}, "
            raise ParityError(message + f"in the network {sizes[0][0]} and {sizes[0][1]}.")
        what, worst = _worst(a, b, WEIGHT_FLOOR[artifact.precision])
        if not worst <= tolerance:
            message = f"{artifact.path}: the {what} of {a.name} is off by {worst:.2g} relative to the network's "
            raise ParityError(message + f"(allowed: {tolerance:g}).")
        largest = max(largest, worst)
    return largest


def _compare_outputs(expected: Sequence[Tensor], found: Sequence[Tensor], artifact: Artifact) -> float:
    if [a.shape for a in expected] != [b.shape for b in found]:
        message = f"{artifact.path} has outputs {[list(b.shape) for b in found]}, "
        raise ParityError(message + f"the network {[list(a.shape) for a in expected]}.")
    largest = max(_relative(a, b) for a, b in zip(expected, found, strict=True))
    tolerance = OUTPUT_TOLERANCE[artifact.precision]
    if not largest <= tolerance:
        message = f"{artifact.path}: its program's outputs differ from the network's by {largest:.2g} relative "
        raise ParityError(message + f"(allowed: {tolerance:g}).")
    return largest


def _worst(a: _Weights, b: _Weights, floor: float) -> tuple[str, float]:
    """Which of weight and bias is further off, and by how much."""
    weight, bias = (
        _per_channel(a.weight, b.weight, floor, whole=False),
        _per_channel(a.bias, b.bias, floor, whole=True),
    )
    return ("weight", weight) if weight >= bias else ("bias", bias)


def _per_channel(a: Tensor, b: Tensor, floor: float, *, whole: bool) -> float:
    """Max of (|a - b| - floor) / max|a|, the latter over the output channel, or over all if ``whole`` or a is 1-d."""
    a, b = (t.double().reshape(1, -1) if whole or t.dim() < 2 else t.double().flatten(1) for t in (a, b))
    excess = ((a - b).abs().amax(1) - floor).clamp_min(0)
    return float((excess / a.abs().amax(1).clamp_min(1e-12)).max())


def _relative(a: Tensor, b: Tensor) -> float:
    difference, scale = float((a.double() - b.double()).abs().max()), float(a.double().abs().max())
    return difference / max(scale, 1e-6)


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def _constant(var: Any) -> Tensor | None:
    """A variable's value if it doesn't depend on the input, floats as float32."""
    if var is None:
        return None
    value = var.val
    if value is None and var.op is not None and var.op.op_type.startswith("constexpr"):
        value = var.op.materialized_val_inference()
    if value is None:
        return None
    found = torch.as_tensor(value)
    return found.float() if found.is_floating_point() else found


def evaluate(function: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    """A MIL function's outputs for its inputs, computed by torch in float32 whatever precision the program asks for.

    Raises:
        ExportError: an operator that is not in the table here.
    """
    values: dict[str, Any] = dict(zip(function.inputs, inputs, strict=True))
    for op in function.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr"):
            continue
        if op.op_type not in OPERATORS:
            message = f"The package's operator {op.op_type} can't be computed here, so its outputs can't be checked."
            raise ExportError(message)
        arguments = {name: _value(var, values) for name, var in _inputs(op).items()}
        result = OPERATORS[op.op_type](arguments)
        for var, one in zip(op.outputs, result if isinstance(result, tuple) else (result,), strict=True):
            values[var.name] = one
    return tuple(values[var.name] for var in function.outputs)


def _inputs(op: Any) -> Mapping[str, Any]:
    """An operator's arguments, those left out at their defaults."""
    return {**dict(op.default_inputs().items()), **op.inputs}


def _value(var: Any, values: Mapping[str, Any]) -> Any:
    """What an argument is: a tensor of floats, or plain numbers, lists of them, strings."""
    if isinstance(var, list | tuple):
        return [_value(one, values) for one in var]
    if not hasattr(var, "op"):
        return var
    if var.name in values:
        return values[var.name]
    if isinstance(var.val, str):
        return var.val
    found = _constant(var)
    assert found is not None
    return found if found.is_floating_point() else found.tolist()
