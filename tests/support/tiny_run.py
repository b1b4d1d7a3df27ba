"""A recipe small enough for tests, its network, and a device that keeps time by arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import Tensor, nn

from deploy_prune.device import RUNNERS
from deploy_prune.device.host import local
from deploy_prune.recipe.parts import Recipe

LANES = 4
"""The arithmetic device computes so many channels at a time."""
OVERHEAD_MS = 0.02
MS_PER_WEIGHT = 1e-5


def network(num_classes: int, width: int = 16) -> nn.Module:
    """Three convolutions on one channel, each with batch norm, and a classifier: three groups of channels."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes)]
    return nn.Sequential(*layers, *head)


class Added(nn.Sequential):
    """Its input, and what it makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return x + super().forward(x)


def residual(num_classes: int, width: int = 16, depth: int = 4) -> nn.Module:
    """``depth`` residual blocks of two convolutions, each with batch norm, and a classifier."""

    def conv(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]

    blocks = [Added(*conv(width), nn.ReLU(), *conv(width)) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(*conv(1), nn.ReLU(), *blocks, *head)


class Block(nn.Sequential):
    """A convolution with its batch norm."""


def blocks(num_classes: int) -> nn.Module:
    """``network``, its convolutions in blocks."""
    layers = list(network(num_classes))
    return nn.Sequential(*(Block(*layers[i : i + 3]) for i in (0, 3, 6)), *layers[9:])


def tiny_recipe(**changes: Any) -> Recipe:
    """Half the MACs of ``network`` for a device that is not attached: nothing is measured."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"source": "tiny_run:network"},
        "data": {"image_size": 16, "channels": 1, "source_classes": [0, 1, 2], "target_classes": [3, 4, 5], "shots": 5},
        "train": {"steps": 10, "batch_size": 16},
        "search": {"steps": 6, "batch_size": 16},
        "retrain": {"steps": 5, "batch_size": 15},
        "measure": {"runs": 20, "warmup": 2},
        "targets": ["pixel-8"],
        "budgets": ["50% macs"],
        "device": "cpu",
        "threads": 1,
    }
    return Recipe.model_validate(values | changes)


@dataclass
class ArithmeticDevice:
    """Stands in for this machine: a layer takes as long as its weights are many, in steps of ``LANES`` channels.

    Outputs are still this machine's. ``asked`` counts what was timed.
    """

    asked: Counter[str] = field(default_factory=Counter)

    def __call__(self, payload: Path, spec: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        if spec["mode"] == "run":
            return local(payload, spec, timeout_s)
        self.asked[spec["mode"]] += 1
        nodes = [self.node_ms(Path(model["path"])) for model in spec["models"]]
        if spec["mode"] == "profile":
            return {"nodes": nodes}
        return {"samples_ms": [[OVERHEAD_MS + sum(n.values())] * spec["runs"] for n in nodes], "device": "arithmetic"}

    def node_ms(self, path: Path) -> dict[str, float]:
        graph = onnx.load(path).graph
        shapes = {entry.name: tuple(entry.dims) for entry in graph.initializer}
        weighted = [(n.name, shapes[n.input[1]]) for n in graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]
        return {name: MS_PER_WEIGHT * padded(shape) for name, shape in weighted}


def padded(shape: Sequence[int]) -> int:
    """Weights, with both widths rounded up to the lanes (a depthwise layer's one input stays one)."""
    wide = [-(-size // LANES) * LANES if size > 1 else 1 for size in shape[:2]]
    return prod(wide) * prod(shape[2:])


@contextmanager
def arithmetic_device(cache: Path) -> Iterator[ArithmeticDevice]:
    """The target ``host`` is an arithmetic device; what is measured is kept in ``cache``."""
    device = ArithmeticDevice()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNNERS, "local", device)
        patch.setenv("DEPLOY_PRUNE_CACHE", str(cache))
        yield device
