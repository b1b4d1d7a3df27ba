"""Run .pte files with ExecuTorch's Python runtime on the CPU. Needs numpy and executorch (which brings torch) only."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime


class Model:
    """One .pte file, loaded."""

    def __init__(self, path: str, threads: int, layout: str) -> None:
        """Load the file.

        Args:
            path: a .pte file whose method "forward" has one input.
            threads: CPU threads, 1 or more. The pool is the process's, so all models loaded in one process must have
                the same number: with another one, ValueError.
            layout: of the file's input; "NCHW" is the only one that ExecuTorch files have here.
        """
        if layout != "NCHW":
            message = f"a .pte file's input is NCHW, not {layout}"
            raise ValueError(message)
        _set_threads(threads)
        self._program = Runtime.get().load_program(Path(path).read_bytes())
        method = self._program.load_method("forward")
        if method is None:
            message = f"{path} has no method 'forward'"
            raise ValueError(message)
        self._method = method
        self._shape = tuple(method.metadata.input_tensor_meta(0).sizes())
        self._input: tuple[torch.Tensor, ...] = ()

    def feed(self, x: numpy.ndarray) -> None:
        """Take an input [B, C, H, W], of the shape that the file was written for."""
        if x.shape != self._shape:
            message = f"the file takes inputs {self._shape}, not {x.shape}"
            raise ValueError(message)
        self._input = (torch.from_numpy(numpy.array(x, dtype=numpy.float32, order="C")),)

    def run(self) -> list[numpy.ndarray]:
        """One inference on what was fed; the network's outputs in order, float32."""
        return [y.numpy().copy() for y in self._method.execute(self._input)]


def versions() -> dict[str, str]:
    """The runtime's version, under its package's name."""
    return {"executorch": version("executorch")}


def _set_threads(threads: int) -> None:
    """Give XNNPACK's thread pool this size. It is replaced only when needed: models made before still point to it."""
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
