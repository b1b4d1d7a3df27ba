"""ExecuTorch files, lowered to the XNNPACK backend, quantized by its PT2E quantizer."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import (
    Extra,
    describe,
    eval_mode,
    export_program,
    first_line,
    flatten,
    quiet,
    require_fixed,
)
from deploy_prune.export.calls import arguments, call, value
from deploy_prune.export.inputs import Given, batches, float32, several
from deploy_prune.export.rewrite import rewritten
from deploy_prune.export.transposed import Runtime, rewrite_transposed
from deploy_prune.networks.tracing import module_path
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import atomic
from deploy_prune.types import Artifact

suffix: Final = ".pte"
precisions: Final = ("fp32", "fp16", "int8")
runtime: Final = "executorch"
extra: Final = Extra(name="executorch", modules=("executorch", "torchao"))
packages: Final = ("torch", "executorch", "torchao")
_ATEN: Final = torch.ops.aten
_SUMS: Final = frozenset({_ATEN.add.Tensor, _ATEN.add_.Tensor})
_MEANS: Final = frozenset({_ATEN.adaptive_avg_pool2d.default, _ATEN.avg_pool2d.default, _ATEN.mean.dim})
"""Stay in float: XNNPACK's quantizer gives a mean the step of what it is a mean of, many times as large as its own."""
_NORMS: Final = frozenset({_ATEN.layer_norm.default, _ATEN.group_norm.default, _ATEN.rms_norm.default})
_REARRANGED: Final = frozenset({_ATEN.dropout.default, _ATEN.permute.default, _ATEN.transpose.int, _ATEN.view.default})
"""Passes values on as they are."""
_VOLUMES: Final = frozenset({_ATEN.conv3d.default, _ATEN.conv3d.padding, _ATEN.conv_transpose3d.input})
_IMAGES: Final = 4
"""Axes of images [B, C, H, W]."""
_STEP: Final = torch.finfo(torch.float32).eps
"""The smallest step of 8 bits."""
_TRANSPOSED: Final = Runtime(has=lambda given: given.groups == 1, groups=True)
"""With groups XNNPACK's quantizer leaves transposed convolutions in float, and with a batch norm ExecuTorch fails."""


class _Wrapped(nn.Module):
    """The network with float32 input and outputs, the outputs in one tuple.

    It also gives every module's path a first part that is no number: ExecuTorch's pass that folds batch norm makes
    names of parameters from paths, and a name like "0.weight" is none.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = (x.to(self.dtype) if x.is_floating_point() else x for x in inputs)
        return tuple(y.to(torch.float32) for y in flatten(self.network(*given)))


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Lower the network, in eval mode, to one .pte file whose input and outputs are float32.

    What the XNNPACK backend does not take runs in ExecuTorch's portable kernels.

    Args:
        network: lowered as it is; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W]; fixes the file's input shape.
        path: the file; it appears under this name only when complete.
        precision: "fp32"; "fp16" (weights and arithmetic in half; the file holds convolutions' weights in float32 all
            the same, as the XNNPACK backend writes no others); "int8" (convolutions, linear layers, additions and
            products: weights per output channel, activations per tensor; the rest in float32).
        part: an open batch size is refused.
        calibration: for int8, inputs [N, C, H, W] as in training, N at least B; the activations' ranges come from them.

    Raises:
        MissingDependencyError: the extra is not installed.
        ExportError: another precision, an open batch size, no calibration for int8, or it can't be lowered.
    """
    extra.require()
    require_fixed("An ExecuTorch file", precisions, precision, part, example, calibration)
    inputs = tuple(x.detach().contiguous() for x in float32(example))
    with eval_mode(network), quiet(), torch.no_grad():
        given = rewritten(export_program(network, example, part), _REWRITES)
        _require_kernels(given.graph)
        traced = given.module(check_guards=False)
        try:
            program = _export(rewrite_transposed(traced, _TRANSPOSED), inputs, precision)
            if precision == "int8":
                assert calibration is not None
                program = _quantize(program, inputs, calibration)
            content = _lower(program)
        except Exception as error:  # the exporter's exceptions have no common base but Exception
            message = f"ExecuTorch can't lower the network in {precision}: {first_line(error)}"
            raise ExportError(message) from error
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return describe(
        path,
        format="executorch",
        precision=precision,
        input_shape=several(example)[0].shape,
        versions={package: version(package) for package in packages},
    )


def _as_clamps(node: torch.fx.Node) -> torch.fx.Node | None:
    """A PReLU of anything but images, x -> max(x, 0) + slope min(x, 0): XNNPACK's takes nothing else."""
    given = arguments(node)
    x, slope = given["self"], given["weight"]
    rank = value(x).dim()
    if rank == _IMAGES:
        return None
    if value(slope).numel() > 1:
        slope = call(node, _ATEN.view.default, slope, [-1, *[1] * (rank - 2)])
    below = call(node, _ATEN.mul.Tensor, call(node, _ATEN.clamp_max.default, x, 0), slope)
    return call(node, _ATEN.add.Tensor, call(node, _ATEN.relu.default, x), below)


