"""ONNX files, written by torch's exporter and run by ONNX Runtime on the CPU.

Above 2 GB, which is a file's limit, it is a folder with the graph and, beside it, the weights (``onnx_files``).
The same weights give the same bytes: what the exporter notes beside the graph (stack traces with this machine's
paths, module classes) is removed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import nn

from deploy_prune.errors import ExportError
from deploy_prune.export import onnx_files
from deploy_prune.export.artifact import Extra, describe, eval_mode, export_program, first_line, quiet
from deploy_prune.export.denormals import flush_initializers
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.quantize import PRECISIONS, in_precision
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import atomic
from deploy_prune.types import Artifact

suffix: Final = ".onnx"
precisions: Final = PRECISIONS
runtime: Final = "onnxruntime"
extra: Final[Extra | None] = None
packages: Final = ("torch", "onnx", "onnxscript", "onnxruntime")
_REMOVED: Final = ("doc_string", "metadata_props")


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Export the network, in eval mode, to one ONNX file with its weights inside, or to a folder if it is over 2 GB.

    Args:
        network: exported as it is; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W] on the network's device; fixes the file's input shape (its batch, unless
            ``part.dynamic_batch``).
        path: the file or folder; it appears under this name only when complete.
        precision: "fp32", "fp16" or "int8"; inputs and outputs are float32 in all.
        part: the opset, and whether the batch size stays open.
        calibration: real inputs [N, C, H, W] for int8; see ``quantize``.

    Raises:
        ExportError: another precision, torch can't export it, the exporter left another opset, or int8 without
            calibration inputs.
    """
    model = made(network, example, precision, part, calibration)
    with atomic(path) as temporary:
        onnx_files.save(model, temporary)
    return describe(
        path, format="onnx", precision=precision, input_shape=several(example)[0].shape, versions=versions(part)
    )


def made(
    network: nn.Module,
    example: Given,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
    *,
    symmetric: bool = False,
) -> onnx.ModelProto:
    """The ONNX model of a network; arguments as for ``write``, ``symmetric`` as for ``quantize.int8``.

    It is checked, but for a large one, which can only be checked as a file.

    Raises:
        ExportError: as ``write``.
    """
    if precision not in PRECISIONS:
        message = f"An ONNX file can't be written in {precision}; it has {', '.join(PRECISIONS)}."
        raise ExportError(message)
    with eval_mode(network), quiet():
        model = flush_initializers(_clean(_export(network, example, part)), precision)
        model = _clean(in_precision(model, precision, calibration, symmetric=symmetric))
    _check(model, part.opset)
    return model


def versions(part: ExportPart) -> dict[str, str]:
    """What a file is written with."""
    return {"torch": torch.__version__, "onnx": onnx.__version__, "opset": str(part.opset)}


def _export(network: nn.Module, example: Given, part: ExportPart) -> onnx.ModelProto:
    program = export_program(network, example, part)
    try:
        with torch.no_grad(), _translations_kept():
            made = torch.onnx.export(program, several(example), dynamo=True, opset_version=part.opset, verbose=False)
        assert made is not None
        return made.model_proto
    except Exception as error:  # the exporter wraps whatever a translation raises
        message = f"torch.onnx can't export the network with opset {part.opset}: {first_line(_root(error))}"
        raise ExportError(message) from error


@contextmanager
def _translations_kept() -> Iterator[None]:
    """Let torch read its exporter's translations once: it does for every file, a third of the time of a small one.

    It finds those of torchvision's operators only if torchvision was imported before.
    """
    registry: Any = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    read = vars(registry)["from_torchlib"]
    has_torchvision = "torchvision" in sys.modules
    kept = partial(_translations, read.__get__(None, registry), has_torchvision)
    registry.from_torchlib = staticmethod(lambda opset_version: kept(opset_version))
    try:
        yield
    finally:
        registry.from_torchlib = read


@cache
def _translations(read: Callable[[int], Any], has_torchvision: bool, opset: int) -> Any:
    return read(opset)


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove, in place, notes that hold paths of this machine or change from run to run."""
    graphs = [model.graph]
    for message in (model, model.graph, *model.functions):
        _strip(message)
    while graphs:
        graph = graphs.pop()
        for message in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            _strip(message)
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return model


def _strip(message: Any) -> None:
    for field in _REMOVED:
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)


def _check(model: onnx.ModelProto, opset: int) -> None:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found.get("") != opset:
        message = f"The exporter left opset {found.get('')} where export.opset asks for {opset}; choose another one."
        raise ExportError(message)
    if not onnx_files.is_large(model):
        onnx_files.check(model)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
