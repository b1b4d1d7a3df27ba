"""TensorRT: a folder that any device with TensorRT can turn into its engine, and the engine where there is one.

An engine runs only on the kind of GPU, and with the version of TensorRT, that built it. So the folder holds

    model.onnx        the network; fp16 and int8 (as QuantizeLinear and DequantizeLinear) are written into it, which
                      every version from 8 to 11 understands; above 2 GB, its weights are in model.onnx.data
    model.json        its precision, input and outputs
    build_engine.py   builds engine.plan with the device's own trtexec; needs Python alone
    engine.plan       if this machine has an NVIDIA GPU and the tensorrt package
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnx
from torch import nn

from deploy_prune.errors import CommandError, ExportError
from deploy_prune.export import onnx as onnx_format
from deploy_prune.export._tensorrt_qdq import make_symmetric
from deploy_prune.export.artifact import describe
from deploy_prune.export.inputs import Given, several
from deploy_prune.export.onnx_files import GRAPH, save_in
from deploy_prune.recipe.parts import ExportPart
from deploy_prune.system.cache import cache_folder
from deploy_prune.system.shell import atomic, run_command
from deploy_prune.types import Artifact

suffix: Final = ".tensorrt"
precisions: Final = ("fp32", "fp16", "int8")
runtime: Final = "tensorrt"
extra: Final = None
packages: Final = ("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt")
"""Nothing but ONNX is needed to write the folder; the tensorrt package only builds and runs the engine."""
TO_BE_BUILT: Final = "to be built on device"
"""``Artifact.versions["engine"]`` where the folder has no engine.plan, so that nothing can be run or timed here."""
MAX_BATCH: Final = 16
"""Where the batch size is open, the engine takes 1 to this many, or the example's if that is more."""
WORKSPACE_BYTES: Final = 2**30
"""Scratch memory that a layer may use: 1 GiB, as in TensorRT's own samples."""
_ENGINE_SCRIPT: Final = Path(__file__).with_name("_tensorrt_build.py")
_DEVICE_SCRIPT: Final = Path(__file__).parents[1] / "device" / "payload" / "build_engine.py"


def write(
    network: nn.Module,
    example: Given,
    path: Path,
    precision: str,
    part: ExportPart,
    calibration: Given | None = None,
) -> Artifact:
    """Write the folder; with an NVIDIA GPU and the tensorrt package here, build its engine.

    Args:
        network: exported as it is; each module's train or eval mode is put back afterwards.
        example: an input [B, C, H, W]; fixes the input's shape (its batch, unless ``part.dynamic_batch``).
        path: the folder; it appears under this name only when complete.
        precision: "fp32", "fp16" or "int8". Inputs and outputs are float32 in each.
        part: the opset, whether the batch size stays open, and the time limit of the engine's build.
        calibration: float32 [N, C, H, W], needed for "int8".

    Raises:
        ExportError: as the ONNX format's ``write``; or TensorRT, where it is here, can't build the engine.
    """
    if precision not in precisions:
        message = f"TensorRT can't be used with {precision}: choose one of {', '.join(precisions)}."
        raise ExportError(message)
    with atomic(path) as folder:
        folder.mkdir()
        model = onnx_format.made(network, example, precision, part, calibration, symmetric=True)
        if precision == "int8":
            make_symmetric(model)
        save_in(model, folder)
        about = _about(model.graph, example, precision, part)
        (folder / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(_DEVICE_SCRIPT, folder / _DEVICE_SCRIPT.name)
        versions = {**onnx_format.versions(part), "engine": _build(folder, about, part.timeout_s)}
    return describe(
        path, format="tensorrt", precision=precision, input_shape=several(example)[0].shape, versions=versions
    )


def _about(graph: onnx.GraphProto, example: Given, precision: str, part: ExportPart) -> dict[str, Any]:
    """What model.json says. Outputs are named there in the network's order, which an engine does not keep."""
    constants = {entry.name for entry in graph.initializer}
    inputs = [entry.name for entry in graph.input if entry.name not in constants]
    if len(inputs) != 1:
        message = f"TensorRT's folder is for networks with one input, and this one has {len(inputs)}."
        raise ExportError(message)
    shape = several(example)[0].shape
    return {
        "precision": precision,
        "input": inputs[0],
        "shape": list(shape),
        "max_batch": max(MAX_BATCH, shape[0]) if part.dynamic_batch else None,
        "outputs": [entry.name for entry in graph.output],
    }


def _build(folder: Path, about: Mapping[str, Any], timeout_s: float) -> str:
    """Build engine.plan if that can be done here; what to say of it in the artifact's versions.

    Raises:
        ExportError: there are a GPU and TensorRT, and the build fails or outlasts ``timeout_s``.
    """
    if importlib.util.find_spec("tensorrt") is None:
        return TO_BE_BUILT
    spec = {
        **about,
        "onnx": str(folder / GRAPH),
        "engine": str(folder / "engine.plan"),
        "workspace_bytes": WORKSPACE_BYTES,
        "timing_caches": str(cache_folder() / "tensorrt"),
    }
    # -P: else this file's folder would come first, and its tensorrt.py would be taken for the package.
    try:
        text = run_command([sys.executable, "-P", str(_ENGINE_SCRIPT)], timeout_s, stdin=json.dumps(spec))
        answer = json.loads(text)
    except (CommandError, ValueError) as error:
        message = f"The TensorRT engine can't be built here. {error}"
        raise ExportError(message) from error
    return f"TensorRT {answer['tensorrt']} on {answer['gpu']}" if answer["built"] else TO_BE_BUILT


def is_built(artifact: Artifact) -> bool:
    """Whether there is an engine, built on this machine."""
    return artifact.versions.get("engine") != TO_BE_BUILT
