"""The channel granularity of a target: the step in which channel counts make a network faster.

Runtimes compute channels in blocks, so 63 channels can cost as much as 64, or more. The granularity is the smallest
step that pays: taking it away from a width of 64 saves at least half of what the arithmetic says.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy_prune.cache import cached_json
from deploy_prune.device import ABOUT, TIMEOUT_S, reach
from deploy_prune.device.address import LOCAL
from deploy_prune.errors import CommandError, MeasurementError
from deploy_prune.latency.runners import measure
from deploy_prune.types import Artifact, Target

STEPS: Final = (1, 2, 4, 8, 16, 32)
WIDTH: Final = 64
PIXELS: Final = 14
PAYS: Final = 0.5
"""A step pays if it saves at least this share of the multiply-accumulates' saving."""
_METHOD: Final = 2
"""Part of the cache's key: raise it when the measurement changes."""


def granularity(target: Target) -> int:
    """The target's channel granularity: as its file says, or found by measuring for a few seconds, once per machine.

    Raises:
        MeasurementError: it has to be measured, and the target can't run the test networks.
    """
    if target.granularity is not None:
        return target.granularity
    key = {**machine(target), "runtime": target.runtime, "threads": target.threads, "precision": target.precision}
    return int(cached_json("granularity", key, lambda: smallest_paying(time_ratios(target))))


def smallest_paying(ratios: Mapping[int, float]) -> int:
    """The granularity, given step -> time at width 64 - step over time at width 64.

    The smallest step that pays; the largest step measured if none does.
    """
    for step in sorted(ratios):
        if 1 - ratios[step] >= PAYS * (1 - _macs(WIDTH - step) / _macs(WIDTH)):
            return step
    return max(ratios)


def time_ratios(target: Target) -> dict[int, float]:
    """Step -> time at width 64 - step over time at width 64, each the median of interleaved pairs."""
    with TemporaryDirectory() as folder:
        artifacts = list(_artifacts(Path(folder)))
        dense, *narrower = measure(target, artifacts, runs=300, warmup=20, min_s=0)
    return {step: latency.p50_ms / dense.p50_ms for step, latency in zip(STEPS, narrower, strict=True)}


def _artifacts(folder: Path) -> Iterator[Artifact]:
    for width in (WIDTH, *(WIDTH - step for step in STEPS)):
        path = folder / f"{width}.onnx"
        data = _network(width).SerializeToString(deterministic=True)
        path.write_bytes(data)
        yield Artifact(
            path=path,
            format="onnx",
            precision="fp32",
            sha256=hashlib.sha256(data).hexdigest(),
            input_shape=(1, 3, PIXELS, PIXELS),
            versions={"onnx": onnx.__version__},
        )


def _network(width: int) -> onnx.ModelProto:
    """3x3 convolutions 3 -> width -> width, a depthwise one, and a last 3x3, at 14x14."""
    shapes = [(width, 3, 3, 3), (width, width, 3, 3), (width, 1, 3, 3), (width, width, 3, 3)]
    random = numpy.random.default_rng(0)
    weights, nodes = [], []
    for index, shape in enumerate(shapes):
        value = random.standard_normal(shape) / numpy.prod(shape[1:]) ** 0.5
        weights.append(numpy_helper.from_array(value.astype(numpy.float32), f"w{index}"))
        group = width if shape[1] == 1 else 1
        inputs = [f"x{index}", f"w{index}"]
        nodes.append(helper.make_node("Conv", inputs, [f"x{index + 1}"], pads=[1, 1, 1, 1], group=group))
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 3, PIXELS, PIXELS])
    y = helper.make_tensor_value_info(f"x{len(shapes)}", TensorProto.FLOAT, [1, width, PIXELS, PIXELS])
    graph = helper.make_graph(nodes, "granularity", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _macs(width: int) -> int:
    """Multiply-accumulates per pixel of the test network."""
    return 9 * (3 * width + width * width + width + width * width)


def machine(target: Target) -> dict[str, Any]:
    """What tells a target's processor and runtime from another's: a figure that was measured there holds only there.

    Raises:
        MeasurementError: the device can't be asked.
    """
    if target.runner in {None, LOCAL}:
        return {**_this_machine(), "method": _METHOD}
    return {"device": target.runner, "about": _told(str(target.runner), target.program), "method": _METHOD}


@cache
def _told(device: str, program: str | None) -> dict[str, Any]:
    """What a device tells of itself; asked once a process."""
    try:
        return dict(reach(device, program)(ABOUT, {}, TIMEOUT_S)["about"])
    except (CommandError, LookupError, TypeError, ValueError) as error:
        message = f"The device {device} can't be asked what it is. {error}"
        raise MeasurementError(message) from error


def _this_machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    cpu = [platform.machine(), platform.processor(), *told]
    return {"cpu": cpu, "onnxruntime": version("onnxruntime")}
