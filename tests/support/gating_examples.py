"""Small networks with hand-written structures, and what a search needs around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from deploy_prune.budget.choose import smallest_counts
from deploy_prune.data.examples import Batch
from deploy_prune.training.loop import make_accelerator
from deploy_prune.types import Axis, ChannelGroup, Layer, LayerKind, Structure, Width

Part = tuple[str, int]


@dataclass(frozen=True)
class Example:
    network: nn.Module
    structure: Structure
    classes: int = 4
    size: int = 8

    def batches(self, seed: int = 0, batch: int = 16) -> Iterator[Batch]:
        lot = torch.Generator().manual_seed(seed)
        while True:
            y = torch.randint(0, self.classes, (batch,), generator=lot)
            x = torch.randn(batch, 3, self.size, self.size, generator=lot) + y.view(-1, 1, 1, 1) * 0.5
            yield Batch((x,), y)


def block(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


def norm_vectors(name: str) -> list[Part]:
    return [(f"{name}.{leaf}", 0) for leaf in ("weight", "bias", "running_mean", "running_var")]


def group(name: str, channels: int, members: list[Part], consumers: list[Part], period: int = 1) -> ChannelGroup:
    def axes(parts: list[Part]) -> tuple[Axis, ...]:
        units = torch.arange(channels).repeat_interleave(period)
        return tuple(Axis(tensor=tensor, axis=axis, unit_of=units) for tensor, axis in parts)

    return ChannelGroup(
        name=name, channels=channels, period=period, consumers=axes(consumers), members=axes(members + consumers)
    )


def layer(name: str, kind: LayerKind, taps: int, positions: int, inputs: Width, outputs: Width) -> Layer:
    return Layer(
        name=name,
        kind=kind,
        tensor=f"{name}.weight",
        taps=taps,
        positions=positions,
        input_positions=positions,
        inputs=inputs,
        outputs=outputs,
        vectors=2 if kind == "norm" else int(kind == "linear"),
    )


def of(name: str, per: int = 1) -> Width:
    return Width(fixed=0, per_unit={name: per})


def fixed(channels: int) -> Width:
    return Width(fixed=channels, per_unit={})


def chain(widths: tuple[int, int, int] = (8, 12, 16)) -> Example:
    a, b, c = widths
    network = nn.Sequential(
        *block(conv(3, a), a),
        *block(conv(a, b), b),
        *block(conv(b, c), c),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(c, 4),
    )
    groups = (
        group("0", a, [("0.weight", 0), *norm_vectors("1")], [("3.weight", 1)]),
        group("3", b, [("3.weight", 0), *norm_vectors("4")], [("6.weight", 1)]),
        group("6", c, [("6.weight", 0), *norm_vectors("7")], [("11.weight", 1)]),
    )
    layers = (
        layer("0", "conv", 9, 64, fixed(3), of("0")),
        layer("1", "norm", 0, 64, fixed(1), of("0")),
        layer("3", "conv", 9, 64, of("0"), of("3")),
        layer("4", "norm", 0, 64, fixed(1), of("3")),
        layer("6", "conv", 9, 64, of("3"), of("6")),
        layer("7", "norm", 0, 64, fixed(1), of("6")),
        layer("11", "linear", 1, 1, of("6"), fixed(4)),
    )
    return Example(network=network, structure=Structure(groups=groups, layers=layers, whole=()))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*block(conv(3, 16), 16))
        self.one, self.norm_one = conv(16, 12), nn.BatchNorm2d(12)
        self.two, self.norm_two = conv(12, 16), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm_one(self.one(x)))
        return self.head(F.relu(self.norm_two(self.two(y)) + x).mean((2, 3)))


def residual() -> Example:
    stem = [("stem.0.weight", 0), *norm_vectors("stem.1"), ("two.weight", 0), *norm_vectors("norm_two")]
    groups = (
        group("stem.0", 16, stem, [("one.weight", 1), ("head.weight", 1)]),
        group("one", 12, [("one.weight", 0), *norm_vectors("norm_one")], [("two.weight", 1)]),
    )
    layers = (
        layer("stem.0", "conv", 9, 64, fixed(3), of("stem.0")),
        layer("stem.1", "norm", 0, 64, fixed(1), of("stem.0")),
        layer("one", "conv", 9, 64, of("stem.0"), of("one")),
        layer("norm_one", "norm", 0, 64, fixed(1), of("one")),
        layer("two", "conv", 9, 64, of("one"), of("stem.0")),
        layer("norm_two", "norm", 0, 64, fixed(1), of("stem.0")),
        layer("head", "linear", 1, 1, of("stem.0"), fixed(4)),
    )
    return Example(network=Residual(), structure=Structure(groups=groups, layers=layers, whole=()))


def separable() -> Example:
    network = nn.Sequential(
        *block(conv(3, 8), 8),
        *block(conv(8, 24, 1), 24),
        *block(conv(24, 24, 3, groups=24), 24),
        *block(conv(24, 16, 1), 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    wide = [("3.weight", 0), *norm_vectors("4"), ("6.weight", 0), *norm_vectors("7")]
    groups = (
        group("0", 8, [("0.weight", 0), *norm_vectors("1")], [("3.weight", 1)]),
        group("3", 24, wide, [("9.weight", 1)]),
        group("9", 16, [("9.weight", 0), *norm_vectors("10")], [("14.weight", 1)]),
    )
    layers = (
        layer("0", "conv", 9, 64, fixed(3), of("0")),
        layer("1", "norm", 0, 64, fixed(1), of("0")),
        layer("3", "conv", 1, 64, of("0"), of("3")),
        layer("4", "norm", 0, 64, fixed(1), of("3")),
        layer("6", "depthwise", 9, 64, fixed(1), of("3")),
        layer("7", "norm", 0, 64, fixed(1), of("3")),
        layer("9", "conv", 1, 64, of("3"), of("9")),
        layer("10", "norm", 0, 64, fixed(1), of("9")),
        layer("14", "linear", 1, 1, of("9"), fixed(4)),
    )
    return Example(network=network, structure=Structure(groups=groups, layers=layers, whole=()))


@pytest.fixture(params=[chain, residual, separable], ids=["chain", "residual", "separable"])
def example(request: pytest.FixtureRequest) -> Example:
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def chained() -> Example:
    torch.manual_seed(0)
    return chain()


@pytest.fixture
def make_chain():
    return chain


@pytest.fixture
def make_group():
    return group


@pytest.fixture
def make_residual():
    return residual


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return make_accelerator("cpu")


def reachable(structure, cost, granule, least=1):
    """What the network costs with every group at its lowest stair, and whole."""
    return cost(smallest_counts(structure, granule, least)), cost(structure.dense_counts)
