"""Calls in the form that every exporter takes: the same numbers, in the program and in each format's file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploy_prune
from deploy_prune.export.artifact import export_program
from deploy_prune.recipe.parts import ExportPart

SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: torch.add(a, b, alpha=2),
    "add in place": lambda a, b: (a * 1).add_(b, alpha=-0.5),
    "add a number": lambda a, b: torch.add(a, 1.5, alpha=2) + b,
    "subtract": lambda a, b: torch.sub(a, b, alpha=3),
    "subtract in place": lambda a, b: (a * 1).sub_(b, alpha=3),
    "subtract from": lambda a, b: torch.rsub(a, b, alpha=0.5),
    "subtract from, no factor": lambda a, b: torch.rsub(a, b),
    "subtract from a number": lambda a, b: torch.rsub(a, 1.5, alpha=2) * b,
}


class Sum(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.of = SUMS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x, x[:, :1].sin())


@pytest.mark.parametrize("name", SUMS)
def test_sums_lose_their_factor(name: str) -> None:
    network, x = Sum(name), torch.randn(2, 3, 5)
    program = export_program(network, x, ExportPart())
    code = program.graph_module.code
    assert "alpha" not in code
    assert "rsub" not in code or "rsub.Scalar" in code
    assert torch.allclose(program.module()(x), network(x), atol=1e-6)


def test_whole_numbers_stay_whole() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, x > 2, alpha=3)

    x = torch.arange(6).view(2, 3)
    found = export_program(Whole(), x, ExportPart()).module()(x)
    assert found.dtype is torch.int64
    assert torch.equal(found, Whole()(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_by_name_becomes_numbers(dims: int, padding: str) -> None:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    for kernel, dilation in ((4, 1), (3, 2), ((2, 5, 4)[:dims], (3, 1, 1)[:dims])):
        network, x = layer(4, 6, kernel, padding=padding, dilation=dilation, groups=2), torch.randn(2, 4, *[9] * dims)
        program = export_program(network, x, ExportPart())
        assert f"'{padding}'" not in program.graph_module.code
        assert torch.allclose(program.module()(x), network(x), atol=1e-6)


POOLS = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
SIZES: list[tuple[int, Any]] = [
    (1, 1), (1, 3), (1, 7), (2, 1), (2, (1, 5)), (2, (None, 2)), (2, (10, 12)), (3, 2), (3, (3, 1, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("dims", "size"), SIZES)
def test_adaptive_maxima_become_maxima_of_slices(dims: int, size: Any) -> None:
    network, x = POOLS[dims](size), torch.randn(2, 3, *[7, 9, 8][:dims])
    program = export_program(network, x, ExportPart())
    assert "adaptive" not in program.graph_module.code
    assert torch.equal(program.module()(x), network(x))


def test_maxima_whose_positions_are_used_stay() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return nn.functional.adaptive_max_pool2d_with_indices(x, 2)

    x = torch.randn(1, 2, 5, 5)
    found = export_program(Positions(), x, ExportPart()).module()(x)
    assert all(map(torch.equal, found, Positions()(x)))


class Both(nn.Module):
    """Padding by name, even and odd, sums with factors, and maxima over adaptive windows. Inputs [B, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Conv2d(3, 4, 4, padding="same")
        self.even, self.odd = nn.Conv1d(4, 4, 4, padding="same"), nn.Conv1d(4, 4, 3, padding="same", dilation=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.image(x).flatten(2)
        y = torch.add(self.even(x), self.odd(x), alpha=2)
        y = torch.rsub(torch.sub(y, x, alpha=0.5), x)
        return self.head(y.mean(2) + nn.functional.adaptive_max_pool1d(y, 3).mean(2))


@pytest.mark.parametrize(
    ("format", "suffix", "precision", "module"),
    [
        ("onnx", ".onnx", "int8", "onnxruntime"),
        pytest.param("litert", ".tflite", "int8", "litert_torch", marks=pytest.mark.litert),
        pytest.param("executorch", ".pte", "int8", "executorch.runtime", marks=pytest.mark.executorch),
        pytest.param("ncnn", ".ncnn", "fp32", "pnnx", marks=pytest.mark.ncnn),
        pytest.param("openvino", ".openvino", "fp32", "openvino", marks=pytest.mark.openvino),
        pytest.param("mnn", ".mnn", "fp32", "MNN", marks=pytest.mark.mnn),
        pytest.param("coreml", ".mlpackage", "fp32", "coremltools", marks=pytest.mark.coreml),
    ],
)
def test_every_format_takes_them(format: str, suffix: str, precision: str, module: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module)
        x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        path = tmp_path / f"b{suffix}"
        deploy_prune.export_network(Both().eval(), x[:1], format, precision, path=path, calibration=x)
