"""ncnn models, run by ncnn on the CPU. Needs numpy and ncnn only."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import ncnn
import numpy
import numpy.typing

HALF_TAG = 0x01306B47
"""Stands in model.bin before weights in half precision (github.com/Tencent/ncnn, src/modelbin.cpp)."""

Array = numpy.typing.NDArray[Any]


class Model:
    """A folder with model.param and model.bin, ready to run. Computes in half precision only if it is stored so."""

    def __init__(self, path: str, threads: int, layout: str) -> None:
        if layout != "NCHW":
            message = f"ncnn takes NCHW, not {layout}"
            raise ValueError(message)
        param, weights = Path(path) / "model.param", Path(path) / "model.bin"
        half = is_half(weights)
        self.net = ncnn.Net()
        options = self.net.opt
        options.num_threads = threads
        options.use_vulkan_compute = False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        options.use_bf16_storage = options.use_bf16_packed = False
        if self.net.load_param(str(param)) != 0:
            message = f"ncnn can't load {param}"
            raise RuntimeError(message)
        if self.net.load_model(str(weights)) != 0:
            message = f"ncnn can't load {weights}"
            raise RuntimeError(message)
        self.inputs = sorted(self.net.input_names(), key=lambda name: int(name.removeprefix("in")))
        made = [name for name in self.net.output_names() if name.startswith("out")]  # not what no layer reads
        self.outputs = sorted(made, key=lambda name: int(name.removeprefix("out")))
        self.images: list[list[Any]] = []

    def feed(self, *inputs: Array) -> None:
        """Take float32 inputs [B, ...]; ncnn gets them one at a time.

        Copied: a Mat that only points into an array crashes where the first layer works in place.
        """
        self.images = [
            [ncnn.Mat(numpy.ascontiguousarray(one, dtype=numpy.float32)).clone() for one in example]
            for example in zip(*inputs, strict=True)
        ]

    def run(self) -> list[Array]:
        """All outputs, float32 [B, ...], in the network's order."""
        results: list[list[Array]] = [[] for _ in self.outputs]
        for example in self.images:
            extractor = self.net.create_extractor()
            for name, image in zip(self.inputs, example, strict=True):
                extractor.input(name, image)
            for name, column in zip(self.outputs, results, strict=True):
                code, found = extractor.extract(name)
                if code != 0:
                    message = f"ncnn can't compute {name}: code {code}"
                    raise RuntimeError(message)
                column.append(numpy.array(found, dtype=numpy.float32))
        return [numpy.stack(column) for column in results]


def is_half(weights: Path) -> bool:
    """Whether a model.bin holds weights in half precision. As a float32, the tag would be 3e-38."""
    size = weights.stat().st_size // 4
    return bool((numpy.fromfile(weights, "<u4", count=size) == HALF_TAG).any())


def versions() -> dict[str, str]:
    """The runtime's version."""
    return {"ncnn": version("ncnn")}
