"""ONNX Runtime's own file, for its mobile packages: the ONNX file, optimised for ARM while it is written.

As onnxruntime's ``convert_onnx_models_to_ort`` does in its style "Fixed": the optimiser's last level, but without the
blocked layouts, which only x86 has (onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html).
The same weights give the same graph, but not the same bytes: ONNX Runtime writes its table of operators in any order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
import torch
from torch import nn

from deploy_prune.errors import ExportError
from deploy_prune.export.artifact import Extra, describe, first_line
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.onnx import made
from deploy_prune.export.onnx_files import is_large
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.shell import atomic
from deploy_prune.types import Artifact

suffix: Final = ".ort"
precisions: Final = ("fp32", "int8")
"""Not fp16: the optimiser on this kind of machine, which has no kernels for it, stores the weights as fp32 again."""
runtime: Final = "onnxruntime"
extra: Final[Extra | None] = None
packages: Final = ("torch", "onnx", "onnxscript", "onnxruntime")
ONLY_X86: Final = ("NchwcTransformer",)


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Export the network, in eval mode, to one .ort file. Arguments as for the format onnx.

    Raises:
        ExportError: as there, it is over 2 GB, or ONNX Runtime can't optimise the model.
    """
    import onnxruntime

    model = made(network, example, precision, part, calibration)
    if is_large(model):
        message = "The .ort file would be over 2 GB, more than it can hold: choose the format onnx."
        raise ExportError(message)
    with atomic(path) as temporary:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(temporary)
        options.add_session_config_entry("session.save_model_format", "ORT")
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(deterministic=True), options, providers=["CPUExecutionProvider"],
                disabled_optimizers=list(ONLY_X86),
            )  # fmt: skip
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            message = f"ONNX Runtime can't write the .ort file: {first_line(error)}"
            raise ExportError(message) from error
    versions = {
        "torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__,
        "opset": str(part.opset),
    }  # fmt: skip
    return describe(path, format="ort", precision=precision, input_shape=several(example)[0].shape, versions=versions)
