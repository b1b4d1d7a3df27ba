"""Run .tflite files with LiteRT's interpreter on the CPU. Needs numpy and ai-edge-litert only."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy
from ai_edge_litert.interpreter import Interpreter


class Model:
    """One .tflite file, loaded; XNNPACK runs what it can, LiteRT's own kernels the rest."""

    def __init__(self, path: str, threads: int, layout: str) -> None:
        """Load the file.

        Args:
            path: a .tflite file with one input.
            threads: CPU threads, 1 or more.
            layout: of the file's input, "NCHW" or "NHWC".
        """
        self._interpreter = Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._invoke = self._interpreter.invoke
        (entry,) = self._interpreter.get_input_details()
        self._input, self._shape = entry["index"], tuple(int(size) for size in entry["shape"])
        self._outputs = [index for _, index in sorted(self._named_outputs())]
        self._to_file = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)

    def feed(self, x: numpy.ndarray) -> None:
        """Copy an input [B, C, H, W] into the file's input tensor, whose shape it must have."""
        turned = numpy.ascontiguousarray(x.transpose(self._to_file), dtype=numpy.float32)
        if turned.shape != self._shape:
            message = f"the file takes inputs {self._shape}, not {turned.shape}"
            raise ValueError(message)
        self._interpreter.set_tensor(self._input, turned)

    def run(self) -> list[numpy.ndarray]:
        """One inference on what was fed; the network's outputs in order, float32."""
        self._invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]

    def _named_outputs(self) -> list[tuple[int, int]]:
        """(Place in the network's outputs, tensor) of each output; the signature has them as output_0, output_1, ..."""
        names: Any = self._interpreter.get_signature_list()
        (key,) = names
        details = self._interpreter.get_signature_runner(key).get_output_details()
        return [(int(name.removeprefix("output_")), int(entry["index"])) for name, entry in details.items()]


def versions() -> dict[str, str]:
    """The runtime's version, under its package's name."""
    return {"ai-edge-litert": version("ai-edge-litert")}
