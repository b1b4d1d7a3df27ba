"""OpenVINO models, run by OpenVINO on the CPU. Needs numpy and openvino only."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import openvino


class Model:
    """A folder with model.xml and model.bin, compiled for the CPU.

    Computes in float32, which OpenVINO wouldn't by itself on processors with bfloat16; in half precision if the weights
    are stored so and the processor can.
    """

    def __init__(self, path: str, threads: int, layout: str) -> None:
        if layout != "NCHW":
            raise ValueError(f"OpenVINO's input is NCHW here, not {layout}")
        core = openvino.Core()
        model = core.read_model(str(Path(path) / "model.xml"))
        half = is_half(model) and "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_PRECISION_HINT": "f16" if half else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.count = len(model.outputs)

    def feed(self, x: numpy.ndarray) -> None:
        """Take float32 inputs [B, C, H, W]."""
        self.request.set_input_tensor(openvino.Tensor(numpy.ascontiguousarray(x, dtype=numpy.float32)))

    def run(self) -> list[numpy.ndarray]:
        """All outputs, float32, in the network's order."""
        self.request.infer()
        tensors = [self.request.get_output_tensor(index) for index in range(self.count)]
        return [numpy.array(tensor.data, dtype=numpy.float32) for tensor in tensors]


def is_half(model: Any) -> bool:
    """Whether the model stores weights in half precision."""
    constants = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return any(node.get_output_element_type(0) == openvino.Type.f16 for node in constants)


def versions() -> dict[str, str]:
    """The runtime's version."""
    return {"openvino": version("openvino")}
