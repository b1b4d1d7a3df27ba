"""Denormal numbers are written as 0: processors take many times as long for them, and they carry nothing.

Below a format's smallest normal number (float32: 1.2e-38) floating-point numbers lose digits one by one (IEEE 754-2019,
3.3). Channels that decayed in training leave thousands of such weights. In half precision they start at 6.1e-5, and
there they do carry something: only what float16 rounds to 0 is written as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

SMALLEST: Final = float(torch.finfo(torch.float32).tiny)
"""The smallest normal float32."""
HALF_OF_SMALLEST_HALF: Final = 2.0**-25
"""What isn't above it is 0 in float16, whose smallest number is 2**-24."""


def without_denormals(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place: float32 weights below the smallest normal number are 0. No tensor is changed."""
    for held in (program.state_dict, program.constants):
        for name, tensor in list(held.items()):
            if isinstance(tensor, Tensor) and _denormal(tensor).any():
                held[name] = _as_before(tensor, tensor.detach().masked_fill(_denormal(tensor), 0))
    return program


def flush_initializers(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The float32 model, changed in place: what a folded batch norm made too small is 0, too.

    For fp16 also what half precision rounds to 0: ONNX Runtime's converter would raise it to the smallest number.
    """
    for entry in model.graph.initializer:
        if entry.data_type == onnx.TensorProto.FLOAT:
            value = numpy_helper.to_array(entry)
            size = numpy.abs(value)
            small = size <= HALF_OF_SMALLEST_HALF if precision == "fp16" else size < SMALLEST
            if (small & (value != 0)).any():
                entry.CopyFrom(numpy_helper.from_array(numpy.where(small, numpy.float32(0), value), entry.name))
    return model


def most_denormal(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[str, float] | None:
    """The module of whose output most numbers are denormal, and their share (0 to 1); None if no module has any.

    ``inputs``: each [N, ...]. In the network's own mode.
    """
    shares: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.numel() and (share := float(_denormal(output).float().mean())):
                shares[name] = max(share, shares.get(name, 0.0))

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, module in network.named_modules():
            stack.callback(module.register_forward_hook(note(name)).remove)
        network(*inputs)
    return max(shares.items(), key=lambda item: item[1]) if shares else None


def _denormal(tensor: Tensor) -> Tensor:
    if tensor.dtype is not torch.float32:
        return torch.zeros((), dtype=torch.bool)
    return (tensor != 0) & (tensor.abs() < SMALLEST)


def _as_before(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
