"""Run Core ML packages from Python, on macOS only. Needs numpy and coremltools."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import coremltools
import numpy


class Model:
    """An .mlpackage folder, compiled for the CPU, on which float32 stays float32."""

    def __init__(self, path: str, threads: int, layout: str) -> None:
        """Load the package; Core ML chooses its threads itself.

        Raises:
            ValueError: the layout isn't NCHW, which all packages here have.
        """
        if layout != "NCHW":
            message = f"a Core ML package's input is NCHW here, not {layout}"
            raise ValueError(message)
        self._model = coremltools.models.MLModel(path, compute_units=coremltools.ComputeUnit.CPU_ONLY)
        described = self._model.get_spec().description
        names = [entry.name for entry in described.input]
        self._inputs = sorted(names, key=lambda name: int(name.removeprefix("input") or 0))
        self._outputs = sorted((entry.name for entry in described.output), key=lambda name: int(name[3:]))  # out0, ...
        self._feed: dict[str, Any] = {}

    def feed(self, *inputs: numpy.ndarray) -> None:
        """Keep inputs [B, ...], float32 or int32, for the next runs."""
        types = ["float32" if x.dtype.kind == "f" else "int32" for x in inputs]
        kept = [numpy.ascontiguousarray(x, dtype=kind) for x, kind in zip(inputs, types, strict=True)]
        self._feed = dict(zip(self._inputs, kept, strict=True))

    def run(self) -> list[numpy.ndarray]:
        """One inference: the outputs, float32, in the network's order."""
        found = self._model.predict(self._feed)
        return [numpy.asarray(found[name], dtype=numpy.float32) for name in self._outputs]


def versions() -> dict[str, str]:
    """The package's version."""
    return {"coremltools": version("coremltools")}
