"""MNN models, converted from the network's ONNX file by MNN's own converter; one file with the weights inside.

The converter is called as MNN's compiled module has it. The program ``mnnconvert``, which calls the same, first
installs a package with pip, by which it sends its vendor notes of its use. There is no int8: MNN's quantizer takes
image files, not the inputs that the network was trained on.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final
from uuid import UUID

import onnx
import torch
from torch import nn

from deploy_prune.errors import CommandError, ExportError
from deploy_prune.export.artifact import Extra, describe, require_fixed
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.onnx import made
from deploy_prune.export.onnx_files import is_large
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.guard import scratch
from deploy_prune.system.shell import atomic, run_command, tail
from deploy_prune.types import Artifact

suffix: Final = ".mnn"
precisions: Final = ("fp32", "fp16")
runtime: Final = "mnn"
extra: Final = Extra(name="mnn", modules=("MNN",))
packages: Final = ("torch", "onnx", "onnxscript", "MNN")
CONVERT: Final = "import _tools, sys; _tools.mnnconvert(sys.argv)"
"""The module ``_tools`` is MNN's; whether it succeeds, it prints."""
_NUMBER: Final = re.compile(rb"(?<=\x24\0\0\0)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=\0)")
"""A random number that the converter gives each file, a string of 36 characters (0x24) in its flatbuffer ..."""
_SAME: Final = str(UUID(int=0)).encode()
"""... and what stands there instead: the same weights give the same bytes."""


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Export the network, in eval mode, to ONNX, and convert that to one .mnn file.

    Args:
        network: a module, or a GraphModule of torch.export; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W]; fixes the file's input shape.
        path: the file; it appears under this name only when complete.
        precision: "fp32", or "fp16": weights stored in half precision; the arithmetic stays float32.
        part: the opset, and how long the converter may take.
        calibration: not needed.

    Raises:
        ExportError: another precision, an open batch, torch can't export it, MNN can't convert it, or it is over 2 GB.
        MissingDependencyError: MNN is not installed.
    """
    require_fixed("An MNN model", precisions, precision, part, example, calibration)
    extra.require()
    model = made(network, example, "fp32", part)
    if is_large(model):
        message = "The .mnn file would be over 2 GB, more than it can hold: choose the format onnx."
        raise ExportError(message)
    with atomic(path) as temporary, scratch() as work:
        _convert(model, temporary, precision, work, part.timeout_s)
    versions = {
        "torch": torch.__version__, "onnx": onnx.__version__, "opset": str(part.opset), "MNN": version("MNN"),
    }  # fmt: skip
    return describe(path, format="mnn", precision=precision, input_shape=several(example)[0].shape, versions=versions)


def _convert(model: onnx.ModelProto, path: Path, precision: str, work: Path, timeout_s: float) -> None:
    """Run the converter in a process of its own: it prints much, and may end the process that it is in."""
    source, target = work / "model.onnx", work / "model.mnn"
    source.write_bytes(model.SerializeToString(deterministic=True))
    options = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "network"]
    options += ["--fp16"] if precision == "fp16" else []
    try:
        told = run_command([sys.executable, "-I", "-c", CONVERT, *options], timeout_s)
    except CommandError as error:
        message = f"MNN can't convert the network. {error}"
        raise ExportError(message) from error
    if "Converted Success!" not in told or not target.is_file():
        message = f"MNN can't convert the network. Its converter ended with: {tail(told)}"
        raise ExportError(message)
    path.write_bytes(_NUMBER.sub(_SAME, target.read_bytes(), count=1))
