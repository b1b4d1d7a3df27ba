"""Transposed convolutions in other forms compute the same, and files in int8 hold them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import deploy_prune
from deploy_prune.export import litert
from deploy_prune.export.transposed import Runtime, rewrite_transposed

NONE = Runtime(has=lambda given: False, groups=True)
SPLIT = Runtime(has=lambda given: False, groups=False)
LITERT = Runtime(has=litert._transposes, groups=False)
ALL = Runtime(has=lambda given: True, groups=True)


def transposed(dims: int, *sizes: int, norm: bool = False, **options: Any) -> nn.Module:
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1](*sizes, **options)
    if not norm:
        return layer
    norm_layer = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](layer.out_channels, momentum=1.0)
    nn.init.uniform_(norm_layer.weight, 0.5, 1.5)
    nn.init.normal_(norm_layer.bias)
    return nn.Sequential(layer, norm_layer)


def rewritten(network: nn.Module, x: Tensor, runtime: Runtime) -> fx.GraphModule:
    return rewrite_transposed(torch.export.export(network, (x,)).module(check_guards=False), runtime)


@pytest.mark.parametrize("runtime", [NONE, SPLIT, LITERT, ALL], ids=["none", "split", "litert", "all"])
@pytest.mark.parametrize("dims", [1, 2])
def test_every_form_computes_the_same(dims: int, runtime: Runtime) -> None:
    generator = torch.Generator().manual_seed(dims)

    def any_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    for _ in range(8):
        groups, stride, kernel, dilation = any_of(1, 2, 4, 8), any_of(1, 2, 3), any_of(1, 2, 3, 4), any_of(1, 1, 2)
        options = {"groups": groups, "dilation": dilation, "bias": any_of(True, False), "norm": any_of(True, False)}
        outputs = any_of(8, 16) if groups == 8 else 12
        padding, more = any_of(0, 1, kernel // 2), any_of(*range(max(stride, dilation)))
        network = transposed(dims, 8, outputs, kernel, stride, padding, more, **options).double()
        x = torch.randn(2, 8, *(5, 6)[:dims], generator=generator).double()
        network.train()(x)
        network.eval()
        module = rewritten(network, x, runtime)
        assert torch.allclose(module(x), network(x), atol=1e-12)
        assert "batch_norm" not in module.code
        assert runtime not in (NONE, SPLIT) or "conv_transpose" not in module.code


def test_dimensions_may_differ() -> None:
    network, x = transposed(2, 4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=2).eval(), torch.randn(1, 4, 5, 3)
    for runtime in (NONE, SPLIT, LITERT):
        assert torch.allclose(rewritten(network, x, runtime)(x), network(x), atol=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.2, 0.3)])
def test_an_activation_stays_beside_the_convolution(activation: nn.Module) -> None:
    """Runtimes compute both at once; after the outputs are interleaved it would be a pass of its own."""
    x = torch.randn(1, 4, 5, 3)
    network = nn.Sequential(transposed(2, 4, 6, 3, 2, 1, 1, groups=2, norm=True), activation).eval()
    for runtime in (NONE, SPLIT, LITERT):
        module = rewritten(network, x, runtime)
        assert torch.allclose(module(x), network(x), atol=1e-6)
        convolutions = [n for n in module.graph.nodes if "conv" in n.name]
        assert convolutions
        assert all("relu" in user.name or "hardtanh" in user.name for n in convolutions for user in n.users)


def test_what_the_runtime_has_is_left_alone() -> None:
    network, x = nn.Sequential(transposed(2, 4, 6, 4, 2, 1), nn.ReLU()), torch.randn(1, 4, 5, 3)
    before = torch.export.export(network, (x,)).module(check_guards=False).code
    assert rewritten(network, x, LITERT).code == before


def test_weights_made_of_weights_are_known_and_others_are_left() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv_transpose2d(x, x.flatten(2).mean(2)[0].view(4, 1, 1, 1), groups=4)

    x = torch.randn(1, 4, 5, 3)
    normed = nn.utils.parametrizations.weight_norm(transposed(2, 4, 4, 3, groups=4)).eval()
    module = rewritten(normed, x, NONE)
    assert "conv_transpose" not in module.code
    assert torch.allclose(module(x), normed(x), atol=1e-6)
    assert "conv_transpose" in rewritten(Given(), x, NONE).code


def test_a_norm_of_what_others_read_too_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = transposed(2, 4, 6, 3, groups=2), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            return self.norm(y) + y

    network, x = Twice().eval(), torch.randn(1, 4, 5, 3)
    module = rewritten(network, x, NONE)
    assert "batch_norm" in module.code
    assert torch.allclose(module(x), network(x), atol=1e-6)


class Branches(nn.Module):
    """Transposed convolutions of many kinds, an output each. Inputs [B, 3, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList([
            transposed(2, 8, 6, 1, 2, norm=True, bias=False),
            transposed(2, 8, 6, 3, 2, 1, 1),
            transposed(2, 8, 8, 3, 2, 1, 1, norm=True, groups=2),
            transposed(2, 8, 8, 4, 2, 1, groups=8),
            transposed(1, 8, 8, 4, 2, 1, groups=2),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x).relu()
        *images, row = self.branches
        return (*(branch(x) for branch in images), row(x[:, :, 0]))


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        pytest.param("litert", ".tflite", marks=pytest.mark.litert),
        pytest.param("executorch", ".pte", marks=pytest.mark.executorch),
    ],
)
def test_an_int8_file_holds_every_kind(format: str, suffix: str, tmp_path: Path) -> None:
    """With batch norms, output padding or groups, files were invalid, wrong, or not to be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip({"litert": "litert_torch", "executorch": "executorch.runtime"}[format])
    network, x = Branches(), torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    network.train()(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deploy_prune.export_network(network.eval(), x[:1], format, "int8", path=tmp_path / f"b{suffix}", calibration=x)
