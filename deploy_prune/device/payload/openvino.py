"""OpenVINO models, run by OpenVINO on the CPU. Needs numpy and openvino only."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import numpy.typing
import openvino

Array = numpy.typing.NDArray[Any]


class Model:
    """A folder with model.xml and model.bin, compiled for the CPU.

    Computes in float32, also where the weights are stored in half precision. Left to itself OpenVINO takes bfloat16 on
    processors that have it, so that results would differ from one processor to the next.
    """

    def __init__(self, path: str, threads: int, layout: str) -> None:
        if layout != "NCHW":
            message = f"OpenVINO's input is NCHW here, not {layout}"
            raise ValueError(message)
        core = openvino.Core()
        model = core.read_model(str(Path(path) / "model.xml"))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.count = len(model.outputs)

    def feed(self, *inputs: Array) -> None:
        """Take inputs [B, ...], floating-point ones in float32."""
        for number, x in enumerate(inputs):
            kept = numpy.ascontiguousarray(x, dtype="float32" if x.dtype.kind == "f" else x.dtype)
            self.request.set_input_tensor(number, openvino.Tensor(kept))

    def run(self) -> list[Array]:
        """All outputs, float32, in the network's order."""
        self.request.infer()
        tensors = [self.request.get_output_tensor(index) for index in range(self.count)]
        return [numpy.array(tensor.data, dtype=numpy.float32) for tensor in tensors]


def versions() -> dict[str, str]:
    """The runtime's version."""
    return {"openvino": version("openvino")}
