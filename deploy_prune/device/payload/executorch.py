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
        about = method.metadata
        self._shapes = [tuple(about.input_tensor_meta(i).sizes()) for i in range(about.num_inputs())]
        self._input: tuple[torch.Tensor, ...] = ()

    def feed(self, *inputs: numpy.ndarray) -> None:
        """Take inputs [B, ...], of the shapes that the file was written for."""
        found = [x.shape for x in inputs]
        if found != self._shapes:
            message = f"the file takes inputs {', '.join(map(str, self._shapes))}, not {', '.join(map(str, found))}"
            raise ValueError(message)
        copies = [numpy.array(x, dtype="float32" if x.dtype.kind == "f" else x.dtype, order="C") for x in inputs]
        self._input = tuple(map(torch.from_numpy, copies))

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
