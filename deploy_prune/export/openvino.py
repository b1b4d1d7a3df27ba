"""OpenVINO models: a folder with model.xml (the graph) and model.bin (the weights), run by OpenVINO on the CPU.

There is no int8: it takes the package nncf, which is not among this format's.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import Extra, describe, eval_mode, first_line, flatten, quiet
from deploy_prune.export.inputs import Given, several
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import atomic
from deploy_prune.types import Artifact

suffix: Final = ".openvino"
precisions: Final = ("fp32", "fp16")
runtime: Final = "openvino"
extra: Final = Extra(name="openvino", modules=("openvino",))
packages: Final = ("torch", "openvino")
XML: Final = "model.xml"


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Convert the network, in eval mode, to a folder with model.xml and model.bin.

    Args:
        network: a module, or a GraphModule of torch.export; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W]; fixes the input's shape (its batch, unless ``part.dynamic_batch``).
        path: the folder; it appears under this name only when complete.
        precision: "fp32", or "fp16": weights stored in half precision; the arithmetic stays float32.
        part: whether the batch size stays open.
        calibration: not needed.

    Raises:
        ExportError: another precision, torch can't export it, or OpenVINO can't convert it.
        MissingDependencyError: openvino is not installed.
    """
    if precision not in precisions:
        message = f"An OpenVINO model can't be written in {precision}: the target's 'precision' must be fp32 or fp16."
        raise ExportError(message)
    extra.require()
    import openvino

    with eval_mode(network), torch.no_grad(), quiet():
        model = _convert(_export(network, example, part), example, part)
    with atomic(path) as temporary:
        temporary.mkdir()
        openvino.save_model(model, str(temporary / XML), compress_to_fp16=precision == "fp16")
    versions = {"torch": torch.__version__, "openvino": version("openvino")}
    return describe(
        path, format="openvino", precision=precision, input_shape=several(example)[0].shape, versions=versions
    )


class _Outputs(nn.Module):
    """The network with its outputs as a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return flatten(self.network(*inputs))


def _export(network: nn.Module, example: Given, part: ExportPart) -> torch.export.ExportedProgram:
    """Run torch.export. A batch of 1 would be taken for a constant, so an open batch is traced with 2."""
    shapes: Any = None
    inputs = several(example)
    if part.dynamic_batch:
        inputs, batch = tuple(torch.cat([x[:1]] * 2) for x in inputs), torch.export.Dim("batch")
        shapes = (tuple({0: batch} for _ in inputs),)
    try:
        return torch.export.export(_Outputs(network), inputs, dynamic_shapes=shapes)
    except Exception as error:  # whatever the network's own code raises
        message = f"torch can't export the network for OpenVINO: {first_line(error)}"
        raise ExportError(message) from error


def _convert(program: torch.export.ExportedProgram, example: Given, part: ExportPart) -> Any:
    import openvino

    shapes = [[-1 if part.dynamic_batch else x.shape[0], *x.shape[1:]] for x in several(example)]
    try:
        model = openvino.convert_model(program)
        model.reshape({i: openvino.PartialShape(shape) for i, shape in enumerate(shapes)})
    except Exception as error:  # OpenVINO's errors have no common base but Exception
        message = f"OpenVINO can't convert the network: {first_line(error)}"
        raise ExportError(message) from error
    model.set_friendly_name("network")
    for number, node in enumerate(model.get_ordered_ops()):  # else their names count all nodes of this process
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    return model