_REWRITES: Final = {_ATEN.prelu.default: _as_clamps}


def _require_kernels(graph: torch.fx.Graph) -> None:
    """A file with a 3-D convolution would be written, and fail on the device."""
    for node in graph.nodes:
        if node.target in _VOLUMES:
            message = f"ExecuTorch has no 3-D convolutions, as the network's {module_path(node) or 'own'} is one."
            raise ExportError(message)


def _export(network: nn.Module, example: tuple[Tensor, ...], precision: str) -> Any:
    """The program to lower; in fp16 that of a half copy, the network itself is left alone."""
    program = _traced(_Wrapped(_plain(network), torch.float32), example)
    if precision != "fp16":
        return program
    return _traced(_Wrapped(_halved(program.module(check_guards=False)), torch.float16), example)


def _plain(network: nn.Module) -> nn.Module:
    """The network, or a copy of it, with all tensors' dimensions in memory in their own order.

    ExecuTorch's portable kernels refuse what is traced from tensors in channels-last order
    (github.com/pytorch/executorch/issues/7444).
    """
    if all(t.is_contiguous() for t in (*network.parameters(), *network.buffers())):
        return network
    network = copy.deepcopy(network)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def _traced(wrapped: nn.Module, example: tuple[Tensor, ...]) -> Any:
    wrapped.training = False
    return torch.export.export(wrapped, example)


def _halved(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The module of a program with float16 in place of float32: in its tensors and in the types that its code names."""
    module = copy.deepcopy(module).half()
    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, _half_if_float)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, _half_if_float)
    module.recompile()
    return module


def _half_if_float(value: Any) -> Any:
    return torch.float16 if value is torch.float32 else value


def _quantize(program: Any, example: tuple[Tensor, ...], calibration: Given) -> Any:
    """The program with quantized layers; calibrated in batches of the example's size."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import ComposableQuantizer, QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    each = _fine(get_symmetric_quantization_config(is_per_channel=True))
    last = _fine(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    quantizer = ComposableQuantizer([
        XNNPACKQuantizer().set_global(last).set_filter_function(_is_last_product),
        XNNPACKQuantizer().set_global(each).set_filter_function(lambda node: not _is_kept(node)),
    ])  # fmt: skip
    module = program.module(check_guards=False)
    for node in module.graph.nodes:
        if node.target in _MEANS:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)
    prepared = prepare_pt2e(module, quantizer)
    for batch in batches(float32(calibration), [x.shape for x in example]):
        prepared(*(x.detach().to(example[0].device).contiguous() for x in batch))
    return torch.export.export(convert_pt2e(prepared), example)


def _fine(config: Any) -> Any:
    """The quantizer's configuration with steps as small as the values need: it has none below 2**-12."""
    kinds = {}
    for name in ("input_activation", "output_activation", "weight"):
        if (kind := getattr(config, name)) is not None:
            made = kind.observer_or_fake_quant_ctr.p  # a functools.partial
            observer = made.func.with_args(**{**made.keywords, "eps": _STEP})
            kinds[name] = replace(kind, observer_or_fake_quant_ctr=observer)
    return replace(config, **kinds)


def _is_last_product(node: torch.fx.Node) -> bool:
    """Whether it is a matrix product that gives an output: that stays float, and its input is rounded as it runs."""
    return node.target is _ATEN.linear.default and all(_is_output(user) for user in node.users)


def _is_output(node: torch.fx.Node) -> bool:
    """Whether a node is the output, or only passes its value on to it."""
    passes = node.target in (_ATEN.to.dtype, _ATEN._to_copy.default, _ATEN._assert_tensor_metadata.default)
    return node.op == "output" or (passes and all(map(_is_output, node.users)))


def _is_kept(node: torch.fx.Node) -> bool:
    """Whether it is a sum that 8 bits would spoil.

    One with a factor, which XNNPACK drops; or one that a norm reads, whose outliers are too large for 8 bits.
    """
    return node.target in _SUMS and (bool(node.kwargs.get("alpha", 1) != 1) or _is_normed(node))


def _is_normed(node: torch.fx.Node) -> bool:
    return any(user.target in _NORMS or (user.target in _REARRANGED and _is_normed(user)) for user in node.users)


def _lower(program: Any) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    _spell_out_steps(program.graph)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def _spell_out_steps(graph: torch.fx.Graph) -> None:
    """Maxima over windows with their step, which is the window's size where a call leaves it out: XNNPACK reads it."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.max_pool2d.default and (len(node.args) < 3 or not node.args[2]):
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
