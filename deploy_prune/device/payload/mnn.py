"""MNN models, run by MNN on the CPU. Needs numpy and MNN only."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy
import numpy.typing

Array = numpy.typing.NDArray[Any]


@contextmanager
def aside() -> Iterator[None]:
    """Turn what is printed on standard output, through C's own buffer too, to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


with aside():  # MNN says what the processor has, ...
    import MNN


class Model:
    """A .mnn file. Computes in float32, also where the weights are stored in half precision."""

    def __init__(self, path: str, threads: int, layout: str) -> None:
        if layout != "NCHW":
            message = f"MNN's input is NCHW here, not {layout}"
            raise ValueError(message)
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        try:
            with aside():  # ... what it computes in, and what is wrong with a file
                self.runtime = MNN.nn.create_runtime_manager((settings,))
                self.net = MNN.nn.load_module_from_file(path, [], [], runtime_manager=self.runtime)
        except Exception as error:  # a SystemError, which says nothing
            message = f"MNN can't load {path}"
            raise RuntimeError(message) from error
        self.inputs: list[Any] = []

    def feed(self, *inputs: Array) -> None:
        """Take inputs [B, ...]: floating-point ones in float32, all others in int32, which is all that MNN has."""
        self.inputs = []
        for x in inputs:
            kept, kind = (numpy.float32, MNN.expr.float) if x.dtype.kind == "f" else (numpy.int32, MNN.expr.int)
            self.inputs.append(MNN.expr.const(numpy.ascontiguousarray(x, kept), list(x.shape), MNN.expr.NCHW, kind))

    def run(self) -> list[Array]:
        """All outputs, float32, in the network's order; MNN keeps some with four channels beside each other."""
        made = [MNN.expr.convert(y, MNN.expr.NCHW) for y in self.net.onForward(self.inputs)]
        return [numpy.array(y.read(), dtype=numpy.float32).reshape(y.shape) for y in made]


def versions() -> dict[str, str]:
    """The runtime's version."""
    return {"MNN": version("MNN")}
