"""Run .tflite files with LiteRT's interpreter on the CPU. Needs numpy and ai-edge-litert only."""

from __future__ import annotations

from collections.abc import Mapping
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
        (key,) = self._signatures()
        signature = self._interpreter.get_signature_runner(key)
        self._inputs = in_order(signature.get_input_details(), "args_")
        self._outputs = [int(entry["index"]) for entry in in_order(signature.get_output_details(), "output_")]
        self._to_last = layout == "NHWC"

    def feed(self, *inputs: numpy.ndarray) -> None:
        """Copy inputs [B, ...], images [B, C, H, W], into the file's input tensors, whose shapes they must have."""
        for told, x in zip(self._inputs, inputs, strict=True):
            is_image = self._to_last and x.ndim == 4 and x.dtype.kind == "f"
            turned = numpy.ascontiguousarray(x.transpose(0, 2, 3, 1) if is_image else x, dtype=told["dtype"])
            shape = tuple(int(size) for size in told["shape"])
            if turned.shape != shape:
                message = f"the file takes inputs {shape}, not {turned.shape}"
                raise ValueError(message)
            self._interpreter.set_tensor(told["index"], turned)

    def run(self) -> list[numpy.ndarray]:
        """One inference on what was fed; the network's outputs in order, float32."""
        self._invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]

    def _signatures(self) -> Any:
        return self._interpreter.get_signature_list()


def in_order(details: Mapping[str, Any], prefix: str) -> list[Any]:
    """A signature's inputs or outputs in the network's order: their names end in numbers."""
    return [details[name] for name in sorted(details, key=lambda name: int(name.removeprefix(prefix)))]


def versions() -> dict[str, str]:
    """The runtime's version, under its package's name."""
    return {"ai-edge-litert": version("ai-edge-litert")}
